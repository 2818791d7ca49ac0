package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pitr/config"
	"pitr/internal/postmaster"
	"pitr/restore"
)

// addOptions adds the flags that say how and where to restore.
func (f *restoreFlags) addOptions(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&f.tablespaces, "tablespace-map", nil, "put a tablespace into a directory: `OID=DIR or PATH=DIR`; may be repeated; the others go beside the data directory")
	flags.BoolVar(&f.delta, "delta", false, "use what is right in --into, a cluster that is not running, and replace or remove the rest")
	flags.BoolVar(&f.yes, "yes", false, "do not ask before --delta replaces a cluster")
	flags.StringArrayVar(&f.onlyDatabases, "only-database", nil, "restore this `DATABASE`, may be repeated; the others are left without content, and dropped by --start")
	flags.BoolVar(&f.standby, "standby", false, "make a standby that follows the primary and the archive; --to is latest then")
	flags.StringVar(&f.primary, "primary", "", "primary_conninfo of --standby; default: postgres.dsn")
	flags.BoolVar(&f.pause, "pause", false, "stay at the target, open for reading only, until pg_wal_replay_resume() is called")
	flags.BoolVar(&f.promote, "promote", false, "open for writing at the target: the default")
}

func (f restoreFlags) check() error {
	targets := 0
	for _, text := range []string{f.to, f.beforeDrop, f.beforeXID} {
		if text != "" {
			targets++
		}
	}
	usage := func(format string, args ...any) error {
		return &usageError{fmt.Errorf("restore: "+format, args...)}
	}
	switch {
	case targets == 0:
		return usage("--to is missing: what should be brought back?")
	case targets > 1:
		return usage("--to, --before-drop and --before-xid exclude each other")
	case f.into == "" && !f.dryRun:
		return usage("--into is missing: name a new directory, or use --dry-run")
	case f.start && f.dryRun:
		return usage("--start and --dry-run exclude each other")
	case f.port < 0 || f.port > 65535:
		return usage("--port %d is out of range: 1 to 65535", f.port)
	case f.standby && (f.pause || f.promote):
		return usage("--standby follows for ever: it excludes --pause and --promote")
	case f.pause && f.promote:
		return usage("--pause and --promote exclude each other")
	case f.standby && f.to != "latest":
		return usage("--standby follows to the end: it excludes every target but latest")
	case f.primary != "" && !f.standby:
		return usage("--primary is for --standby")
	case len(f.onlyDatabases) > 0 && f.standby:
		return usage("--only-database and --standby exclude each other: a standby has all of its primary")
	}
	_, err := f.tablespaceMap()
	return err
}

// tablespaceMap reads --tablespace-map. A directory may have a "=" in its name, so that the first one counts.
func (f restoreFlags) tablespaceMap() (map[string]string, error) {
	targets := map[string]string{}
	for _, text := range f.tablespaces {
		from, to, found := strings.Cut(text, "=")
		if !found || from == "" || !strings.HasPrefix(to, "/") {
			return nil, &usageError{fmt.Errorf("restore: --tablespace-map %q: write OID=/DIRECTORY or /PATH=/DIRECTORY", text)}
		}
		if _, twice := targets[from]; twice {
			return nil, &usageError{fmt.Errorf("restore: --tablespace-map: %s is there twice", from)}
		}
		targets[from] = to
	}
	return targets, nil
}

// options are those of the restore that flags and configuration decide.
func (f restoreFlags) options(cfg *config.Config, answer *restored) (restore.Options, error) {
	opt := restore.Options{Dir: f.into, Isolated: !f.standby, Parallel: cfg.Restore.Parallel, BufferMax: int64(cfg.Backup.BufferMax),
		Delta: f.delta, Standby: f.standby, PrimaryInfo: f.primary, Pause: f.pause, Sparse: map[uint32]bool{}}
	if f.standby && f.primary == "" {
		opt.PrimaryInfo = cfg.Postgres.DSN.Reveal()
	}
	for oid := range answer.LeftOut {
		opt.Sparse[oid] = true
	}
	var err error
	opt.Tablespaces, err = f.tablespaceMap()
	return opt, err
}

