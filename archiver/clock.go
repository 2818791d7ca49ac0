package archiver

import (
	"context"
	"errors"
	"strconv"
	"time"

	"pitr/archiver/replication"
	"pitr/internal/pg"
	"pitr/internal/repo"
)

// idleClock decides when an idle server's clock is stored. Without it nobody could tell later whether an hour without WAL was idle
// or not archived.
type idleClock struct {
	at   pg.LSN        // the position of the last decision
	from time.Time     // the server's clock when it was first seen there
	next time.Duration // how long idleness must last until the clock is stored
	last repo.Clock    // stored for the same position
}

// due returns the clock to store, if it is time.
func (i *idleClock) due(s *session, q *queue) (repo.Clock, pg.Timeline, bool) {
	s.mu.Lock()
	clock, tli := s.clock, s.timeline
	s.mu.Unlock()
	at := q.positions()
	if at.Stored != at.Received || clock.LSN != at.Stored || clock.Time.IsZero() {
		return repo.Clock{}, 0, false
	}
	if clock.LSN != i.at {
		*i = idleClock{at: clock.LSN, from: clock.Time, next: idleClockMin}
	}
	return clock, tli, clock.Time.Sub(i.from) >= i.next
}

// replace notes that clock is being stored and returns the one that it replaces; zero when there is none.
func (i *idleClock) replace(clock repo.Clock) (old repo.Clock) {
	old, i.last = i.last, clock
	i.next = min(i.next*2, idleClockMax)
	i.from = clock.Time
	return old
}

// putClock stores a clock and removes the one that it replaces. It is retried with the next one.
func (s *session) putClock(ctx context.Context, tli pg.Timeline, clock, old repo.Clock) {
	err := s.opt.Repo.PutClock(ctx, tli, clock)
	if err == nil && !old.Time.IsZero() {
		err = s.opt.Repo.DeleteClock(ctx, tli, old)
		if errors.Is(err, repo.ErrDenied) {
			err = nil // expiry removes it
		}
	}
	if err != nil && ctx.Err() == nil {
		s.log.Warn("the clock of an idle server was not stored", "at", clock.LSN, "error", err)
	}
}

// storeClock stores the last reading when streaming ends, if what it speaks of is stored.
func (s *session) storeClock(ctx context.Context, q *queue) {
	s.mu.Lock()
	clock, tli := s.clock, s.timeline
	s.mu.Unlock()
	if at := q.positions(); clock.LSN <= at.Stored && !clock.Time.IsZero() {
		s.putClock(ctx, tli, clock, repo.Clock{})
	}
}

func (s *session) latestClock() repo.Clock {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clock
}

// readClock asks the server for its time.
func readClock(ctx context.Context, conn *replication.Conn) (time.Time, error) {
	rows, err := conn.Query(ctx, "SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint")
	if err != nil {
		return time.Time{}, err
	}
	micros, err := strconv.ParseInt(rows[0][0], 10, 64)
	return time.UnixMicro(micros).UTC(), err
}
