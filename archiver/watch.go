package archiver

import (
	"context"
	"fmt"
	"time"

	"pitr/archiver/replication"
	"pitr/internal/pg"
	"pitr/internal/repo"
)

// watch asks Postgres for what the stream does not say: its clock, whether commits wait for us, and how much WAL it keeps for us. It
// has an ordinary connection of its own, which outlasts those of the stream: what the stream says of time is no use, since the time of its
// messages is taken after the position that they name, and a commit may lie between. Without the connection, or without the right to see
// pg_stat_replication, parts are cut by age as in asynchronous mode.
type watch struct {
	archiver *Archiver
	conn     *replication.Conn // to the server that streams
	primary  *replication.Conn // when that is a standby
	blind    bool              // the primary's clock cannot be read, and that was told
	pace     pace
	warned   bool
	told     commitWait
	risk     Risk
}

// sight is what a look has seen.
type sight struct {
	Clock   repo.Clock
	Commits commitWait
	Slot    Slot
	Stream  bool // the walsender that streams to us is on the server that was looked at
}

// runWatch looks every few seconds, and more often when streaming has just begun.
func (a *Archiver) runWatch(ctx context.Context) {
	w := &watch{archiver: a}
	defer w.close()
	for pause := watchPauseMin; ; pause = min(2*pause, heartbeatInterval) {
		s := a.session()
		if seen, ok := w.look(ctx, s.walsender()); ok {
			a.see(seen)
			if seen.Stream {
				s.see(seen)
			} else if s != nil {
				w.close() // with several hosts: what streams is another server, or has gone
			}
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-a.began:
			timer.Stop()
			pause = watchPauseMin / 2
		case <-timer.C:
		}
	}
}

const watchPauseMin = 250 * time.Millisecond

func (a *Archiver) see(seen sight) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen = seen
}

func (a *Archiver) session() *session {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.current
}

// walsender is the process that streams to us; zero while none does.
func (s *session) walsender() uint32 {
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pid
}

// see takes note of what holds for the server that streams to us.
func (s *session) see(seen sight) {
	s.mu.Lock()
	q := s.queue
	s.clock = seen.Clock
	s.offset = time.Since(seen.Clock.Time)
	s.mu.Unlock()
	if q != nil {
		q.setEager(seen.Commits.ForUs)
	}
}

// clockOffset is what our clock is ahead of the server's.
func (s *session) clockOffset() (offset time.Duration, isKnown bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.offset, !s.clock.Time.IsZero()
}

// look reads the clock first and the position behind it: everything that was flushed, and with it everything that was
// acknowledged, by that time lies before that position. ok is false when nothing could be read.
func (w *watch) look(ctx context.Context, walsender uint32) (seen sight, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, heartbeatInterval)
	defer cancel()
	seen, err := w.query(ctx, walsender)
	if err == nil {
		w.tell(seen)
		return seen, true
	}
	w.close()
	if !w.warned && walsender != 0 && ctx.Err() == nil { // before there is a stream there may be no slot
		w.warned = true
		w.archiver.opt.Log.Warn("cannot see the server's clock, its replication slots and whether commits wait for the archive; does the user have pg_monitor?", "error", err)
	}
	return sight{}, false
}

