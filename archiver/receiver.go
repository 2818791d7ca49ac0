package archiver

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"pitr/archiver/replication"
	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// receiver checks what the stream brings, indexes it and hands it to the queue, in this order: nothing that was not checked is
// ever stored or acknowledged (law 2).
type receiver struct {
	session   *session
	timeline  pg.Timeline
	size      pg.SegmentSize
	at        pg.LSN // of the next byte
	serverEnd pg.LSN // how far the server had its log when it sent the last message
	decoder   *wal.Decoder
	index     repo.IndexBuilder
	queue     *queue
	names     *cataloguer
	clock     repo.Clock // the latest reading of the server's that speaks of WAL that we have

	behind bool       // what arrives may have been written long ago: see backlog
	since  time.Time  // while behind: what was written before has arrived
	looked repo.Clock // the reading of the server's clock when we fell behind

	askedFor      pg.LSN      // how far we had received when the server asked for a reply that it has not got yet
	patience      *time.Timer // runs out when that is not stored soon
	outOfPatience atomic.Bool

	resume pg.LSN   // where what is new begins
	open   *stretch // what the repository holds of the one in which that is

	again      *catchUp // nil: what is stored was read back
	incomplete bool     // the index of the first segment lacks a record
}

// patienceMin is the least time for which a full buffer holds up the stream before the server is let go.
const patienceMin = time.Second

// serverPatience is how long a server that asks how far we are waits for what it has sent to be stored, before it is let go: mostly it is
// shutting down. What was received is stored all the same, as soon as the store takes it.
const serverPatience = 600 * time.Millisecond

// newReceiver prepares to go on at a position: what the repository holds of the open segment is read back, so that the record that goes
// on can be checked and the segment's index is complete. An index that a killed archiver could not write any more is made up for.
func (s *session) newReceiver(ctx context.Context, at position) (*receiver, error) {
	r := &receiver{session: s, timeline: at.Timeline, size: s.size, at: at.LSN, resume: at.LSN, open: &stretch{}, names: newCataloguer(s), behind: true, since: s.archiver.lastContact()}
	r.index.OnEnd = r.names.noteDDL
	r.queue = newQueue(queueOptions{Start: at.LSN, SegmentSize: s.size, FlushInterval: s.opt.FlushInterval,
		PartSizeMax: s.opt.PartSizeMax, SizeMax: s.opt.BufferMax, Patience: max(s.opt.ShutdownGrace, patienceMin)})
	inv, err := s.opt.Repo.Inventory(ctx, at.Timeline, s.size, 0)
	if err != nil {
		return nil, err
	}
	err = repo.ErrNoIdentity
	if !s.opt.Repo.Encrypts() {
		err = r.readBack(ctx, inv)
	}
	if errors.Is(err, repo.ErrNoIdentity) {
		r.decoder, r.index, r.open = nil, repo.IndexBuilder{OnEnd: r.index.OnEnd}, &stretch{}
		err = s.resumeByStreaming(ctx, r, inv)
	}
	if err != nil {
		return nil, fmt.Errorf("resume at %s: %w", at.LSN, err)
	}
	// What lies behind a hole belongs to this stretch, or to a later one, which it must outlive.
	for _, part := range inv.Parts[uint64(at.LSN)/uint64(s.size)] {
		if inStretch := part.Start >= r.openStart() && part.End <= r.openStart()+repo.Stretch(s.size); inStretch && r.again.mayReplace(part) {
			r.open.parts = append(r.open.parts, part)
		}
	}
	return r, nil
}

// readBack feeds the decoder with what is stored of the open segment.
func (r *receiver) readBack(ctx context.Context, inv *repo.Inventory) error {
	first, from, last, err := r.session.decodeFrom(ctx, inv, r.size.Segment(r.timeline, r.at))
	if err != nil {
		return err
	}
	r.decode(first, from, last)
	return r.reread(ctx, first, from)
}

