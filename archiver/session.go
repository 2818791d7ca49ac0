package archiver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"pitr/archiver/replication"
	"pitr/internal/pg"
	"pitr/internal/repo"
)

// session is one connection to the server, from login to its end.
type session struct {
	archiver *Archiver
	opt      Options
	log      *slog.Logger

	conn    *replication.Conn // nil once streaming has taken it over
	system  replication.System
	size    pg.SegmentSize
	history pg.History
	standby bool          // the server is one
	holds   bool          // nothing is acknowledged while the archive is exposed; set before streaming
	nudge   chan struct{} // the position is to be reported at once

	mu       sync.Mutex // guards what follows
	pid      uint32     // of the walsender
	queue    *queue     // of the timeline that is streamed; nil before
	timeline pg.Timeline
	clock    repo.Clock    // the latest reading of the server's
	offset   time.Duration // what our clock was ahead of the server's then
}

func (s *session) close() {
	if s.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.conn.Close(ctx) // it held nothing that could be lost
}

// loginTimeout bounds how long connecting and the commands before streaming may take.
const loginTimeout = 30 * time.Second

// connect logs in, binds the repository to the cluster and stores the history files.
func (s *session) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	if err := s.login(ctx); err != nil {
		return err
	}
	var err error
	if s.system, err = s.conn.IdentifySystem(ctx); err != nil {
		return err
	}
	if s.size, err = s.conn.SegmentSize(ctx); err != nil {
		return err
	}
	if s.standby, err = s.conn.InRecovery(ctx); err != nil {
		return err
	}
	cluster := repo.Cluster{SystemID: s.system.ID, SegmentSize: s.size, Created: time.Now().UTC().Truncate(time.Second)}
	switch err := s.opt.Repo.Bind(ctx, cluster); {
	case errors.Is(err, repo.ErrForeign):
		return fmt.Errorf("%w; point archive.store or cluster at a place of its own", err)
	case err != nil:
		return err
	}
	if s.history, err = s.storeHistory(ctx, s.system.Timeline); err != nil {
		return err
	}
	return s.conn.CreateSlot(ctx, s.opt.Slot)
}

func (s *session) login(ctx context.Context) error {
	conn, err := replication.Connect(ctx, replication.ConnectOptions{DSN: s.opt.DSN, ApplicationName: s.opt.Slot, Replication: true, Role: s.opt.StreamFrom})
	if err != nil {
		return err
	}
	s.conn = conn
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pid = conn.PID()
	return nil
}

// storeHistory stores the history files of a timeline and its ancestors and returns the timeline's descent.
func (s *session) storeHistory(ctx context.Context, tip pg.Timeline) (pg.History, error) {
	if tip == 1 {
		return nil, nil
	}
	content, err := s.conn.TimelineHistory(ctx, tip)
	if err != nil {
		return nil, err
	}
	history, err := pg.ParseHistory(tip, content)
	if err != nil {
		return nil, err
	}
	for _, ancestor := range history {
		if ancestor.Timeline == 1 {
			continue
		}
		older, err := s.conn.TimelineHistory(ctx, ancestor.Timeline)
		if err != nil {
			s.log.Warn("the server has no history file of an ancestor", "timeline", ancestor.Timeline, "error", err)
			continue
		}
		if err := s.opt.Repo.PutHistory(ctx, ancestor.Timeline, older); err != nil {
			return nil, err
		}
	}
	return history, s.opt.Repo.PutHistory(ctx, tip, content)
}

// follow streams one timeline from at until the server leaves it, and returns where the next one is to be streamed from.
func (s *session) follow(ctx context.Context, at position) (position, error) {
	if s.conn == nil {
		if err := s.login(ctx); err != nil {
			return position{}, err
		}
	}
	recv, err := s.newReceiver(ctx, at)
	if err != nil {
		return position{}, err
	}
	if err := s.mindGap(ctx); err != nil {
		return position{}, err
	}
	stream, err := s.conn.StartStream(ctx, replication.StreamOptions{Slot: s.opt.Slot, Timeline: at.Timeline, Start: recv.at, Pause: recv.pause})
	s.conn = nil
	if replication.WALRemoved(err) {
		return s.skipGap(ctx, at, err)
	}
	if err != nil {
		return position{}, s.takeSlot(ctx, err)
	}
	s.log.Info("streaming", "timeline", at.Timeline, "from", at.LSN, "slot", s.opt.Slot)
	end := replication.Event{}
	if err = recv.catchUp(ctx, stream); err == nil {
		end, err = s.run(ctx, stream, recv)
	}
	err = errors.Join(err, closeStream(stream))
	if replication.WALRemoved(err) {
		// Postgres looks for the file only after it has agreed to stream.
		return s.skipGap(ctx, position{at.Timeline, recv.queue.positions().Stored}, err)
	}
	if err != nil {
		return position{}, err
	}
	return s.nextTimeline(ctx, end)
}

