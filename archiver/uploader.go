package archiver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// uploader stores the pieces of one timeline. Several puts are in flight at a time, so that a commit need not wait for the put before its
// own; what is acknowledged is the prefix without a gap. A segment's first part is alone in flight: whatever is killed when, the log in the
// store has no hole but within the parts of its last segment. Whole segments follow one another.
type uploader struct {
	repo     *repo.Repo
	log      *slog.Logger
	size     pg.SegmentSize
	timeline pg.Timeline
	stored   func(from, to pg.LSN) // called when what lies between is durably in the store
	counts   *counters
	slots    chan struct{} // as many as there may be puts in flight

	open     *stretch
	segment  uint64 // of the last put
	begun    bool   // there was one
	flights  sync.WaitGroup
	lag      atomic.Int64 // nanoseconds that a put takes, smoothed
	replaced []repo.Part  // parts that are in larger objects, still to be removed; the finisher's

	// mu guards err, the first that ends the uploader.
	mu   sync.Mutex
	err  error
	stop context.CancelFunc
}

// stretch is as much WAL as is put together to one object: see repo.Stretch.
type stretch struct {
	built   repo.StretchBuilder
	parts   []repo.Part
	flights sync.WaitGroup
	last    piece // completes it
	skipped bool  // a piece was not put by itself: the whole stretch is
	stored  bool  // as one object, by a flight
}

// run stores until the queue is closed and empty. It gives up only when ctx ends or the repository holds other content (law 3).
func (u *uploader) run(ctx context.Context, q *queue) error {
	ctx, u.stop = context.WithCancel(ctx)
	defer u.stop()
	completed := make(chan *stretch, 1)
	var finisher sync.WaitGroup
	finisher.Go(func() {
		for s := range completed {
			u.finish(ctx, s)
		}
	})
	err := u.dispatch(ctx, q, completed)
	u.flights.Wait()
	close(completed)
	finisher.Wait()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err != nil {
		return u.err
	}
	return err
}

func (u *uploader) fail(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err == nil {
		u.err = err
	}
	u.stop()
}

