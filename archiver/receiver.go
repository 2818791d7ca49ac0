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
	session  *session
	timeline pg.Timeline
	size     pg.SegmentSize
	at       pg.LSN // of the next byte
	decoder  *wal.Decoder
	index    repo.IndexBuilder
	queue    *queue
	names    *cataloguer
	clock    repo.Clock // the latest reading of the server's that speaks of WAL that we have

	askedFor      pg.LSN      // how far we had received when the server asked for a reply that it has not got yet
	patience      *time.Timer // runs out when that is not stored within the grace
	outOfPatience atomic.Bool

	open  repo.SegmentBuilder // what the repository holds of the open segment
	parts []repo.Part
}

// patienceMin is the least time for which a full buffer holds up the stream before the server is let go.
const patienceMin = time.Second

// newReceiver prepares to go on at a position: what the repository holds of the open segment is read back, so that the record that goes
// on can be checked and the segment's index is complete. An index that a killed archiver could not write any more is made up for.
func (s *session) newReceiver(ctx context.Context, at position) (*receiver, error) {
	r := &receiver{session: s, timeline: at.Timeline, size: s.size, at: at.LSN, names: newCataloguer(s)}
	r.index.OnEnd = r.names.noteDDL
	r.queue = newQueue(queueOptions{Start: at.LSN, SegmentSize: s.size, FlushInterval: s.opt.FlushInterval,
		PartSizeMax: s.opt.PartSizeMax, SizeMax: s.opt.BufferMax, Patience: max(s.opt.ShutdownGrace, patienceMin)})
	inv, err := s.opt.Repo.Inventory(ctx, at.Timeline, s.size, 0)
	if err != nil {
		return nil, err
	}
	first, from, last, err := s.decodeFrom(ctx, inv, s.size.Segment(at.Timeline, at.LSN))
	if err != nil {
		return nil, err
	}
	r.decoder = wal.NewDecoder(wal.Options{Start: from, SegmentSize: s.size, SystemID: s.system.ID, Timeline: at.Timeline, LastRecord: last},
		func(record *wal.Record) error {
			if record.End <= first {
				return nil // it ended in a segment whose index has it
			}
			return r.index.Add(record)
		})
	if err := r.reread(ctx, first, from); err != nil {
		return nil, fmt.Errorf("resume at %s: %w", at.LSN, err)
	}
	r.parts = inv.Parts[uint64(at.LSN)/uint64(s.size)]
	return r, s.sweepParts(ctx, inv)
}

// decodeFrom finds the first segment, up to the open one, that needs an index; where decoding has to begin so that its first record is
// whole; and the start of the record before that, if it is known.
func (s *session) decodeFrom(ctx context.Context, inv *repo.Inventory, open pg.Segment) (first, from, last pg.LSN, err error) {
	for segment := open; ; segment.Number-- {
		first = segment.Start(s.size)
		if segment.Number == 0 || !inv.HasSegment(segment.Number-1) {
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
		start := segment.Start(r.size)
		content, err := rp.ReadSegment(ctx, r.size, segment)
		if err != nil {
			return err
		}
		end := min(start+pg.LSN(len(content)), r.at)
		if end <= from {
			return fmt.Errorf("the repository lacks WAL at %s", from)
		}
		if _, err := r.decoder.Write(content[from-start : end-start]); err != nil {
			return err
		}
		switch {
		case end < segment.End(r.size):
			r.open.Add(rp, content[:end-start])
		case start >= first:
			index := r.index.Finish(segment, r.size, r.decoder.UnfinishedRecord())
			if err := rp.PutIndex(ctx, r.size, segment, index); err != nil {
				return err
			}
		}
		from = end
	}
	return nil
}

// sweepParts removes parts whose segment is whole: an archiver that was killed has left them.
func (s *session) sweepParts(ctx context.Context, inv *repo.Inventory) error {
	for number, parts := range inv.Parts {
		if !inv.HasSegment(number) {
			continue
		}
		for _, part := range parts {
			if err := s.opt.Repo.DeletePart(ctx, s.size, part); err != nil {
				return err
			}
		}
	}
	return nil
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
		if clock := r.session.latestClock(); clock.LSN <= r.at && clock != r.clock {
			r.clock = clock
			r.index.Clock(clock)
		}
		if len(event.WAL) > 0 {
			if err := r.take(ctx, event); err != nil {
				return replication.Event{}, err
			}
		}
		if event.ReplyRequested {
			r.answer(stream)
		}
	}
}

// errLetGo ends a session in which the server waits for WAL that the store does not take.
var errLetGo = errors.New("the server waits for WAL that the store does not take: it is let go, and keeps the WAL in the slot")

// answer makes everything due at once when the server asks how far we are. What is not stored yet is reported as soon as it is, and by
// the heartbeat, but not now: a server that is shutting down asks again after each answer. It would also wait for ever: when the store
// has not taken what it asked for within the grace, we go (law 9).
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
	r.patience = time.AfterFunc(max(r.session.opt.ShutdownGrace, patienceMin), func() {
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
	for content := event.WAL; len(content) > 0; {
		n := min(len(content), int(r.size.Start(r.at)+pg.LSN(r.size)-r.at))
		if _, err := r.decoder.Write(content[:n]); err != nil {
			r.session.archiver.counts.corrupt.Add(1)
			return fmt.Errorf("WAL that the server sent is damaged and was not archived: %w", err)
		}
		c := chunk{content: append([]byte(nil), content[:n]...), arrived: time.Now(), clock: r.clock.Time}
		segment := r.size.Segment(r.timeline, r.at)
		r.at += pg.LSN(n)
		if r.size.Offset(r.at) == 0 {
			index := r.index.Finish(segment, r.size, r.decoder.UnfinishedRecord())
			c.index = &index
		}
		if err := r.queue.append(ctx, c); err != nil {
			return err
		}
		content = content[n:]
	}
	return nil
}
