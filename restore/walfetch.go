package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// ErrAbsent says that a file is certainly not in the archive. `wal fetch` exits 1 for it and for nothing else (law 6): Postgres takes
// that as the end of the archive.
var ErrAbsent = errors.New("certainly not in the archive")

// FetchOptions says what a recovery wants of the archive.
type FetchOptions struct {
	// Until is where a recovery ends that stops by itself; zero: not known. Postgres reads ahead. Behind this position a hole may be taken for
	// the end of the archive: a recovery that has a target fails, and does not promote, when the log ends before it.
	Until pg.LSN
}

// FetchWAL writes the file that Postgres asks its restore_command for: a segment, filled with zeros behind what is archived of it, or
// a history file. The destination appears whole or not at all.
func FetchWAL(ctx context.Context, r *repo.Repo, name, destination string, opt FetchOptions) error {
	content, err := readFile(ctx, r, name, opt)
	if err != nil {
		return fmt.Errorf("wal fetch %s: %w", name, err)
	}
	if err := writeWAL(destination, content); err != nil {
		return fmt.Errorf("wal fetch %s: %w", name, err)
	}
	return nil
}

func readFile(ctx context.Context, r *repo.Repo, name string, opt FetchOptions) ([]byte, error) {
	cluster, err := r.Cluster(ctx)
	if err != nil {
		// Without cluster.json this is not the archive of anything: that is a mistake in the configuration, not the end of WAL.
		return nil, errors.New(err.Error())
	}
	if tli, err := pg.ParseHistoryName(name); err == nil {
		content, err := r.HistoryFile(ctx, tli)
		if errors.Is(err, repo.ErrNotExist) {
			return nil, ErrAbsent
		}
		return content, err
	}
	if strings.HasSuffix(name, ".partial") || strings.HasSuffix(name, ".backup") {
		return nil, ErrAbsent // nobody archives such files here
	}
	segment, err := pg.ParseSegmentName(name, cluster.SegmentSize)
	if err != nil {
		return nil, err
	}
	return readSegment(ctx, r, segment, cluster.SegmentSize, opt)
}

// readSegment returns a whole segment. What is missing of it may only be missing at the end of the archive: behind a hole Postgres must
// not promote as if nothing had followed.
func readSegment(ctx context.Context, r *repo.Repo, segment pg.Segment, size pg.SegmentSize, opt FetchOptions) ([]byte, error) {
	content, err := r.ReadSegment(ctx, size, segment)
	absent := errors.Is(err, repo.ErrNotExist)
	if err != nil && !absent || len(content) == int(size) {
		return content, err
	}
	inv, err := r.Inventory(ctx, segment.Timeline, size, 0)
	if err != nil {
		return nil, errors.New(err.Error())
	}
	if inv.Complete(segment.Number) { // completed meanwhile
		content, err := r.ReadSegment(ctx, size, segment)
		if err != nil {
			return nil, errors.New(err.Error())
		}
		return content, nil
	}
	runs := inv.Runs()
	reaches := opt.Until != 0 && segment.Start(size)+pg.LSN(len(content)) >= opt.Until
	if !reaches && len(runs) > 0 && runs[0].Start <= segment.Start(size) && inv.Last() > segment.End(size) {
		return nil, fmt.Errorf("the archive has a hole here: it goes on up to %s on timeline %d", inv.Last(), segment.Timeline)
	}
	if absent {
		return nil, ErrAbsent
	}
	return append(content, make([]byte, int(size)-len(content))...), nil
}

func writeWAL(destination string, content []byte) error {
	tmp := destination + ".pitr-tmp"
	err := os.WriteFile(tmp, content, 0o600)
	if err == nil {
		err = os.Rename(tmp, destination)
	}
	if err != nil {
		if rmErr := os.Remove(tmp); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
	}
	return err
}

// keepOwner gives a new file the owner of the one that it replaces, or of the directory when there is none.
func keepOwner(old, created string) error {
	info, err := os.Stat(old)
	if errors.Is(err, fs.ErrNotExist) {
		info, err = os.Stat(filepath.Dir(created))
	}
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 {
		return nil
	}
	return os.Lchown(created, int(st.Uid), int(st.Gid))
}