func closeStream(stream *replication.Stream) error {
	if err := stream.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close the stream: %w", err)
	}
	return nil
}

// nextTimeline fetches the history of the timeline that follows. It is streamed from the start of the segment in which it begins,
// so that its file is whole: as Postgres's own receivers do.
func (s *session) nextTimeline(ctx context.Context, end replication.Event) (position, error) {
	if err := s.login(ctx); err != nil {
		return position{}, err
	}
	history, err := s.storeHistory(ctx, end.Next)
	if err != nil {
		return position{}, err
	}
	s.history = history
	s.archiver.setWay(way{end.Next, history})
	s.log.Info("the server has switched its timeline", "to", end.Next, "at", end.Switch)
	return position{end.Next, s.size.Start(end.Switch)}, nil
}

// run moves WAL from the stream to the store until the timeline ends, an error occurs, or ctx is cancelled; then what was
// received is still stored, within the shutdown grace.
func (s *session) run(ctx context.Context, stream *replication.Stream, recv *receiver) (replication.Event, error) {
	q := recv.queue
	s.setQueue(q, recv.timeline)
	storing, stopStoring := context.WithCancel(context.WithoutCancel(ctx))
	defer stopStoring()
	stopInterrupt := context.AfterFunc(ctx, func() {
		stream.Interrupt()
		time.AfterFunc(s.opt.ShutdownGrace, stopStoring)
	})
	defer stopInterrupt()

	up := &uploader{repo: s.opt.Repo, log: s.log, size: s.size, timeline: recv.timeline, counts: &s.archiver.counts,
		slots: make(chan struct{}, max(1, s.opt.PutsInFlight)), open: recv.open, stored: func(from, to pg.LSN) {
			q.setStored(from, to)
			s.report(stream, q, false)
		}}
	var tasks sync.WaitGroup
	var uploadErr error
	tasks.Go(func() {
		if uploadErr = up.run(storing, q); uploadErr != nil {
			stopStoring() // the receiver may be waiting for room in a queue that nobody empties any more
			stream.Interrupt()
		}
	})
	beating, stopBeating := context.WithCancel(storing)
	tasks.Go(func() { s.heartbeat(beating, stream, q) })
	tasks.Go(func() { recv.names.run(beating, recv.timeline) })

	end, err := recv.run(storing, stream)
	stopBeating()
	if errors.Is(err, errLetGo) || errors.Is(err, errFull) {
		// The server is let go at once; what was received is still stored, however long the store is away.
		err = errors.Join(err, closeStream(stream))
	}
	q.close()
	tasks.Wait()
	s.storeClock(storing, q)
	if uploadErr != nil {
		err = errors.Join(uploadErr, err)
	}
	return end, err
}

func (s *session) setQueue(q *queue, tli pg.Timeline) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue, s.timeline = q, tli
	select {
	case s.archiver.began <- struct{}{}:
	default:
	}
}

// report tells Postgres how far we are. An error shows with the next Receive.
func (s *session) report(stream *replication.Stream, q *queue, askReply bool) {
	at := q.positions()
	if s.holds && s.archiver.exposed() {
		at.Stored = 0 // InvalidXLogRecPtr: to Postgres a receiver that never says what it has flushed, for which no commit waits
	}
	err := stream.SendStatus(replication.Status{Written: at.Received, Flushed: at.Stored, Now: time.Now(), AskReply: askReply})
	if err != nil {
		s.log.Debug("status was not reported", "error", err)
	}
}

// Intervals of the heartbeat: how often Postgres is told where we are and asked for its clock, and after which time without a change
// an idle server's clock is stored; the latter doubles up to the maximum, so that idleness costs next to no requests.
const (
	heartbeatInterval = 5 * time.Second
	idleClockMin      = time.Minute
	idleClockMax      = time.Hour
)

// heartbeat reports regularly, and notes idleness.
func (s *session) heartbeat(ctx context.Context, stream *replication.Stream, q *queue) {
	idle := idleClock{next: idleClockMin}
	ticker := time.NewTicker(heartbeatInterval)
	defer ticker.Stop()
	for {
		s.report(stream, q, true)
		if clock, tli, due := idle.due(s, q); due {
			s.putClock(ctx, tli, clock, idle.replace(clock))
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-s.nudge:
		}
	}
}
