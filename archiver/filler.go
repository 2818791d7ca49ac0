package archiver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// filler fetches extents of the backup before, and fills with them what the server has not sent. Neighbours are fetched together.
type filler struct {
	repo     *repo.Repo
	manifest *repo.Manifest

	batches chan []hole
	running sync.WaitGroup
}

// hole is an extent of which some blocks have come.
type hole struct {
	file      *repo.File
	number    int
	plain     []byte // in a buffer of the pool
	has       uint32 // a bit for each block that has come
	old       *repo.Extent
	oldLength int // of its content
	oldKept   int // of that, what is not cut off
}

const (
	// fillers are requests under way at the same time.
	fillers = 4
	// batchMax is how many extents are filled with one request at most.
	batchMax = 8
	// fillGapMax is how many bytes that are not needed are read rather than making another request.
	fillGapMax = 64 << 10
)

// start begins to fill what is handed over, for a pipeline.
func (f *filler) start(p *pipeline) {
	f.batches = make(chan []hole)
	for range fillers {
		f.running.Go(func() {
			for batch := range f.batches {
				if err := f.fill(p, batch); err != nil {
					p.cancel(err)
				}
			}
		})
	}
}

// finish waits for what is under way.
func (f *filler) finish() {
	close(f.batches)
	f.running.Wait()
}

// holeBatch collects holes of one file.
type holeBatch struct {
	p      *pipeline
	filler *filler
	holes  []hole
	most   int
}

// begin begins a batch. It never holds so many buffers that none is left to go on with.
func (f *filler) begin(p *pipeline) *holeBatch {
	return &holeBatch{p: p, filler: f, most: max(1, min(batchMax, cap(p.memory.plains)/2))}
}

func (b *holeBatch) add(h hole) error {
	b.p.hashing.Add(1)
	b.holes = append(b.holes, h)
	if len(b.holes) < b.most {
		return nil
	}
	return b.flush()
}

func (b *holeBatch) flush() error {
	if len(b.holes) == 0 {
		return nil
	}
	select {
	case b.filler.batches <- b.holes:
		b.holes = nil
		return nil
	case <-b.p.ctx.Done():
		b.p.hashing.Add(-len(b.holes))
		return context.Cause(b.p.ctx)
	}
}

// fill completes holes and sends them on.
func (f *filler) fill(p *pipeline, holes []hole) error {
	slices.SortStableFunc(holes, func(a, b hole) int { return a.compare(b) })
	for len(holes) > 0 {
		n := 1
		for holes[0].needsOld() && n < len(holes) && holes[n].follows(holes[n-1]) {
			n++
		}
		err := f.fillRun(p.ctx, holes[:n])
		for i, h := range holes {
			if err == nil && i >= n {
				break
			}
			if err == nil {
				err = p.pass(extent{file: h.file, number: h.number, target: &h.file.Extents[h.number], plain: h.plain})
			} else {
				p.hashing.Done()
			}
		}
		if err != nil {
			return err
		}
		holes = holes[n:]
	}
	return nil
}

// needsOld reports whether blocks are missing that the file before has.
func (h hole) needsOld() bool {
	for at := 0; at < min(len(h.plain), h.oldKept); at += pg.PageSize {
		if h.has&(1<<(at/pg.PageSize)) == 0 {
			return true
		}
	}
	return false
}

// compare sorts those that need nothing first, the others by where it lies.
func (h hole) compare(other hole) int {
	if a, b := h.needsOld(), other.needsOld(); !a || !b {
		return cmp.Compare(boolInt(a), boolInt(b))
	}
	return cmp.Or(cmp.Compare(h.old.Pack, other.old.Pack), cmp.Compare(h.old.Offset, other.old.Offset))
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// follows reports whether one request should fetch both.
func (h hole) follows(before hole) bool {
	return h.old.Pack == before.old.Pack && h.old.Offset-before.old.Offset-int64(before.old.Length) <= fillGapMax
}

// fillRun fetches a run of extents of a pack, if it needs them, and completes each hole.
func (f *filler) fillRun(ctx context.Context, holes []hole) error {
	var content []byte
	first := int64(0)
	if holes[0].needsOld() {
		first = holes[0].old.Offset
		end := first
		for _, h := range holes { // a manifest that somebody has made up may have extents overlap
			end = max(end, h.old.Offset+int64(h.old.Length))
		}
		var err error
		if content, err = f.fetch(ctx, f.manifest.Packs[holes[0].old.Pack], first, end-first); err != nil {
			return err
		}
	}
	for _, h := range holes {
		var old []byte
		if h.needsOld() {
			start := h.old.Offset - first
			// What is opened may be overwritten: two holes may want the same frame.
			frame := slices.Clone(content[start : start+int64(h.old.Length)])
			var err error
			if old, err = f.repo.OpenExtent(ctx, f.manifest.Packs[h.old.Pack], *h.old, frame, h.oldLength); err != nil {
				return fmt.Errorf("extent %d of %s in the backup before: %w", h.number, h.file.Path, err)
			}
		}
		h.complete(old[:min(len(old), h.oldKept)])
	}
	return nil
}

// complete puts blocks of the file before, or zeros, where none has come.
func (h hole) complete(old []byte) {
	for at := 0; at < len(h.plain); at += pg.PageSize {
		block := h.plain[at:min(at+pg.PageSize, len(h.plain))]
		if h.has&(1<<(at/pg.PageSize)) != 0 {
			continue
		}
		n := 0
		if at < len(old) {
			n = copy(block, old[at:])
		}
		clear(block[n:])
	}
}

func (f *filler) fetch(ctx context.Context, pack repo.Pack, offset, length int64) ([]byte, error) {
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

// read returns the content of a small file.
func (f *filler) read(ctx context.Context, file *repo.File) ([]byte, error) {
	var all []byte
	for i := range file.Extents {
		e := &file.Extents[i]
		frame, err := f.fetch(ctx, f.manifest.Packs[e.Pack], e.Offset, int64(e.Length))
		if err != nil {
			return nil, err
		}
		plain, err := f.repo.OpenExtent(ctx, f.manifest.Packs[e.Pack], *e, frame, int(min(repo.ExtentSize, file.Size-int64(len(all)))))
		if err != nil {
			return nil, fmt.Errorf("extent %d of %s in the backup before: %w", i, file.Path, err)
		}
		all = append(all, plain...)
	}
	return all, nil
}