func (w *watch) query(ctx context.Context, walsender uint32) (seen sight, err error) {
	if w.conn == nil {
		opt := replication.ConnectOptions{DSN: w.archiver.opt.DSN, ApplicationName: w.archiver.opt.Slot + " watch", Role: w.archiver.opt.StreamFrom}
		if w.conn, err = replication.Connect(ctx, opt); err != nil {
			return seen, err
		}
	}
	if seen.Clock.Time, err = readClock(ctx, w.conn); err != nil {
		return seen, err
	}
	rows, err := w.conn.Query(ctx, fmt.Sprintf("SELECT "+flushedLSN+", pg_catalog.pg_is_in_recovery(), EXISTS (SELECT FROM pg_catalog.pg_stat_get_wal_senders() WHERE pid = %d)", walsender))
	if err != nil {
		return seen, err
	}
	standby := rows[0][1] == "t"
	seen.Stream = rows[0][2] == "t"
	if seen.Clock.LSN, err = pg.ParseLSN(rows[0][0]); err != nil {
		return seen, err
	}
	flushed := seen.Clock.LSN
	if standby {
		seen.Clock = w.primaryClock(ctx)
	}
	if rows, err = w.conn.Query(ctx, commitQuery(w.archiver.opt.Slot)); err != nil {
		return seen, err
	}
	if seen.Commits, err = parseCommitWait(rows); err != nil {
		return seen, err
	}
	if rows, err = w.conn.Query(ctx, slotQuery(w.archiver.opt.Slot)); err != nil {
		return seen, err
	}
	if seen.Slot, err = parseSlot(rows); err != nil {
		return seen, err
	}
	seen.Slot.Rate = w.pace.note(flushed, time.Now())
	seen.Slot.Risk = seen.Slot.assess()
	return seen, nil
}

// flushedLSN is how far a server has the log: a primary what it has flushed, a standby what it has received or replayed.
const flushedLSN = "CASE WHEN pg_catalog.pg_is_in_recovery() THEN greatest(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn()) " +
	"ELSE pg_catalog.pg_current_wal_flush_lsn() END"

// primaryClock reads clock and position on the primary: what a standby does not have yet may have been committed long ago. Without it
// the zero clock, which says nothing.
func (w *watch) primaryClock(ctx context.Context) repo.Clock {
	clock, err := w.readPrimary(ctx)
	if err != nil {
		closeQuietly(w.primary)
		w.primary = nil
		if !w.blind && ctx.Err() == nil {
			w.archiver.opt.Log.Warn("the primary's clock cannot be read: what the archive holds is known, but not that nothing is missing behind it", "error", err)
		}
		w.blind = true
		return repo.Clock{}
	}
	w.blind = false
	return clock
}

func (w *watch) readPrimary(ctx context.Context) (clock repo.Clock, err error) {
	if w.primary == nil {
		opt := replication.ConnectOptions{DSN: w.archiver.opt.DSN, ApplicationName: w.archiver.opt.Slot + " watch", Role: replication.Primary}
		if w.primary, err = replication.Connect(ctx, opt); err != nil {
			return clock, err
		}
	}
	if clock.Time, err = readClock(ctx, w.primary); err != nil {
		return clock, err
	}
	rows, err := w.primary.Query(ctx, "SELECT pg_catalog.pg_current_wal_flush_lsn()")
	if err != nil {
		return repo.Clock{}, err
	}
	clock.LSN, err = pg.ParseLSN(rows[0][0])
	return clock, err
}

// tell logs what has changed for the worse, or is well again.
func (w *watch) tell(seen sight) {
	log := w.archiver.opt.Log
	if seen.Commits.Stuck && !w.told.Stuck {
		log.Error("commits with synchronous_commit = remote_apply wait for ever: an archive holds WAL, and applies nothing",
			"hint", "use synchronous_commit = on, or let another standby be the synchronous one")
	}
	w.told = seen.Commits
	if seen.Slot.Risk == w.risk {
		return
	}
	args := []any{"risk", seen.Slot.Risk.String(), "wal_status", seen.Slot.Status, "retained_bytes", seen.Slot.Retained}
	if seen.Slot.Safe >= 0 {
		args = append(args, "safe_wal_size", seen.Slot.Safe)
	}
	if left, ok := seen.Slot.Left(); ok {
		args = append(args, "at_this_rate_in", left.Round(time.Second))
	}
	if seen.Slot.Risk > w.risk {
		log.Error("the server may give WAL up before it is archived (max_slot_wal_keep_size)", args...)
	} else {
		log.Info("the slot's WAL is safer again", args...)
	}
	w.risk = seen.Slot.Risk
}

func (w *watch) close() {
	closeQuietly(w.conn)
	closeQuietly(w.primary)
	w.conn, w.primary = nil, nil
}

// closeQuietly closes a connection that holds nothing that could be lost; nil is none.
func closeQuietly(conn *replication.Conn) {
	if conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}
