package archiver

import (
	"context"
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

func (s *session) noteClock(clock repo.Clock) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock = clock
}

func (s *session) latestClock() repo.Clock {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clock
}

// watch asks Postgres for its clock and whether commits wait for our acknowledgement. It keeps an ordinary connection of its own:
// what the stream says of time is no use, since the time of its messages is taken after the position that they name, and a commit may
// lie between. Without the connection, or without the right to see pg_stat_replication, parts are cut by age as in asynchronous mode.
type watch struct {
	session *session
	conn    *replication.Conn
	warned  bool
}

// look reads the clock first and the position behind it: everything that was flushed, and with it everything that was
// acknowledged, by that time lies before that position. ok is false when nothing could be read.
func (w *watch) look(ctx context.Context) (clock repo.Clock, commitsWait, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, heartbeatInterval)
	defer cancel()
	clock, state, err := w.query(ctx)
	if err == nil {
		return clock, state == "sync" || state == "quorum", true
	}
	w.close()
	if !w.warned && ctx.Err() == nil {
		w.warned = true
		w.session.log.Warn("cannot see the server's clock and whether commits wait for the archive; does the user have pg_monitor?", "error", err)
	}
	return repo.Clock{}, false, false
}

func (w *watch) query(ctx context.Context) (clock repo.Clock, syncState string, err error) {
	if w.conn == nil {
		conn, err := replication.Connect(ctx, replication.ConnectOptions{DSN: w.session.opt.DSN, ApplicationName: w.session.opt.Slot + " watch"})
		if err != nil {
			return clock, "", err
		}
		w.conn = conn
	}
	if clock.Time, err = readClock(ctx, w.conn); err != nil {
		return clock, "", err
	}
	rows, err := w.conn.Query(ctx, "SELECT pg_catalog.pg_current_wal_flush_lsn(), coalesce((SELECT max(sync_state) FROM pg_catalog.pg_stat_replication WHERE application_name = '"+
		w.session.opt.Slot+"'), '')")
	if err != nil {
		return clock, "", err
	}
	clock.LSN, err = pg.ParseLSN(rows[0][0])
	return clock, rows[0][1], err
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

func (w *watch) close() {
	if w.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = w.conn.Close(ctx) // it held nothing that could be lost
	w.conn = nil
}
