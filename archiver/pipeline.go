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

// pipeline turns files into packs: one goroutine reads extents, one for each core checks, hashes and compresses them, one fills packs, a few
// upload. Every channel is bounded and buffers are used again, so what is on its way takes no more memory than memory allows. What is known
// of extents grows with the database: some hundred bytes for each 256 KiB.
type pipeline struct {
	repo   *repo.Repo
	backup string
	memory *memory
	known  *known
	pages  *pageChecks
	since  *comparison
	rate   *rate // of uploads
	ctx    context.Context
	cancel context.CancelCauseFunc

	files  []*repo.File
	report func(BackupProgress)
	shown  time.Time

	extents chan extent // read, to be compressed
	frames  chan extent // compressed, to be packed
	full    chan fullPack

	compressing, packing, uploading sync.WaitGroup
	hashing                         sync.WaitGroup // extents that were read and not hashed yet

	mu       sync.Mutex // guards what follows
	progress BackupProgress
	packs    []repo.Pack
	own      map[repo.Tag]*repo.Extent // those that this backup stores
	twins    []twin
}

// extent is a piece of a file on its way.
type extent struct {
	file   *repo.File
	number int
	target *repo.Extent // where the manifest says what became of it
	plain  []byte
	frame  []byte
	tag    repo.Tag
}

// twin is an extent with the same content as one that this backup stores.
type twin struct{ target, of *repo.Extent }

// fullPack is a pack and what is in it.
type fullPack struct {
	number  int
	builder *repo.PackBuilder
	frames  []repo.Tagged
}

// progressEvery is how often Progress is called.
const progressEvery = 200 * time.Millisecond

func newPipeline(ctx context.Context, opt BackupOptions, backup string, known *known, pages *pageChecks, since *comparison) *pipeline {
	ctx, cancel := context.WithCancelCause(ctx)
	cores := runtime.GOMAXPROCS(0)
	m := newMemory(opt.BufferMax, cores)
	p := &pipeline{repo: opt.Repo, backup: backup, memory: m, known: known, pages: pages, since: since, rate: &rate{limit: opt.RateUpload}, ctx: ctx, cancel: cancel, report: opt.Progress,
		extents: make(chan extent, cap(m.plains)), frames: make(chan extent, cap(m.frames)), full: make(chan fullPack), own: map[repo.Tag]*repo.Extent{}}
	for range cores {
		p.compressing.Go(p.compress)
	}
	p.packing.Go(p.pack)
	for range uploads {
		p.uploading.Go(p.upload)
	}
	return p
}

// finish waits for what is under way. err is what the reader ended with.
func (p *pipeline) finish(err error) error {
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
		return cause
	}
	p.cancel(nil)
	for _, t := range p.twins {
		t.target.Pack, t.target.Offset, t.target.Length = t.of.Pack, t.of.Offset, t.of.Length
	}
	return nil
}

// account says in a backup what it consists of, once all of it has gone through.
func (p *pipeline) account(b *repo.Backup) {
	for _, pack := range p.packs {
		b.StoredBytes += pack.Size
	}
	var referred []repo.Pack
	referred, b.ReferredBytes = p.known.resolve(p.files, len(p.packs))
	b.StoredBytes += b.ReferredBytes
	b.Packs = append(p.packs, referred...)
	for _, f := range p.files {
		b.Bytes += f.Size
	}
}

// add takes over f and reads its content, f.Size bytes.
func (p *pipeline) add(f *repo.File, content io.Reader) error {
	p.begin(f)
	for i := range f.Extents {
		length := int(min(repo.ExtentSize, f.Size-int64(i)*repo.ExtentSize))
		plain, err := take(p.ctx, p.memory.plains, repo.ExtentSize)
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(content, plain[:length]); err != nil {
			return fmt.Errorf("read %s: %w", f.Path, err)
		}
		if err := p.send(f, i, plain[:length]); err != nil {
			return err
		}
	}
	p.show()
	return nil
}

// begin takes over f.
func (p *pipeline) begin(f *repo.File) {
	p.files = append(p.files, f)
	f.Extents = make([]repo.Extent, (f.Size+repo.ExtentSize-1)/repo.ExtentSize)
	p.mu.Lock()
	p.progress.Files++
	p.mu.Unlock()
}

// send passes an extent on, in a buffer of the pool, which it takes over.
func (p *pipeline) send(f *repo.File, number int, plain []byte) error {
	p.hashing.Add(1)
	return p.pass(extent{file: f, number: number, target: &f.Extents[number], plain: plain})
}

