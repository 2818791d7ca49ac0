package restore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"pitr/internal/repo"
)

// Options says where and how a plan is carried out.
type Options struct {
	Dir         string
	FetchWAL    string // the shell command for restore_command, with %f and %p; it gets an option more: --until LSN
	Isolated    bool   // a copy: it must not archive, replicate or run jobs as its origin does
	Parallel    int    // requests at a time; restore.parallel
	Own         func(path string) error
	Progress    func(fetched, total int64) // may be nil; called from several goroutines
	Log         *slog.Logger
	SpaceMargin int64 // bytes that must stay free
	// BeforePublish is asked when all is there but what makes the directory startable; an error leaves it as it is. May be nil.
	BeforePublish func() error
	BufferMax     int64 // bytes of packs in memory; zero: not bounded but by Parallel

	Tablespaces map[string]string // directories of tablespaces, by object id or the path that they had; the others go beside Dir
	Delta       bool              // use what is right in Dir, a cluster that is not running, and replace the rest
	Sparse      map[uint32]bool   // databases whose files are restored without their content; to be dropped afterwards
	Standby     bool              // follow the primary and the archive; the plan's stop does not count
	PrimaryInfo string            // primary_conninfo of a standby; may be empty
	Pause       bool              // stay at the target, open for reading
}

// Result is what a restore did.
type Result struct {
	Files   int           `json:"files"`
	Bytes   int64         `json:"bytes"`
	Fetched int64         `json:"fetched_bytes"` // of the packs
	Took    time.Duration `json:"took_ns"`
}

// CarryOut restores the files of a plan into a directory that is ready to be started: Postgres then recovers up to the target. It first
// checks the directory and the space in it, and reads the whole manifest, before it writes anything.
func CarryOut(ctx context.Context, r *repo.Repo, plan *Plan, opt Options) (Result, error) {
	begin := time.Now()
	manifest, err := plan.manifest, error(nil)
	if manifest == nil {
		manifest, err = r.ReadManifest(ctx, plan.BackupID)
	}
	if err != nil {
		return Result{}, fmt.Errorf("restore: %w", err)
	}
	if opt.Dir, err = resolve(opt.Dir); err != nil {
		return Result{}, fmt.Errorf("restore: %w", err)
	}
	check, need := CheckDirectory, manifest.Bytes+opt.SpaceMargin
	if opt.Delta {
		check, need = CheckDelta, opt.SpaceMargin // what is there is replaced
	}
	if err := check(opt.Dir); err != nil {
		return Result{}, err
	}
	l, err := newLayout(opt.Dir, manifest, opt.Tablespaces, opt.Delta)
	if err == nil {
		err = l.check(opt.Delta)
	}
	if err == nil && opt.Delta {
		err = checkSameCluster(opt.Dir, manifest.SystemID)
	}
	if err == nil {
		err = checkSpace(opt.Dir, need)
	}
	if err == nil {
		err = prepareTablespaces(plan, opt.Own)
	}
	if err != nil {
		return Result{}, fmt.Errorf("restore: %w", err)
	}
	fetched, err := carryOut(ctx, r, plan, manifest, l, opt)
	if err != nil {
		return Result{}, fmt.Errorf("restore into %s: %w", opt.Dir, err)
	}
	result := Result{Files: manifest.Files, Bytes: manifest.Bytes, Fetched: fetched, Took: time.Since(begin)}
	opt.Log.Info("restored", "backup", plan.BackupID, "directory", opt.Dir, "files", result.Files, "bytes", result.Bytes, "fetched_bytes", fetched,
		"stop_lsn", plan.StopLSN, "timeline", plan.Timeline, "took", result.Took.Round(time.Millisecond))
	return result, nil
}

func carryOut(ctx context.Context, r *repo.Repo, plan *Plan, manifest *repo.Manifest, l *layout, opt Options) (fetched int64, err error) {
	c, err := claimFor(opt.Dir, "pitr restore of backup "+manifest.ID+" has not finished", opt.Delta)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.release()) }()
	f := newFetcher(r, manifest, opt)
	if opt.Delta {
		if f.right, err = reuse(ctx, l, manifest, f.sparse, max(1, opt.Parallel)); err != nil {
			return 0, err
		}
	}
	if err := l.make(manifest, opt.Own, opt.Delta); err != nil {
		return 0, err
	}
	if err := f.run(ctx, max(1, opt.Parallel)); err != nil {
		return 0, err
	}
	if err := errors.Join(writeRecovery(opt.Dir, plan, opt), writeOriginFiles(opt.Dir, manifest.Origin)); err != nil {
		return 0, err
	}
	roots := l.roots()
	for _, root := range roots {
		if err := opt.Own(root); err != nil {
			return 0, err
		}
	}
	if err := syncTrees(roots...); err != nil {
		return 0, err
	}
	if opt.BeforePublish != nil {
		if err := opt.BeforePublish(); err != nil {
			return 0, err
		}
	}
	if err := c.publish(); err != nil {
		return 0, err
	}
	return f.fetched.Load(), l.finish()
}
