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
	if opt.Dir, err = resolve(opt.Dir); err != nil {
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

func carryOut(ctx context.Context, r *repo.Repo, plan *Plan, manifest *repo.Manifest, opt Options) (err error) {
	c, err := claimDirectory(opt.Dir, "pitr restore of backup "+manifest.ID+" has not finished")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.release()) }()
	if err := layout(opt.Dir, manifest, opt.Own); err != nil {
		return err
	}
	f := &fetcher{repo: r, manifest: manifest, dir: opt.Dir, progress: opt.Progress}
	if err := f.run(ctx, max(1, opt.Parallel)); err != nil {
		return err
	}
	if err := writeRecovery(opt.Dir, plan, opt); err != nil {
		return err
	}
	roots := []string{opt.Dir}
	if len(manifest.Tablespaces) > 0 {
		roots = append(roots, tablespacesDir(opt.Dir))
	}
	for _, root := range roots {
		if err := opt.Own(root); err != nil {
			return err
		}
	}
	if err := syncTrees(roots...); err != nil {
		return err
	}
	return c.publish()
}
