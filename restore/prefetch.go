package restore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// PrefetchOptions says how far ahead of a recovery WAL is brought.
type PrefetchOptions struct {
	Data     string // the data directory that is being recovered
	Until    pg.LSN // what begins at or behind it is not needed; zero: not known
	Max      int64  // bytes of the spool; restore.prefetch_max
	Parallel int    // requests at a time
	Log      *slog.Logger
}

// Times of a prefetcher.
const (
	prefetchPoll  = 2 * time.Millisecond   // how often it looks whether a segment was taken
	recoveryCheck = 100 * time.Millisecond // and whether the recovery still goes on
	prefetchPause = 2 * time.Second        // after trouble with the store or the disk
)

// prefetchReserve is what a spool leaves free of the file system: recovery needs room of its own.
const prefetchReserve = 256 << 20

// prefetcher keeps a spool filled. It decides nothing: what it cannot bring, `wal fetch` asks of the archive itself, and says what that means.
type prefetcher struct {
	repo  *repo.Repo
	opt   PrefetchOptions
	spool Spool
	size  pg.SegmentSize
	slots int // segments that the spool may hold

	want    string       // as it was last seen
	window  []pg.Segment // in the spool or on their way, in order
	next    pg.Segment
	end     bool      // the next one is not there as a whole, or not needed
	pause   time.Time // nothing is begun before
	flying  map[pg.Segment]bool
	results chan brought
	buffers chan []byte // as many as are decoded at a time
}

type brought struct {
	segment pg.Segment
	err     error
}

// Prefetch brings WAL ahead of a recovery until the recovery ends. It returns at once when another process does so already.
func Prefetch(ctx context.Context, r *repo.Repo, opt PrefetchOptions) error {
	spool, ok := spoolIn(opt.Data)
	if !ok {
		return nil // the recovery has ended meanwhile
	}
	lock, ok, err := spool.claim(ctx)
	if err != nil {
		return fmt.Errorf("prefetch WAL: %w", err)
	}
	if !ok {
		return nil
	}
	cluster, err := r.Cluster(ctx)
	if err == nil {
		p := &prefetcher{repo: r, opt: opt, spool: spool, size: cluster.SegmentSize, flying: map[pg.Segment]bool{}}
		p.slots = int(opt.Max / int64(p.size))
		err = p.run(ctx)
	}
	if ctx.Err() != nil {
		err = nil // it was told to stop
	}
	// The lock goes with the directory, so that nobody finds a spool that is being removed.
	if err := errors.Join(err, os.RemoveAll(spool.dir), lock.Close()); err != nil {
		return fmt.Errorf("prefetch WAL: %w", err)
	}
	return nil
}

func (p *prefetcher) run(ctx context.Context) error {
	if p.slots < 2 {
		return nil // one would always be on its way
	}
	ctx, cancel := context.WithCancel(ctx)
	p.results = make(chan brought, p.slots)
	p.buffers = make(chan []byte, min(p.slots, runtime.GOMAXPROCS(0)+1))
	for range cap(p.buffers) {
		p.buffers <- nil
	}
	defer func() {
		cancel()
		for range p.flying {
			<-p.results
		}
	}()
	if err := p.sweep(); err != nil {
		return err
	}
	tick, check := time.NewTicker(prefetchPoll), time.NewTicker(recoveryCheck)
	defer tick.Stop()
	defer check.Stop()
	for {
		if err := p.turn(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-check.C:
			if !p.spool.recovering() {
				return nil
			}
		case <-tick.C:
		case b := <-p.results:
			p.land(b)
		}
	}
}

