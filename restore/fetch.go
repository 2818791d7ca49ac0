package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"pitr/internal/repo"
)

// controlFile comes last; until then it has the other name, so that an unfinished directory cannot start (law 5).
const (
	controlFile     = "global/pg_control"
	controlFileTemp = "global/pg_control.pitr"
)

// skipped are files of a backup that a restore does not write: tablespaces are linked to where they are now, and the mark is there when
// the origin was itself restored by a process that was killed just before it had removed it.
var skipped = map[string]bool{"tablespace_map": true, unfinishedMark: true}

// fetcher writes the files of a manifest. Runs of neighbouring extents of a pack are fetched with one request each.
type fetcher struct {
	repo     *repo.Repo
	manifest *repo.Manifest
	dir      string
	fetched  atomic.Int64 // stored bytes so far
	progress func(fetched, total int64)
}

// piece is an extent and where it belongs.
type piece struct {
	extent repo.Extent
	file   int
	offset int64
	length int
}

// fetchRun is a stretch of a pack.
type fetchRun struct {
	pack   int
	pieces []piece
}

const (
	// runSizeMax is the largest request; runGapMax is how many unneeded bytes are read rather than making another request.
	runSizeMax = 8 << 20
	runGapMax  = 64 << 10
)

// run fetches everything with so many requests at a time.
func (f *fetcher) run(ctx context.Context, parallel int) error {
	if err := f.createFiles(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	runs := make(chan fetchRun)
	var workers sync.WaitGroup
	for range parallel {
		workers.Go(func() {
			for run := range runs {
				if err := f.fetch(ctx, run); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	f.plan(ctx, runs)
	close(runs)
	workers.Wait()
	return context.Cause(ctx)
}

func (f *fetcher) path(file int) string {
	name := f.manifest.Entries[file].Path
	if name == controlFile {
		name = controlFileTemp
	}
	return filepath.Join(f.dir, filepath.FromSlash(name))
}

// createFiles makes every file with its final size, so that extents can arrive in any order.
func (f *fetcher) createFiles() error {
	for i, entry := range f.manifest.Entries {
		if entry.Type != repo.TypeFile || skipped[entry.Path] {
			continue
		}
		file, err := os.OpenFile(f.path(i), os.O_CREATE|os.O_EXCL|os.O_WRONLY, fs.FileMode(entry.Mode&0o777)|0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(file.Truncate(entry.Size), file.Close()); err != nil {
			return err
		}
	}
	return nil
}

// plan sorts the extents by pack and offset and sends runs of them.
func (f *fetcher) plan(ctx context.Context, runs chan<- fetchRun) {
	byPack := make([][]piece, len(f.manifest.Packs))
	for i, entry := range f.manifest.Entries {
		if skipped[entry.Path] {
			continue
		}
		for n, extent := range entry.Extents {
			offset := int64(n) * repo.ExtentSize
			p := piece{extent: extent, file: i, offset: offset, length: int(min(repo.ExtentSize, entry.Size-offset))}
			byPack[extent.Pack] = append(byPack[extent.Pack], p)
		}
	}
	for pack, pieces := range byPack {
		slices.SortFunc(pieces, func(a, b piece) int { return int(a.extent.Offset - b.extent.Offset) })
		for len(pieces) > 0 {
			n := runLength(pieces)
			select {
			case runs <- fetchRun{pack, pieces[:n]}:
			case <-ctx.Done():
				return
			}
			pieces = pieces[n:]
		}
	}
}

// runLength is how many of the pieces one request should fetch.
func runLength(pieces []piece) int {
	first := pieces[0].extent.Offset
	for n := 1; n < len(pieces); n++ {
		before, next := pieces[n-1].extent, pieces[n].extent
		gap := next.Offset - before.Offset - int64(before.Length)
		if gap > runGapMax || next.Offset+int64(next.Length)-first > runSizeMax {
			return n
		}
	}
	return len(pieces)
}

// fetchAttempts is how often a run is asked for whose bytes break off or are damaged on the way.
const fetchAttempts = 4

func (f *fetcher) fetch(ctx context.Context, run fetchRun) error {
	first := run.pieces[0].extent.Offset
	last := run.pieces[len(run.pieces)-1].extent
	length := last.Offset + int64(last.Length) - first
	pack := f.manifest.Packs[run.pack]
	var content []byte
	var err error
	for range fetchAttempts {
		if content, err = f.read(ctx, pack, first, length); err == nil {
			err = f.write(ctx, run, first, content)
		}
		if err == nil || ctx.Err() != nil || errors.Is(err, repo.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return err
	}
	if done := f.fetched.Add(length); f.progress != nil {
		f.progress(done, f.manifest.StoredBytes)
	}
	return nil
}

func (f *fetcher) read(ctx context.Context, pack repo.Pack, offset, length int64) ([]byte, error) {
	body, err := f.repo.PackReader(ctx, pack, offset, length)
	if err != nil {
		return nil, err
	}
	content := make([]byte, length)
	_, err = io.ReadFull(body, content)
	if err := errors.Join(err, body.Close()); err != nil {
		return nil, fmt.Errorf("get %s: %w", pack.Key, err)
	}
	return content, nil
}

// write verifies the extents of a run and writes them where they belong.
func (f *fetcher) write(ctx context.Context, run fetchRun, first int64, content []byte) error {
	pack := f.manifest.Packs[run.pack]
	for _, p := range run.pieces {
		start := p.extent.Offset - first
		plain, err := f.repo.OpenExtent(ctx, pack, p.extent, content[start:start+int64(p.extent.Length)], p.length)
		if err != nil {
			return fmt.Errorf("frame at byte %d of %s, for byte %d of %s: %w", p.extent.Offset, pack.Key, p.offset,
				f.manifest.Entries[p.file].Path, err)
		}
		if err := writeAt(f.path(p.file), plain, p.offset); err != nil {
			return err
		}
	}
	return nil
}

func writeAt(path string, content []byte, offset int64) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(content, offset)
	return errors.Join(err, file.Close())
}

// syncTrees makes all files and directories below the roots durable, and the names of the roots. Many at a time: the file system commits
// them together.
func syncTrees(roots ...string) error {
	paths := make(chan string)
	var workers sync.WaitGroup
	var mu sync.Mutex // guards errs
	var errs []error
	for range 16 {
		workers.Go(func() {
			for path := range paths {
				if err := syncPath(path); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	var walkErrs []error
	for _, root := range roots {
		walkErrs = append(walkErrs, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && (entry.IsDir() || entry.Type().IsRegular()) {
				paths <- path
			}
			return err
		}))
	}
	close(paths)
	workers.Wait()
	for _, root := range roots {
		errs = append(errs, syncPath(filepath.Dir(root)))
	}
	return errors.Join(append(errs, walkErrs...)...)
}

func syncPath(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}