func (f restoreFlags) printOptions(w io.Writer, answer restored) {
	if f.delta {
		planLine(w, "delta", "what differs in %s is replaced, and what is not in the backup is removed", f.into)
	}
	if n := len(answer.LeftOut); n > 0 {
		planLine(w, "left out", "%s: their content is not restored", strings.Join(slices.Sorted(maps.Values(answer.LeftOut)), ", "))
	}
}

// errNotConfirmed says that nobody has agreed to what destroys.
var errNotConfirmed = errors.New("--delta replaces a cluster: not confirmed")

// confirm asks before a cluster is replaced. Nobody can answer in a pipe: --yes does.
func (f restoreFlags) confirm() error {
	if !f.delta || f.yes || !restore.Differs(f.into) {
		return nil
	}
	if info, err := os.Stdin.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return &usageError{fmt.Errorf("restore: %w; --yes confirms it", errNotConfirmed)}
	}
	fmt.Fprintf(os.Stderr, "Replace the cluster in %s? Type yes: ", f.into)
	answer, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(answer) != "yes" {
		return errNotConfirmed
	}
	return nil
}

// dropLeftOut drops the databases that have no content, once the recovery that needed their files has ended.
func (f restoreFlags) dropLeftOut(ctx context.Context, install *postmaster.Install, server *postmaster.Server, opt restore.StartOptions, answer *restored) (*postmaster.Server, error) {
	if len(answer.LeftOut) == 0 || f.pause {
		return server, nil
	}
	if err := server.Stop(ctx, postmaster.Fast); err != nil {
		return server, err
	}
	if err := restore.DropDatabases(ctx, install, opt.Dir, slices.Sorted(maps.Values(answer.LeftOut))); err != nil {
		return server, err
	}
	server, _, err := restore.Start(ctx, install, opt)
	return server, err
}

func (f restoreFlags) printOpened(w io.Writer, port int, opened restore.Opened) {
	switch {
	case f.standby:
		planLine(w, "open", "on 127.0.0.1:%d as a standby after %s", port, durationText(opened.Took))
	case f.pause:
		planLine(w, "open", "on 127.0.0.1:%d for reading, at the target, after %s of recovery; select pg_wal_replay_resume() promotes it", port, durationText(opened.Took))
		planLine(w, "proof", "%s", opened.Stopping)
	default:
		planLine(w, "open", "on 127.0.0.1:%d after %s of recovery, timeline %s", port, durationText(opened.Took), opened.NewTimeline)
		proof := opened.Stopping
		if opened.LastXactTime != "" {
			proof += "; last transaction " + opened.LastXactTime
		}
		planLine(w, "proof", "%s", proof)
	}
}

// fetching shows how much of a backup is there, and when all of it will be.
func (p *progress) fetching(begin time.Time) func(done, total int64) {
	return func(done, total int64) {
		p.show(fmt.Sprintf("fetched %s of %s, %s left", bytesText(done), bytesText(total), leftText(time.Since(begin), done, total)))
	}
}

// replaying shows how far recovery is: by the WAL that Postgres has open, since it cannot be asked before it is open itself.
func (p *progress) replaying(begin time.Time, dir string, plan *restore.Plan) func(status string) {
	return func(status string) {
		if p.line == nil || status == "" {
			return
		}
		at, ok := restore.Replaying(dir, plan)
		if !ok {
			p.show("Postgres: " + status)
			return
		}
		done := int64(at - min(at, plan.Backup.Start))
		p.show(fmt.Sprintf("Postgres replays %s, %s of %s, %s left", at, bytesText(done), bytesText(plan.WALBytes), leftText(time.Since(begin), done, plan.WALBytes)))
	}
}

// leftText is how long the rest takes at the rate so far.
func leftText(took time.Duration, done, total int64) string {
	if done <= 0 || took < time.Second {
		return "?"
	}
	return durationText((time.Duration(float64(took) / float64(done) * float64(max(0, total-done)))).Round(time.Second))
}