// sweep removes what an earlier prefetcher has left behind, and spools of earlier boots. What it has finished is as good as new, but where it
// stood is not known.
func (p *prefetcher) sweep() error {
	spools, err := filepath.Glob(filepath.Join(escapeGlob(p.spool.data), spoolPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range spools {
		if dir != p.spool.dir {
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
		}
	}
	entries, err := os.ReadDir(p.spool.dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if name := entry.Name(); name != spoolWant && name != spoolLock {
			if err := removeIfThere(filepath.Join(p.spool.dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// turn sees what was taken and wanted, and begins what there is room for.
func (p *prefetcher) turn(ctx context.Context) error {
	if err := p.follow(); err != nil {
		return err
	}
	for len(p.window) > 0 && !p.flying[p.window[0]] && !p.has(p.window[0]) {
		p.window = p.window[1:]
	}
	for p.want != "" && !p.end && len(p.window) < p.slots && len(p.flying) < max(1, p.opt.Parallel) && time.Now().After(p.pause) {
		if p.opt.Until != 0 && p.next.Start(p.size) >= p.opt.Until {
			p.end = true
			return nil
		}
		if !p.room() {
			p.pause = time.Now().Add(prefetchPause)
			return nil
		}
		segment := p.next
		if p.flying[segment] {
			return nil // it was begun when it was not needed in the end; two must not write one file
		}
		p.window, p.next, p.flying[segment] = append(p.window, segment), segment.Next(), true
		go func() { p.results <- brought{segment, p.bring(ctx, segment)} }()
	}
	return nil
}

// follow goes where recovery is: it has asked for a segment that was not in the spool, so that the next one is wanted behind it.
func (p *prefetcher) follow() error {
	want, err := p.spool.wanted()
	if err != nil || want == "" {
		return err
	}
	segment, err := pg.ParseSegmentName(want, p.size)
	if err != nil {
		return fmt.Errorf("follow the recovery: %w", err) // `wal fetch` writes only names that it has read
	}
	if want == p.want {
		return nil
	}
	p.want, p.end = want, false
	next := segment.Next()
	keep := len(p.window) > 0 && p.window[0].Timeline == next.Timeline && p.window[0].Number <= next.Number && next.Number <= p.next.Number
	for len(p.window) > 0 && (!keep || p.window[0].Number < next.Number) {
		if err := removeIfThere(p.path(p.window[0])); err != nil {
			return err
		}
		p.window = p.window[1:]
	}
	if !keep {
		p.next = next
	}
	return nil
}

func (p *prefetcher) path(segment pg.Segment) string {
	return filepath.Join(p.spool.dir, segment.Name(p.size))
}

func (p *prefetcher) has(segment pg.Segment) bool {
	_, err := os.Stat(p.path(segment))
	return err == nil
}

// room reports whether the file system has room for one more than the reserve.
func (p *prefetcher) room() bool {
	var st syscall.Statfs_t
	if err := syscall.Statfs(p.spool.dir, &st); err != nil {
		return false
	}
	return int64(st.Bavail)*st.Bsize >= prefetchReserve+int64(p.size)*int64(len(p.flying)+1)
}

func (p *prefetcher) bring(ctx context.Context, segment pg.Segment) error {
	var buf []byte
	held := false
	defer func() {
		if held {
			p.buffers <- buf
		}
	}()
	return p.spool.put(ctx, segment.Name(p.size), func(ctx context.Context) ([]byte, error) {
		stored, err := p.repo.GetSegment(ctx, p.size, segment)
		if err != nil {
			return nil, err
		}
		buf, held = <-p.buffers, true
		if buf == nil {
			buf = make([]byte, 0, p.size)
		}
		return stored.Plain(ctx, buf)
	})
}

// land takes note of what has become of a segment.
func (p *prefetcher) land(b brought) {
	delete(p.flying, b.segment)
	at := -1
	for i, segment := range p.window {
		if segment == b.segment {
			at = i
		}
	}
	switch {
	case at < 0 && b.err == nil:
		if err := removeIfThere(p.path(b.segment)); err != nil { // recovery has gone elsewhere meanwhile
			p.opt.Log.Warn("a segment was not removed from the spool", "error", err)
		}
	case b.err == nil || at < 0:
	default:
		// What lies behind it is of no use before it.
		p.window, p.next = p.window[:at], b.segment
		if p.end = errors.Is(b.err, repo.ErrNotExist); !p.end {
			p.pause = time.Now().Add(prefetchPause)
			p.opt.Log.Warn("a segment was not fetched ahead", "segment", b.segment.Name(p.size), "error", strings.TrimSpace(b.err.Error()))
		}
	}
}
