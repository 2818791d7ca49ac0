package archiver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pitr/archiver/replication"
	"pitr/internal/repo"
)

// hostPatience bounds how long a host may take to say whether it is a standby.
const hostPatience = 10 * time.Second

// errNoStandby says that no host of the DSN is a standby that answers.
var errNoStandby = errors.New("backup.from = standby, and no host of postgres.dsn is a standby that can be reached")

// choose pins a backup to one host, so that everything it asks is answered by the server that sends the files. Without a wish for a standby it is
// whatever the DSN leads to: the primary of several hosts.
func (opt BackupOptions) choose(ctx context.Context) (BackupOptions, error) {
	if opt.From != replication.Standby && opt.From != replication.PreferStandby {
		return opt, nil
	}
	hosts, err := replication.Hosts(opt.DSN)
	if err != nil {
		return opt, err
	}
	errs := []error{errNoStandby}
	for _, host := range hosts {
		opt.only = host
		standby, err := opt.isStandby(ctx)
		if standby {
			opt.Log.Info("base backup is taken from a standby", "host", host.Name, "port", host.Port)
			return opt, nil
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s:%d: %w", host.Name, host.Port, err))
		}
	}
	if ctx.Err() != nil {
		return opt, ctx.Err()
	}
	if opt.From == replication.Standby {
		return opt, errors.Join(errs...)
	}
	opt.only = replication.Host{}
	opt.Log.Info("base backup is taken from the primary, since there is no standby", "error", errors.Join(errs[1:]...))
	return opt, nil
}

func (opt BackupOptions) isStandby(ctx context.Context) (standby bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, hostPatience)
	defer cancel()
	conn, err := opt.connect(ctx, "", false)
	if err != nil {
		return false, err
	}
	standby, err = conn.InRecovery(ctx)
	return standby, errors.Join(err, conn.Close(ctx))
}

// errBeforeArchive says that a standby cannot begin a backup where the archive has WAL.
var errBeforeArchive = errors.New("the standby's last restartpoint lies before all WAL that the archive has without a gap; a CHECKPOINT on the primary, once the standby " +
	"has replayed it, mends that")

// archivedFrom makes sure that the archive can have the WAL of a backup, before all of it is read. A primary begins with a checkpoint of now. A
// standby begins with the redo of a checkpoint that it has replayed, which may be older than the archive.
func archivedFrom(ctx context.Context, opt BackupOptions, b *repo.Backup) error {
	if !b.FromStandby {
		return nil
	}
	p, err := opt.Repo.Path(ctx, b.Timeline, b.SegmentSize, 0)
	if errors.Is(err, repo.ErrNotExist) {
		return nil // the history file has not arrived yet
	}
	if err != nil {
		return err
	}
	runs := p.Runs()
	if len(runs) == 0 || runs[len(runs)-1].Start <= b.Start {
		return nil
	}
	return fmt.Errorf("%w: it is %s, and the archive begins at %s", errBeforeArchive, b.Start, runs[len(runs)-1].Start)
}