// dispatch starts a put for each piece, and hands on the stretches that are complete.
func (u *uploader) dispatch(ctx context.Context, q *queue, completed chan<- *stretch) error {
	for {
		select {
		case u.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		p, ok, err := q.next(ctx, time.Duration(u.lag.Load()))
		if err != nil || !ok {
			return err
		}
		u.launch(ctx, q, p)
		if !p.Ends {
			continue
		}
		select {
		case completed <- u.open:
			u.open = &stretch{}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// launch puts one piece: as a part, or, when it completes a stretch and no commit waits for it, with all of the stretch at once. A piece whose stretch
// is complete already is not put by itself, and then none is that follows it in the stretch: commits may begin to wait in between.
func (u *uploader) launch(ctx context.Context, q *queue, p piece) {
	s, from := u.open, p.Start
	compress := u.repo.Pack
	if !p.Eager && (p.Ends || p.Followed) {
		compress = u.repo.Compress
	}
	frame := compress(p.Content)
	s.built.Add(p.Content, frame)
	q.reuse(p.Content) // what is on its way is the compressed form
	p.Content = nil
	if p.Followed && (!p.Eager || s.skipped) {
		s.skipped = true
		<-u.slots
		return
	}
	part := repo.Part{Timeline: u.timeline, Start: p.Start, End: p.End}
	put := func(ctx context.Context) error { return u.repo.PutPart(ctx, u.size, part, p.Clock, frame) }
	count := &u.counts.parts
	if p.Ends {
		s.last = p
	}
	whole := p.Ends && (!p.Eager || s.skipped || part == u.whole(s))
	if whole {
		s.stored, from, count = true, u.whole(s).Start, &u.counts.stretches
		put = func(ctx context.Context) error { return u.repo.PutStretch(ctx, u.size, u.whole(s), p.Clock, &s.built) }
	} else {
		s.parts = append(s.parts, part)
	}
	begins := u.begin(p.Start)
	s.flights.Add(1)
	u.flights.Go(func() {
		defer func() { <-u.slots }()
		defer s.flights.Done()
		begin := time.Now()
		if err := u.persist(ctx, p, put); err != nil {
			u.fail(err)
			return
		}
		u.took(time.Since(begin))
		count.Add(1)
		u.stored(from, p.End)
	})
	if begins && (!whole || repo.Stretch(u.size) < pg.LSN(u.size)) {
		u.flights.Wait()
	}
}

// begin waits for everything before the first put of a segment, so that no segment is stored before the ones that it follows.
func (u *uploader) begin(at pg.LSN) bool {
	number := u.size.Segment(u.timeline, at).Number
	if u.begun && number == u.segment {
		return false
	}
	u.flights.Wait()
	u.begun, u.segment = true, number
	return true
}

// took notes how long a put has taken.
func (u *uploader) took(d time.Duration) {
	lag := u.lag.Load()
	u.lag.Store(lag + (int64(d)-lag)/4)
	u.counts.putSeconds.Store(int64(d))
}

// whole is the stretch that its last piece has completed.
func (u *uploader) whole(s *stretch) repo.Part {
	end := s.last.End
	return repo.Part{Timeline: u.timeline, Start: end - repo.Stretch(u.size), End: end}
}

// finish puts a stretch together, stores the index of a segment that is complete, and removes the parts that are in larger objects
// now. All of the WAL is safe already: parts that cannot be removed now are tried again with the next stretch, and what a kill
// leaves behind is swept later: Sweep.
func (u *uploader) finish(ctx context.Context, s *stretch) {
	s.flights.Wait()
	if ctx.Err() != nil {
		return
	}
	whole, p := u.whole(s), s.last
	var err error
	if !s.stored {
		err = u.persist(ctx, p, func(ctx context.Context) error { return u.repo.PutStretch(ctx, u.size, whole, p.Clock, &s.built) })
		if err == nil {
			u.counts.stretches.Add(1)
		}
	}
	segment := u.size.Segment(u.timeline, whole.Start)
	if err == nil && p.Index != nil {
		err = u.persist(ctx, p, func(ctx context.Context) error { return u.repo.PutIndex(ctx, u.size, segment, *p.Index) })
	}
	if errors.Is(err, repo.ErrConflict) || errors.Is(err, repo.ErrIncomparable) {
		u.fail(err)
		return
	}
	if err == nil {
		u.replace(whole, s.parts)
		err = u.removeReplaced(ctx)
	}
	switch {
	case err != nil:
		u.log.Warn("index or clean-up of a segment was put off", "segment", segment.Name(u.size), "error", err)
	case p.Index != nil:
		u.counts.segments.Add(1)
		u.log.Info("segment archived", "segment", segment.Name(u.size), "parts", len(s.parts), "commits", p.Index.Commits())
	}
}

// replacedMax bounds the parts that are still to be removed. Those beyond it are left to the sweep.
const replacedMax = 10_000

// replace notes parts to be removed: only such as lie in what is there as one object.
func (u *uploader) replace(whole repo.Part, parts []repo.Part) {
	for _, part := range parts {
		if whole.Start <= part.Start && part.End <= whole.End && part != whole && len(u.replaced) < replacedMax {
			u.replaced = append(u.replaced, part)
		}
	}
}

// removeReplaced removes parts that are in larger objects, as far as the store lets it.
func (u *uploader) removeReplaced(ctx context.Context) error {
	for len(u.replaced) > 0 {
		err := u.repo.DeletePart(ctx, u.size, u.replaced[0])
		if err != nil && !errors.Is(err, repo.ErrDenied) && !errors.Is(err, repo.ErrLocked) { // those are left to expiry
			return err
		}
		u.replaced = u.replaced[1:]
	}
	return nil
}

// storePause is how long the archiver waits after the store has refused something through all retries.
const storePause = 2 * time.Second

// persist repeats attempt until it succeeds: WAL is never given up, the slot keeps what follows.
func (u *uploader) persist(ctx context.Context, p piece, attempt func(context.Context) error) error {
	for {
		err := attempt(ctx)
		if err == nil {
			u.counts.storeDown.Store(false)
			return nil
		}
		if errors.Is(err, repo.ErrConflict) {
			return fmt.Errorf("archive WAL at %s: %w; is the same repository used by two clusters?", p.Start, err)
		}
		if errors.Is(err, repo.ErrIncomparable) {
			return fmt.Errorf("archive WAL at %s: %w", p.Start, err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("archive WAL at %s: %w", p.Start, err)
		}
		u.counts.storeDown.Store(true)
		u.counts.storeFailures.Add(1)
		u.log.Error("the store does not take WAL; Postgres keeps it in the slot", "at", p.Start, "waiting_since", p.Arrived, "error", err)
		timer := time.NewTimer(storePause)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
	}
}