// decode begins to decode at a page; what ends before first is not for our indexes.
func (r *receiver) decode(first, from, last pg.LSN) {
	r.decoder = wal.NewDecoder(wal.Options{Start: from, SegmentSize: r.size, SystemID: r.session.system.ID, Timeline: r.timeline, LastRecord: last},
		func(record *wal.Record) error {
			if record.End <= first {
				return nil // it ended in a segment whose index has it
			}
			return r.index.Add(record)
		})
}

// decodeFrom finds the first segment, up to the open one, that needs an index; where decoding has to begin so that its first record is
// whole; and the start of the record before that, if it is known.
func (s *session) decodeFrom(ctx context.Context, inv *repo.Inventory, open pg.Segment) (first, from, last pg.LSN, err error) {
	for segment := open; ; segment.Number-- {
		first = segment.Start(s.size)
		if segment.Number == 0 || !inv.Complete(segment.Number-1) {
			return first, first, 0, nil // the archive, or the timeline, begins here
		}
		before := pg.Segment{Timeline: segment.Timeline, Number: segment.Number - 1}
		index, err := s.opt.Repo.ReadIndex(ctx, s.size, before)
		switch {
		case errors.Is(err, repo.ErrNotExist):
			continue
		case err != nil:
			return 0, 0, 0, err
		case index.Unfinished != 0:
			return first, index.Unfinished &^ (wal.PageSize - 1), 0, nil
		default:
			return first, first, index.LastRecord, nil
		}
	}
}

// reread feeds the decoder with stored WAL up to where the stream goes on, and stores the indexes that are missing from first on.
func (r *receiver) reread(ctx context.Context, first, from pg.LSN) error {
	rp := r.session.opt.Repo
	for from < r.at {
		segment := r.size.Segment(r.timeline, from)
		begin := from
		err := rp.VisitSegment(ctx, r.size, segment, func(at pg.LSN, content []byte) error {
			end := min(at+pg.LSN(len(content)), r.at)
			r.keep(at, content[:max(end, at)-at])
			if end <= from {
				return nil
			}
			_, err := r.decoder.Write(content[from-at : end-at])
			from = end
			return err
		})
		if err != nil {
			return err
		}
		if from == begin {
			return fmt.Errorf("the repository lacks WAL at %s", from)
		}
		if from < segment.End(r.size) || segment.Start(r.size) < first {
			continue
		}
		if err := rp.PutIndex(ctx, r.size, segment, r.index.Finish(segment, r.size, r.decoder.UnfinishedRecord())); err != nil {
			return err
		}
	}
	return nil
}

// openStart is where the stretch begins in which what is new begins.
func (r *receiver) openStart() pg.LSN { return r.resume - r.resume%repo.Stretch(r.size) }

// keep collects what the repository holds of that stretch.
func (r *receiver) keep(at pg.LSN, content []byte) {
	begin := r.openStart()
	if end := at + pg.LSN(len(content)); end > begin {
		content = content[max(begin, at)-at:]
		r.open.built.Add(content, r.session.opt.Repo.Compress(content))
	}
}

// run receives until the timeline ends or the stream does.
func (r *receiver) run(ctx context.Context, stream *replication.Stream) (replication.Event, error) {
	defer r.stopPatience()
	for {
		event, err := stream.Receive()
		if r.outOfPatience.Load() {
			return replication.Event{}, errLetGo
		}
		if err != nil {
			return replication.Event{}, err
		}
		if event.TimelineEnded {
			return event, nil
		}
		if clock := r.session.latestClock(); clock.LSN <= r.at && clock != r.clock && !clock.Time.IsZero() {
			r.clock = clock
			r.index.Clock(clock)
		}
		r.serverEnd = event.ServerEnd
		if len(event.WAL) > 0 {
			full := r.queue.positions().FullWaits
			begin := time.Now()
			if err := r.take(ctx, event); err != nil {
				return replication.Event{}, err
			}
			r.backlog(event, begin, r.queue.positions().FullWaits > full)
		}
		if event.ReplyRequested {
			r.answer(stream)
		}
	}
}

const (
	// pauseMax is the longest pause between two looks at what has come.
	pauseMax = 50 * time.Millisecond
	// pauseLag is how much WAL the server may have beyond what has come, for a pause to be made.
	pauseLag = 1 << 20
)

