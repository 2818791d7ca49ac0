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
	right    map[int][]bool         // extents that are there already, by file; nil for a new directory
	sparse   func(path string) bool // files of which only the size is wanted; may be nil
	runMax   int64                  // bytes of a request
	total    int64                  // stored bytes that are wanted
	fetched  atomic.Int64           // so far
	progress func(fetched, total int64)
}

// newFetcher divides the memory that is allowed among the requests: each holds the bytes of a run, and little more.
func newFetcher(r *repo.Repo, m *repo.Manifest, opt Options) *fetcher {
	f := &fetcher{repo: r, manifest: m, dir: opt.Dir, progress: opt.Progress, runMax: runSizeMax}
	if opt.BufferMax > 0 {
		f.runMax = min(runSizeMax, max(runSizeMin, opt.BufferMax/int64(max(1, opt.Parallel))-2*repo.ExtentSize))
	}
	if len(opt.Sparse) > 0 {
		f.sparse = func(path string) bool { return isSparse(path, opt.Sparse) }
	}
	return f
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
	// runSizeMax is the largest request, unless less memory is allowed; runSizeMin the least that is then made of it. runGapMax is how many unneeded bytes are read rather than making another request.
	runSizeMax = 8 << 20
	runSizeMin = 1 << 20
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
	pieces := f.pieces()
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
	f.plan(ctx, pieces, runs)
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
		flags, mode := os.O_CREATE|os.O_EXCL|os.O_WRONLY, fs.FileMode(entry.Mode&0o777)|0o600
		if _, there := f.right[i]; there {
			flags = os.O_WRONLY
			if err := os.Chmod(f.path(i), mode); err != nil {
				return err
			}
		}
		file, err := os.OpenFile(f.path(i), flags, mode)
		if err != nil {
			return err
		}
		if err := errors.Join(file.Truncate(entry.Size), file.Close()); err != nil {
			return err
		}
	}
	return nil
}

// pieces are the extents that have to be fetched, by pack.
func (f *fetcher) pieces() [][]piece {
	byPack := make([][]piece, len(f.manifest.Packs))
	for i, entry := range f.manifest.Entries {
		if skipped[entry.Path] || f.isSparse(entry.Path) {
			continue
		}
		right := f.right[i]
		for n, extent := range entry.Extents {
			if n < len(right) && right[n] {
				continue
			}
			f.total += int64(extent.Length)
			offset := int64(n) * repo.ExtentSize
			p := piece{extent: extent, file: i, offset: offset, length: int(min(repo.ExtentSize, entry.Size-offset))}
			byPack[extent.Pack] = append(byPack[extent.Pack], p)
		}
	}
	return byPack
}

func (f *fetcher) isSparse(path string) bool { return f.sparse != nil && f.sparse(path) }

// plan sorts the extents of each pack by offset and sends runs of them.
func (f *fetcher) plan(ctx context.Context, byPack [][]piece, runs chan<- fetchRun) {
	for pack, pieces := range byPack {
		slices.SortFunc(pieces, func(a, b piece) int { return int(a.extent.Offset - b.extent.Offset) })
		for len(pieces) > 0 {
			n := runLength(pieces, f.runMax)
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
func runLength(pieces []piece, runMax int64) int {
	first := pieces[0].extent.Offset
	for n := 1; n < len(pieces); n++ {
		before, next := pieces[n-1].extent, pieces[n].extent
		gap := next.Offset - before.Offset - int64(before.Length)
		if gap > runGapMax || next.Offset+int64(next.Length)-first > runMax {
			return n
		}
	}
	return len(pieces)
}

// fetchAttempts is how often a run is asked for whose bytes break off or are damaged on the way.
const fetchAttempts = 4

func (f *fetcher) fetch(ctx context.Context, run fetchRun) error {
	first := run.pieces[0].extent.Offset
	end := first
	for _, p := range run.pieces { // a manifest that somebody has made up may have extents overlap
		end = max(end, p.extent.Offset+int64(p.extent.Length))
	}
	length := end - first
	pack := f.manifest.Packs[run.pack]
	var content []byte
	var err error
	var found error // by the attempt before
	for attempt := range max(fetchAttempts, 1+f.repo.Stores()) {
		if content, err = f.read(ctx, f.repo.Attempt(attempt), pack, first, length); err == nil {
			err = f.write(ctx, run, first, content)
		}
		if err == nil {
			f.repo.Recovered(pack, found, attempt)
			break
		}
		if ctx.Err() != nil || attempt == 0 && errors.Is(err, repo.ErrNotExist) {
			break
		}
		if found == nil || errors.Is(err, repo.ErrDamaged) {
			found = err
		}
	}
	if errors.Is(found, repo.ErrDamaged) && err != nil {
		err = found // of all that the stores said, what an operator must know
	}
	if err != nil {
		return err
	}
	if done := f.fetched.Add(length); f.progress != nil {
		f.progress(done, f.total)
	}
	return nil
}

func (f *fetcher) read(ctx context.Context, from *repo.Repo, pack repo.Pack, offset, length int64) ([]byte, error) {
	body, err := from.PackReader(ctx, pack, offset, length)
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

// readExtent returns the plain bytes of one extent of a file.
func readExtent(ctx context.Context, r *repo.Repo, m *repo.Manifest, f *repo.File, n int) ([]byte, error) {
	extent, pack := f.Extents[n], m.Packs[f.Extents[n].Pack]
	one := &fetcher{repo: r, manifest: m}
	frame, err := one.read(ctx, r, pack, extent.Offset, int64(extent.Length))
	if err != nil {
		return nil, err
	}
	return r.OpenExtent(ctx, pack, extent, frame, int(min(repo.ExtentSize, f.Size-int64(n)*repo.ExtentSize)))
}

// write verifies the extents of a run and writes them where they belong. Neighbours mostly belong to one file.
func (f *fetcher) write(ctx context.Context, run fetchRun, first int64, content []byte) (err error) {
	pack := f.manifest.Packs[run.pack]
	var file *os.File
	open := -1
	closeFile := func() error {
		if file == nil {
			return nil
		}
		return file.Close()
	}
	for _, p := range run.pieces {
		start := p.extent.Offset - first
		plain, err := f.repo.OpenExtent(ctx, pack, p.extent, content[start:start+int64(p.extent.Length)], p.length)
		if err != nil {
			err = fmt.Errorf("frame at byte %d of %s, for byte %d of %s: %w", p.extent.Offset, pack.Key, p.offset, f.manifest.Entries[p.file].Path, err)
			return errors.Join(err, closeFile())
		}
		if p.file != open {
			if err := closeFile(); err != nil {
				return err
			}
			if file, err = os.OpenFile(f.path(p.file), os.O_WRONLY, 0); err != nil {
				return err
			}
			open = p.file
		}
		if _, err := file.WriteAt(plain, p.offset); err != nil {
			return errors.Join(err, closeFile())
		}
	}
	return closeFile()
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
