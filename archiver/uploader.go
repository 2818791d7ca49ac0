package archiver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// uploader stores the pieces of one timeline in order: a part for each, and the whole segment when its last byte is there.
type uploader struct {
	repo     *repo.Repo
	log      *slog.Logger
	size     pg.SegmentSize
	timeline pg.Timeline
	stored   func(piece) // called when a piece is durably in the store
	counts   *counters

	open repo.SegmentBuilder
	sent []repo.Part // parts of the open segment

	replaced []repo.Part // parts of whole segments that are still to be removed
	lag      time.Duration
}

// run stores until the queue is closed and empty. It gives up only when ctx ends or the repository holds other content (law 3).
func (u *uploader) run(ctx context.Context, q *queue) error {
	for {
		p, ok, err := q.next(ctx, u.lag)
		if err != nil || !ok {
			return err
		}
		begin := time.Now()
		if err := u.persist(ctx, p, p.Start, func(ctx context.Context) error { return u.store(ctx, p) }); err != nil {
			return err
		}
		took := time.Since(begin)
		u.lag += (took - u.lag) / 4
		u.counts.putSeconds.Store(int64(took))
		u.stored(p)
		if p.Index != nil {
			u.finishSegment(ctx, p)
		}
	}
}

// store puts one piece: as a part, or, when it completes the segment, the whole segment.
func (u *uploader) store(ctx context.Context, p piece) error {
	if p.Index == nil {
		part := repo.Part{Timeline: u.timeline, Start: p.Start, End: p.end()}
		if err := u.repo.PutPart(ctx, u.size, part, p.Clock, p.Content); err != nil {
			return err
		}
		u.open.Add(u.repo, p.Content)
		u.sent = append(u.sent, part)
		u.counts.parts.Add(1)
		return nil
	}
	if u.open.Length() < uint64(u.size) {
		u.open.Add(u.repo, p.Content)
	}
	segment := u.size.Segment(u.timeline, p.Start)
	if err := u.repo.PutSegment(ctx, u.size, segment, p.Clock, &u.open); err != nil {
		return err
	}
	u.counts.segments.Add(1)
	return nil
}

// finishSegment stores the index and removes the parts that the segment has replaced. The segment is safe already: parts that cannot be
// removed now are tried again with the next segment, and what a kill leaves behind is swept when the archiver next starts.
func (u *uploader) finishSegment(ctx context.Context, p piece) {
	segment := u.size.Segment(u.timeline, p.Start)
	err := u.persist(ctx, p, p.Start, func(ctx context.Context) error { return u.repo.PutIndex(ctx, u.size, segment, *p.Index) })
	if err == nil {
		u.replaced = append(u.replaced, u.sent...)
		err = u.removeReplaced(ctx)
	}
	if err != nil {
		u.log.Warn("index or clean-up of a segment was put off", "segment", segment.Name(u.size), "error", err)
	} else {
		u.log.Info("segment archived", "segment", segment.Name(u.size), "parts", len(u.sent), "commits", p.Index.Commits())
	}
	u.open, u.sent = repo.SegmentBuilder{}, nil
}

// removeReplaced removes parts whose segments are whole, as far as the store lets it.
func (u *uploader) removeReplaced(ctx context.Context) error {
	for len(u.replaced) > 0 {
		if err := u.repo.DeletePart(ctx, u.size, u.replaced[0]); err != nil {
			return err
		}
		u.replaced = u.replaced[1:]
	}
	return nil
}

// storePause is how long the archiver waits after the store has refused something through all retries.
const storePause = 2 * time.Second

// persist repeats attempt until it succeeds: WAL is never given up, the slot keeps what follows.
func (u *uploader) persist(ctx context.Context, p piece, at pg.LSN, attempt func(context.Context) error) error {
	for {
		err := attempt(ctx)
		if err == nil {
			u.counts.storeDown.Store(false)
			return nil
		}
		if errors.Is(err, repo.ErrConflict) {
			return fmt.Errorf("archive WAL at %s: %w; is the same repository used by two clusters?", at, err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("archive WAL at %s: %w", at, err)
		}
		u.counts.storeDown.Store(true)
		u.counts.storeFailures.Add(1)
		u.log.Error("the store does not take WAL; Postgres keeps it in the slot", "at", at, "waiting_since", p.Arrived, "error", err)
		timer := time.NewTimer(storePause)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
	}
}
