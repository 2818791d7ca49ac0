package archiver

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"pitr/internal/repo"
)

// pipeline turns files into packs: one goroutine reads extents, one for each core hashes and compresses them, one fills packs, a few
// upload. Every channel is bounded, so memory does not depend on the size of the database.
type pipeline struct {
	opt      BackupOptions
	backup   string
	packSize int64
	ctx      context.Context
	cancel   context.CancelCauseFunc

	files    []*repo.File
	progress BackupProgress
	shown    time.Time

	extents chan extent // read, to be compressed
	frames  chan extent // compressed, to be packed
	full    chan fullPack

	compressing, packing, uploading sync.WaitGroup

	mu    sync.Mutex // guards packs
	packs []repo.Pack
}

// extent is a piece of a file on its way.
type extent struct {
	target *repo.Extent // where the manifest says what became of it
	plain  []byte
	frame  []byte
}

type fullPack struct {
	number  int
	builder *repo.PackBuilder
}

const (
	// uploads are packs under way at the same time.
	uploads = 2
	// packsInMemory is how many packs are held at most: one that is filled, one that waits, and the uploads.
	packsInMemory = uploads + 2
	// progressEvery is how often Progress is called.
	progressEvery = 200 * time.Millisecond
)

func newPipeline(ctx context.Context, opt BackupOptions, backup string) *pipeline {
	ctx, cancel := context.WithCancelCause(ctx)
	cores := runtime.GOMAXPROCS(0)
	p := &pipeline{opt: opt, backup: backup, ctx: ctx, cancel: cancel,
		packSize: min(repo.PackSizeMax, opt.BufferMax/packsInMemory),
		extents:  make(chan extent, 2*cores), frames: make(chan extent, 2*cores), full: make(chan fullPack, 1)}
	for range cores {
		p.compressing.Go(p.compress)
	}
	p.packing.Go(p.pack)
	for range uploads {
		p.uploading.Go(p.upload)
	}
	return p
}

// finish waits for what is under way and returns the packs in the order of their numbers. err is what the reader ended with.
func (p *pipeline) finish(err error) ([]repo.Pack, []*repo.File, error) {
	if err != nil {
		p.cancel(err)
	}
	close(p.extents)
	p.compressing.Wait()
	close(p.frames)
	p.packing.Wait()
	close(p.full)
	p.uploading.Wait()
	if cause := context.Cause(p.ctx); cause != nil {
		return nil, nil, cause
	}
	p.cancel(nil)
	return p.packs, p.files, nil
}

// add takes over f and reads its content, f.Size bytes.
func (p *pipeline) add(f *repo.File, content io.Reader) error {
	p.files = append(p.files, f)
	f.Extents = make([]repo.Extent, (f.Size+repo.ExtentSize-1)/repo.ExtentSize)
	for i := range f.Extents {
		plain := make([]byte, min(repo.ExtentSize, f.Size-int64(i)*repo.ExtentSize))
		if _, err := io.ReadFull(content, plain); err != nil {
			return fmt.Errorf("read %s: %w", f.Path, err)
		}
		if err := p.send(extent{target: &f.Extents[i], plain: plain}); err != nil {
			return err
		}
	}
	p.show(f.Size)
	return nil
}

// unsizedMax bounds what is read as a whole because its size is not announced: the server's manifest, some 150 bytes for each file.
const unsizedMax = 1 << 30

func (p *pipeline) addUnsized(name string, content io.Reader) error {
	all, err := io.ReadAll(io.LimitReader(content, unsizedMax+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if len(all) > unsizedMax {
		return fmt.Errorf("read %s: it has more than %d bytes", name, unsizedMax)
	}
	f := &repo.File{Path: name, Mode: 0o600, Size: int64(len(all)), ModTime: time.Now().UTC().Truncate(time.Second)}
	p.files = append(p.files, f)
	f.Extents = make([]repo.Extent, (f.Size+repo.ExtentSize-1)/repo.ExtentSize)
	for i := range f.Extents {
		start := i * repo.ExtentSize
		if err := p.send(extent{target: &f.Extents[i], plain: all[start:min(start+repo.ExtentSize, len(all))]}); err != nil {
			return err
		}
	}
	return nil
}

func (p *pipeline) send(e extent) error {
	select {
	case p.extents <- e:
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
}

func (p *pipeline) show(bytes int64) {
	p.progress.Files++
	p.progress.Bytes += bytes
	if p.opt.Progress == nil || time.Since(p.shown) < progressEvery {
		return
	}
	p.shown = time.Now()
	p.mu.Lock()
	p.progress.StoredBytes = 0
	for _, pack := range p.packs {
		p.progress.StoredBytes += pack.Size
	}
	p.mu.Unlock()
	p.opt.Progress(p.progress)
}

func (p *pipeline) compress() {
	for e := range p.extents {
		e.target.Hash = repo.DigestOf(e.plain)
		e.frame = p.opt.Repo.CompressExtent(e.plain)
		e.plain = nil
		select {
		case p.frames <- e:
		case <-p.ctx.Done():
		}
	}
}

// pack fills packs in the order in which frames arrive.
func (p *pipeline) pack() {
	next := fullPack{builder: p.opt.Repo.NewPack()}
	flush := func() {
		select {
		case p.full <- next:
		case <-p.ctx.Done():
		}
		next = fullPack{number: next.number + 1, builder: p.opt.Repo.NewPack()}
	}
	for e := range p.frames {
		e.target.Pack, e.target.Length = next.number, len(e.frame)
		e.target.Offset = next.builder.Add(e.frame)
		if next.builder.Size() >= p.packSize {
			flush()
		}
	}
	if next.builder.Size() > 0 && p.ctx.Err() == nil {
		flush()
	}
}

func (p *pipeline) upload() {
	for pack := range p.full {
		if p.ctx.Err() != nil {
			continue
		}
		stored, err := p.opt.Repo.PutPack(p.ctx, p.backup, pack.number, pack.builder)
		if err != nil {
			p.cancel(err)
			continue
		}
		p.note(pack.number, stored)
	}
}

func (p *pipeline) note(number int, stored repo.Pack) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.packs) <= number {
		p.packs = append(p.packs, repo.Pack{})
	}
	p.packs[number] = stored
}
