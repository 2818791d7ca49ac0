package archiver

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"path/filepath"
	"strconv"
	"time"

	"pitr/archiver/replication"
	"pitr/internal/pg"
	"pitr/internal/repo"
)

// BackupOptions is what TakeBackup needs.
type BackupOptions struct {
	DSN       string
	Repo      *repo.Repo
	BufferMax int64         // bytes held in memory at most, roughly; backup.buffer_max
	WALWait   time.Duration // how long to wait for the backup's WAL in the repository; backup.wal_wait
	Log       *slog.Logger
	Progress  func(BackupProgress) // may be nil; called from one goroutine
}

// BackupProgress is how far a backup has come.
type BackupProgress struct {
	Files       int
	Bytes       int64
	StoredBytes int64
}

// ErrNoWAL says that a backup's WAL did not arrive in the repository.
var ErrNoWAL = errors.New("its WAL did not arrive in the repository")

// BackupIDLayout is the form of a backup's id: when it began, in UTC.
const BackupIDLayout = "20060102T150405Z"

// backupSettings are recorded with a backup: those whose values recovery needs at least as high (CheckRequiredParameterValues in
// src/backend/access/transam/xlogrecovery.c), and what an operator wants to know before a restore.
const backupSettings = `SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ('max_connections', 'max_worker_processes',
 'max_wal_senders', 'max_prepared_transactions', 'max_locks_per_transaction', 'wal_level', 'data_checksums', 'server_version_num',
 'shared_preload_libraries', 'config_file', 'hba_file', 'data_directory', 'block_size')`

// TakeBackup streams a base backup into the repository. The backup exists when it returns nil, and not before (law 4). Its WAL must
// come from an archiver that is running, this one or another.
func TakeBackup(ctx context.Context, opt BackupOptions) (repo.Backup, error) {
	b, err := takeBackup(ctx, opt)
	if err != nil {
		return repo.Backup{}, fmt.Errorf("base backup: %w", err)
	}
	return b, nil
}

func takeBackup(ctx context.Context, opt BackupOptions) (repo.Backup, error) {
	b, err := describeServer(ctx, opt)
	if err != nil {
		return b, err
	}
	conn, err := replication.Connect(ctx, replication.ConnectOptions{DSN: opt.DSN, ApplicationName: "pitr backup", Replication: true})
	if err != nil {
		return b, err
	}
	base, err := conn.StartBaseBackup(ctx, "pitr "+b.ID)
	if err != nil {
		return b, err
	}
	b.Start, b.Timeline = base.Start, base.Timeline
	opt.Log.Info("base backup started", "backup", b.ID, "start", b.Start, "timeline", b.Timeline)
	manifest, err := copyFiles(ctx, opt, base, &b)
	if err = errors.Join(err, base.Close()); err != nil {
		return b, err
	}
	b.Stop = base.Stop
	if b.StopTime, err = serverClock(ctx, opt.DSN); err != nil {
		return b, err
	}
	if err := waitForWAL(ctx, opt, b); err != nil {
		return b, err
	}
	if err := manifest.Publish(ctx, b); err != nil {
		return b, err
	}
	took := b.StopTime.Sub(b.StartTime)
	opt.Log.Info("base backup finished", "backup", b.ID, "files", b.Files, "bytes", b.Bytes, "stored_bytes", b.StoredBytes, "packs", len(b.Packs),
		"start", b.Start, "stop", b.Stop, "took", took.Round(time.Millisecond))
	return b, nil
}

