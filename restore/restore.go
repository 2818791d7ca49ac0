package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"pitr/internal/repo"
)

// Options says where and how a plan is carried out.
type Options struct {
	Dir         string
	FetchWAL    string // the shell command for restore_command, with %f and %p
	Isolated    bool   // a copy: it must not archive, replicate or run jobs as its origin does
	Parallel    int    // requests at a time; restore.parallel
	Own         func(path string) error
	Progress    func(fetched, total int64) // may be nil; called from several goroutines
	Log         *slog.Logger
	SpaceMargin int64 // bytes that must stay free
}

// Result is what a restore did.
type Result struct {
	Files int           `json:"files"`
	Bytes int64         `json:"bytes"`
	Took  time.Duration `json:"took_ns"`
}

// CarryOut restores the files of a plan into a directory that is ready to be started: Postgres then recovers up to the target. It first
// checks the directory and the space in it, and reads the whole manifest, before it writes anything.
func CarryOut(ctx context.Context, r *repo.Repo, plan *Plan, opt Options) (Result, error) {
	begin := time.Now()
	manifest, err := r.ReadManifest(ctx, plan.BackupID)
	if err != nil {
		return Result{}, fmt.Errorf("restore: %w", err)
	}
	if err := CheckDirectory(opt.Dir); err != nil {
		return Result{}, err
	}
	if err := checkSpace(opt.Dir, manifest.Bytes+opt.SpaceMargin); err != nil {
		return Result{}, fmt.Errorf("restore: %w", err)
	}
	if err := carryOut(ctx, r, plan, manifest, opt); err != nil {
		return Result{}, fmt.Errorf("restore into %s: %w", opt.Dir, err)
	}
	result := Result{Files: manifest.Files, Bytes: manifest.Bytes, Took: time.Since(begin)}
	opt.Log.Info("restored", "backup", plan.BackupID, "directory", opt.Dir, "files", result.Files, "bytes", result.Bytes,
		"stop_lsn", plan.StopLSN, "timeline", plan.Timeline, "took", result.Took.Round(time.Millisecond))
	return result, nil
}

func carryOut(ctx context.Context, r *repo.Repo, plan *Plan, manifest *repo.Manifest, opt Options) error {
	if err := layout(opt.Dir, manifest, opt.Own); err != nil {
		return err
	}
	f := &fetcher{repo: r, manifest: manifest, dir: opt.Dir, progress: opt.Progress}
	if err := f.run(ctx, opt.Parallel); err != nil {
		return err
	}
	if err := writeRecovery(opt.Dir, plan, opt); err != nil {
		return err
	}
	if err := opt.Own(opt.Dir); err != nil {
		return err
	}
	if len(manifest.Tablespaces) > 0 {
		if err := opt.Own(opt.Dir + ".tablespaces"); err != nil {
			return err
		}
	}
	return publish(opt.Dir)
}

// publish makes the directory startable: everything else is durable, so pg_control gets its name (law 5), and the mark goes.
func publish(dir string) error {
	if err := os.Rename(filepath.Join(dir, controlFileTemp), filepath.Join(dir, controlFile)); err != nil {
		return err
	}
	if err := syncPath(filepath.Join(dir, filepath.Dir(controlFile))); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, unfinishedMark)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncPath(dir)
}