// pass passes on an extent that is counted as one that is not hashed yet.
func (p *pipeline) pass(e extent) error {
	select {
	case p.extents <- e:
		return nil
	case <-p.ctx.Done():
		p.hashing.Done()
		return context.Cause(p.ctx)
	}
}

// take makes an extent the same as one of another backup, whose content has length bytes, if it is known where that lies.
func (p *pipeline) take(target *repo.Extent, of repo.Extent, length int) bool {
	place, isKnown := p.known.find(p.repo.TagOf(of.Hash))
	if !isKnown {
		return false
	}
	*target = repo.Extent{Pack: place, Hash: of.Hash, CRC: of.CRC}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.progress.Extents++
	p.progress.Reused++
	p.progress.Bytes += int64(length)
	return true
}

// settle waits until every extent that was read is hashed.
func (p *pipeline) settle() error {
	p.hashing.Wait()
	return context.Cause(p.ctx)
}

func (p *pipeline) show() {
	if p.report == nil || time.Since(p.shown) < progressEvery {
		return
	}
	p.shown = time.Now()
	p.mu.Lock()
	progress := p.progress
	p.mu.Unlock()
	p.report(progress)
}

func (p *pipeline) compress() {
	for e := range p.extents {
		err := p.condense(e)
		if err != nil {
			p.cancel(err)
		}
	}
}

// condense checks and hashes an extent, and compresses it if nobody has it yet.
func (p *pipeline) condense(e extent) error {
	p.pages.inspect(e.file, e.number, e.plain)
	e.target.Hash, e.target.CRC = digests(e.plain)
	p.since.look(&e)
	p.hashing.Done()
	e.tag = p.repo.TagOf(e.target.Hash)
	isKnown := p.refer(&e)
	var err error
	if !isKnown {
		if e.frame, err = take(p.ctx, p.memory.frames, frameSizeMax); err == nil {
			e.frame = p.repo.AppendExtent(e.frame[:0], e.plain)
		}
	}
	p.memory.plains <- e.plain[:0]
	if isKnown || err != nil {
		return err
	}
	e.plain = nil
	select {
	case p.frames <- e:
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
}

// refer lets an extent be found where its content lies already.
func (p *pipeline) refer(e *extent) bool {
	place, isKnown := p.known.find(e.tag)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.progress.Extents++
	p.progress.Bytes += int64(len(e.plain))
	if isKnown {
		e.target.Pack = place
		p.progress.Reused++
		return true
	}
	if of := p.own[e.tag]; of != nil {
		p.twins = append(p.twins, twin{e.target, of})
		p.progress.Reused++
		return true
	}
	p.own[e.tag] = e.target
	return false
}

// pack fills packs in the order in which frames arrive.
func (p *pipeline) pack() {
	next := fullPack{}
	for e := range p.frames {
		if next.builder == nil {
			select {
			case p.memory.packs <- struct{}{}:
			case <-p.ctx.Done():
				p.memory.frames <- e.frame[:0]
				continue
			}
			next.builder = p.repo.NewPack()
			next.builder.Expect(int(p.memory.packSize) + frameSizeMax)
		}
		e.target.Pack, e.target.Length = next.number, len(e.frame)
		e.target.Offset = next.builder.Add(e.frame)
		next.frames = append(next.frames, repo.Tagged{Tag: e.tag, Offset: e.target.Offset, Length: e.target.Length})
		p.memory.frames <- e.frame[:0]
		if next.builder.Size() >= p.memory.packSize {
			p.full <- next
			next = fullPack{number: next.number + 1}
		}
	}
	if next.builder != nil {
		p.full <- next
	}
}

func (p *pipeline) upload() {
	for pack := range p.full {
		if p.ctx.Err() == nil {
			if err := p.store(pack); err != nil {
				p.cancel(err)
			}
		}
		<-p.memory.packs
	}
}

// store puts a pack, and then what is in it: whoever comes after a backup that was interrupted finds by that what it has left.
func (p *pipeline) store(pack fullPack) error {
	if err := p.rate.pass(p.ctx, int(pack.builder.Size())); err != nil {
		return err
	}
	stored, err := p.repo.PutPack(p.ctx, p.backup, pack.number, pack.builder)
	if err != nil {
		return err
	}
	if err := p.repo.PutContents(p.ctx, stored, pack.frames); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.progress.StoredBytes += stored.Size
	for len(p.packs) <= pack.number {
		p.packs = append(p.packs, repo.Pack{})
	}
	p.packs[pack.number] = stored
	return nil
}