// describeServer checks that the repository is this cluster's and gathers what the manifest says of the server.
func describeServer(ctx context.Context, opt BackupOptions) (b repo.Backup, err error) {
	conn, err := replication.Connect(ctx, replication.ConnectOptions{DSN: opt.DSN, ApplicationName: "pitr backup", Replication: true})
	if err != nil {
		return b, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	system, err := conn.IdentifySystem(ctx)
	if err != nil {
		return b, err
	}
	size, err := conn.SegmentSize(ctx)
	if err != nil {
		return b, err
	}
	now := time.Now().UTC()
	cluster := repo.Cluster{SystemID: system.ID, SegmentSize: size, Created: now.Truncate(time.Second)}
	if err := opt.Repo.Bind(ctx, cluster); err != nil {
		return b, err
	}
	b = repo.Backup{SystemID: system.ID, SegmentSize: size, ServerVersion: conn.ServerVersion(), ExtentSize: repo.ExtentSize}
	if b.StartTime, err = serverClock(ctx, opt.DSN); err != nil {
		return b, err
	}
	if b.Major, err = conn.Major(); err != nil {
		return b, err
	}
	if b.Settings, err = readSettings(ctx, opt.DSN); err != nil {
		return b, err
	}
	b.ID, err = freeID(ctx, opt.Repo, now)
	return b, err
}

// serverClock asks the server what time it is. The times of a backup are compared with those of its transactions, which are the server's.
func serverClock(ctx context.Context, dsn string) (at time.Time, err error) {
	conn, err := replication.Connect(ctx, replication.ConnectOptions{DSN: dsn, ApplicationName: "pitr backup"})
	if err != nil {
		return at, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	rows, err := conn.Query(ctx, "SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::pg_catalog.int8")
	if err != nil {
		return at, err
	}
	micros, err := strconv.ParseInt(rows[0][0], 10, 64)
	return time.UnixMicro(micros).UTC(), err
}

func readSettings(ctx context.Context, dsn string) (settings map[string]string, err error) {
	conn, err := replication.Connect(ctx, replication.ConnectOptions{DSN: dsn, ApplicationName: "pitr backup"})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	rows, err := conn.Query(ctx, backupSettings)
	if err != nil {
		return nil, err
	}
	settings = map[string]string{}
	for _, row := range rows {
		settings[row[0]] = row[1]
	}
	return settings, nil
}

// freeID is the id of a backup that begins now, or a second or more later when ids are taken.
func freeID(ctx context.Context, r *repo.Repo, now time.Time) (string, error) {
	packs, err := r.StoredPacks(ctx)
	if err != nil {
		return "", err
	}
	for {
		id := now.Format(BackupIDLayout)
		if _, taken := packs[id]; !taken {
			return id, nil
		}
		now = now.Add(time.Second)
	}
}

// copyFiles reads the archives and returns the manifest's lines.
func copyFiles(ctx context.Context, opt BackupOptions, base *replication.BaseBackup, b *repo.Backup) (*repo.ManifestWriter, error) {
	p := newPipeline(ctx, opt, b.ID)
	err := readArchives(base, b, p)
	packs, files, waitErr := p.finish(err)
	if waitErr != nil {
		return nil, waitErr
	}
	b.Packs = packs
	manifest := opt.Repo.NewManifest()
	for _, f := range files {
		b.Bytes += f.Size
		if err := manifest.Add(*f); err != nil {
			return nil, err
		}
	}
	b.Files = len(files)
	for _, pack := range packs {
		b.StoredBytes += pack.Size
	}
	return manifest, nil
}

func readArchives(base *replication.BaseBackup, b *repo.Backup, p *pipeline) error {
	for {
		archive, content, err := base.Next()
		if err != nil {
			if errors.Is(err, io.EOF) && base.Stop != 0 {
				return nil
			}
			return err
		}
		switch {
		case archive.Manifest:
			// Stored like a file of the data directory, where pg_verifybackup looks for it.
			err = p.addUnsized("backup_manifest", content)
		case archive.TablespaceOID == "":
			err = readTar(content, "", p)
		default:
			b.Tablespaces = append(b.Tablespaces, repo.Tablespace{OID: archive.TablespaceOID, Path: archive.TablespacePath})
			err = readTar(content, "pg_tblspc/"+archive.TablespaceOID+"/", p)
		}
		if err != nil {
			return err
		}
	}
}

// readTar hands every entry of an archive to the pipeline.
func readTar(content io.Reader, prefix string, p *pipeline) error {
	archive := tar.NewReader(content)
	for {
		entry, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the archive %q: %w", prefix, err)
		}
		name := path.Clean(prefix + entry.Name)
		if name == "." {
			continue
		}
		if !filepath.IsLocal(name) {
			return fmt.Errorf("read the archive %q: the name %q leaves the data directory", prefix, entry.Name)
		}
		f := &repo.File{Path: name, Mode: uint32(entry.Mode & 0o777), Size: entry.Size, ModTime: entry.ModTime.UTC()}
		switch entry.Typeflag {
		case tar.TypeReg:
			err = p.add(f, archive)
		case tar.TypeDir:
			f.Type, f.Size = repo.TypeDir, 0
			err = p.add(f, nil)
		default:
			err = fmt.Errorf("read the archive %q: %s is of type %q, which a base backup does not contain", prefix, name, entry.Typeflag)
		}
		if err != nil {
			return err
		}
	}
}

// walPoll is how often the repository is asked whether a backup's WAL has arrived.
const walPoll = 500 * time.Millisecond

// waitForWAL waits until the repository holds the WAL that makes the backup consistent: without it the backup could not be restored.
func waitForWAL(ctx context.Context, opt BackupOptions, b repo.Backup) error {
	limit, cancel := context.WithTimeout(ctx, opt.WALWait)
	defer cancel()
	ticker := time.NewTicker(walPoll)
	defer ticker.Stop()
	frontier := pg.LSN(0)
	for {
		p, err := opt.Repo.Path(limit, b.Timeline, b.SegmentSize, b.Start)
		switch {
		case errors.Is(err, repo.ErrNotExist): // the history file has not arrived yet
		case err != nil && limit.Err() == nil:
			return err
		case err == nil:
			if frontier = p.Frontier(b.SegmentSize.Start(b.Start)); frontier >= b.Stop {
				return nil
			}
		}
		select {
		case <-limit.Done():
			return fmt.Errorf("%w within %s: it is there up to %s, and needed up to %s; is `pitr archiver` running against the same store?", ErrNoWAL, opt.WALWait, frontier, b.Stop)
		case <-ticker.C:
		}
	}
}