// pause is how long the stream may rest when all was read: a small part of the time within which WAL has to be in the store, and not at
// all when commits wait for it, or while the server is caught up with.
func (r *receiver) pause() time.Duration {
	if r.queue.isEager() || r.serverEnd > r.at+pauseLag {
		return 0
	}
	return min(r.session.opt.FlushInterval/20, pauseMax)
}

// backlog follows whether WAL arrives when it is written. It does not when streaming has just begun, and when we have kept the server
// waiting: then its age is counted from when we last had everything. That is over when we have all that the server had at a look since.
func (r *receiver) backlog(event replication.Event, begin time.Time, waited bool) {
	look := r.session.latestClock()
	switch {
	case !r.behind && event.ServerEnd > r.at:
		r.behind, r.since, r.looked = true, begin, repo.Clock{} // until we have caught up
	case waited && !r.behind:
		r.behind, r.since, r.looked = true, begin, look
	case !waited && r.behind && look != r.looked && look.LSN <= r.at && event.ServerEnd <= r.at:
		r.behind = false
	}
}

// written is when the WAL of a message may have been written, by our clock. A message may have lain in the sockets' buffers: the server says
// when it has sent it, by its own clock.
func (r *receiver) written(event replication.Event, now time.Time) time.Time {
	since := now
	if offset, isKnown := r.session.clockOffset(); isKnown && !event.Sent.IsZero() && event.Sent.Add(offset).Before(now) {
		since = event.Sent.Add(offset)
	}
	if r.behind && r.since.Before(since) {
		since = r.since
	}
	return since
}

// stretchEnd is where the stretch of the next byte ends.
func (r *receiver) stretchEnd() pg.LSN {
	length := repo.Stretch(r.size)
	return r.at - r.at%length + length
}

// errLetGo ends a session in which the server waits for WAL that the store does not take.
var errLetGo = errors.New("the server waits for WAL that the store does not take: it is let go, and keeps the WAL in the slot")

// answer makes everything due at once when the server asks how far we are. What is not stored yet is reported as soon as it is, and by
// the heartbeat, but not now: a server that is shutting down asks again after each answer. It would also wait for ever: when the store
// has not taken what it asked for within our patience, we go (law 9).
func (r *receiver) answer(stream *replication.Stream) {
	r.queue.flushNow()
	at := r.queue.positions()
	if at.Stored == at.Received {
		r.session.report(stream, r.queue, false)
		return
	}
	if r.patience != nil && at.Stored < r.askedFor {
		return // it is running already
	}
	r.stopPatience()
	r.askedFor = at.Received
	asked := r.askedFor
	r.patience = time.AfterFunc(serverPatience, func() {
		if r.queue.positions().Stored < asked {
			r.outOfPatience.Store(true)
			stream.Interrupt()
		}
	})
}

func (r *receiver) stopPatience() {
	if r.patience != nil {
		r.patience.Stop()
	}
}

// take checks the WAL of one message and appends it to the queue, cut at the end of a segment.
func (r *receiver) take(ctx context.Context, event replication.Event) error {
	if event.Start != r.at {
		return fmt.Errorf("the server sent WAL from %s, expected %s", event.Start, r.at)
	}
	r.beginDecoding(event.WAL)
	for content := event.WAL; len(content) > 0; {
		n := min(len(content), int(r.stretchEnd()-r.at))
		if _, err := r.decoder.Write(content[:n]); err != nil {
			return r.refuse(ctx, content[:n], err)
		}
		c := chunk{content: content[:n], arrived: event.Arrived, clock: r.clock.Time}
		c.since = r.written(event, c.arrived)
		segment := r.size.Segment(r.timeline, r.at)
		c.ends = r.at+pg.LSN(n) == r.stretchEnd()
		r.at += pg.LSN(n)
		if r.size.Offset(r.at) == 0 {
			index := r.index.Finish(segment, r.size, r.decoder.UnfinishedRecord())
			index.Incomplete, r.incomplete = r.incomplete, false
			c.index = &index
		}
		if err := r.queue.append(ctx, c); err != nil {
			return err
		}
		content = content[n:]
	}
	return nil
}
