package archiver

import (
	"context"
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
	if at.Stored != at.Received || clock.LSN != at.Stored {
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
	}
	if err != nil && ctx.Err() == nil {
		s.log.Warn("the clock of an idle server was not stored", "at", clock.LSN, "error", err)
	}
}

// storeClock stores the last known clock when streaming ends and everything before it is stored.
func (s *session) storeClock(ctx context.Context, q *queue) {
	s.mu.Lock()
	clock, tli := s.clock, s.timeline
	s.mu.Unlock()
	if at := q.positions(); clock.LSN == at.Stored && at.Stored == at.Received && !clock.Time.IsZero() {
		s.putClock(ctx, tli, clock, repo.Clock{})
	}
}

// noteClock remembers the server's clock when everything that it had written has been received.
func (s *session) noteClock(received pg.LSN, event replication.Event) (repo.Clock, bool) {
	if event.ServerEnd > received || event.ServerTime.IsZero() {
		return repo.Clock{}, false
	}
	clock := repo.Clock{LSN: received, Time: event.ServerTime}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock = clock
	return clock, true
}

// syncWatch asks Postgres whether commits wait for our acknowledgement. It keeps an ordinary connection of its own; without it, or
// without the right to see pg_stat_replication, parts are cut by age as in asynchronous mode.
type syncWatch struct {
	session *session
	conn    *replication.Conn
	warned  bool
}

func (w *syncWatch) commitsWait(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, heartbeatInterval)
	defer cancel()
	state, err := w.query(ctx)
	if err == nil {
		return state == "sync" || state == "quorum"
	}
	w.close()
	if !w.warned && ctx.Err() == nil {
		w.warned = true
		w.session.log.Warn("cannot see whether commits wait for the archive; does the user have pg_monitor?", "error", err)
	}
	return false
}

func (w *syncWatch) query(ctx context.Context) (string, error) {
	if w.conn == nil {
		conn, err := replication.Connect(ctx, replication.ConnectOptions{DSN: w.session.opt.DSN, ApplicationName: w.session.opt.Slot + " watch"})
		if err != nil {
			return "", err
		}
		w.conn = conn
	}
	rows, err := w.conn.Query(ctx, "SELECT coalesce(max(sync_state), '') FROM pg_catalog.pg_stat_replication WHERE application_name = '"+w.session.opt.Slot+"'")
	if err != nil || len(rows) != 1 {
		return "", err
	}
	return rows[0][0], nil
}

func (w *syncWatch) close() {
	if w.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = w.conn.Close(ctx) // it held nothing that could be lost
	w.conn = nil
}
