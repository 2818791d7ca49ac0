package archiver

import (
	"context"
	"errors"
	"sync"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// queue holds the WAL that was received and checked and is not in the store yet. The receiver appends, the uploader takes pieces
// in order and says what is stored, in any order. Its size is bounded by archive.buffer_max: beyond it append waits, and with it Postgres.
type queue struct {
	opt queueOptions

	mu       sync.Mutex // guards what follows; never held over anything that waits
	changed  chan struct{}
	chunks   []chunk
	ends     int      // chunks that complete a stretch
	spare    []byte   // of a piece that was stored
	spares   [][]byte // of chunks
	size     int
	flights  []flight // pieces that were taken, in order, from stored on
	stored   pg.LSN   // everything before it is in the store
	taken    pg.LSN   // everything before it was handed to the uploader
	received pg.LSN
	flush    pg.LSN // everything before it is due at once
	eager    bool   // a commit waits for us: everything is due at once
	closed   bool
	waits    uint64 // how often append met the bound
}

type queueOptions struct {
	Start         pg.LSN
	SegmentSize   pg.SegmentSize
	FlushInterval time.Duration
	PartSizeMax   int
	SizeMax       int
	Patience      time.Duration // how long append waits for room before it fails; zero: for ever
}

// chunk is what one append brought, or several small ones; it never goes on behind the end of a stretch.
type chunk struct {
	content []byte
	whole   []byte // the memory in which content lies
	arrived time.Time
	since   time.Time // when it was written, or could have been; zero: when it arrived
	clock   time.Time
	index   *repo.Index // of the segment that the chunk completes
	ends    bool        // it completes a stretch: see repo.Stretch
}

// flight is a piece on its way to the store.
type flight struct {
	start, end pg.LSN
	since      time.Time // of its first byte
	stored     bool
}

// piece is what the uploader stores at once.
type piece struct {
	Start   pg.LSN
	End     pg.LSN
	Content []byte
	Arrived time.Time   // of its first byte
	Clock   time.Time   // the server's: everything that was flushed by then lies before the piece's end
	Index   *repo.Index // not nil: the piece completes its segment
	Ends    bool        // it completes a stretch
	Eager   bool        // commits wait for it

	Followed bool // the rest of its stretch is there, and comes next
}

func newQueue(opt queueOptions) *queue {
	return &queue{opt: opt, changed: make(chan struct{}), stored: opt.Start, taken: opt.Start, received: opt.Start}
}

// wake tells everyone who waits that something has changed. The caller holds mu.
func (q *queue) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// errFull says that the store has not taken anything for as long as append may wait for room.
var errFull = errors.New("archive.buffer_max is used up, and the store does not take what is in it")

// append takes a copy of c. It waits while the queue is full, but no longer than its patience: whoever waits here does not hear what the
// server asks, and the server may be waiting for the answer.
func (q *queue) append(ctx context.Context, c chunk) error {
	var outOfPatience <-chan time.Time
	for waited := false; ; waited = true {
		q.mu.Lock()
		if q.size == 0 || q.size+len(c.content) <= q.opt.SizeMax {
			q.add(c)
			q.mu.Unlock()
			return nil
		}
		if !waited {
			q.waits++
			if q.opt.Patience > 0 {
				outOfPatience = time.After(q.opt.Patience)
			}
		}
		changed := q.changed
		q.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-outOfPatience:
			return errFull
		case <-changed:
		}
	}
}

// chunkSize is how much small chunks are put together to: a walsender sends no more at once (MAX_SEND_SIZE in src/backend/replication/walsender.c).
const chunkSize = 128 << 10

// add appends c. The caller holds mu. Whoever waits is woken only when a piece is due that was not before, or may become due earlier.
func (q *queue) add(c chunk) {
	if c.since.IsZero() {
		c.since = c.arrived
	}
	before, ready := int(q.received-q.taken), q.ready()
	if last := len(q.chunks) - 1; last >= 0 && q.chunks[last].joins(c) {
		q.chunks[last].join(c)
	} else {
		q.chunks = append(q.chunks, q.own(c))
	}
	if c.ends {
		q.ends++
	}
	q.size += len(c.content)
	q.received += pg.LSN(len(c.content))
	isLarge := before < q.opt.PartSizeMax && int(q.received-q.taken) >= q.opt.PartSizeMax
	if before == 0 || isLarge || !ready && q.ready() {
		q.wake()
	}
}

// joins reports whether c may go on in the same chunk: not behind an end, nor with a clock that speaks of a later position.
func (c *chunk) joins(next chunk) bool {
	return !c.ends && c.index == nil && c.clock.Equal(next.clock) && cap(c.content)-len(c.content) >= len(next.content)
}

// join takes over what follows. It counts as having come as early as what was there.
func (c *chunk) join(next chunk) {
	c.content = append(c.content, next.content...)
	c.index, c.ends = next.index, next.ends
	if next.since.Before(c.since) {
		c.since = next.since
	}
}

// own is c with memory of the queue's. The caller holds mu.
func (q *queue) own(c chunk) chunk {
	var room []byte
	if n := len(q.spares); n > 0 && len(c.content) <= chunkSize {
		room, q.spares = q.spares[n-1], q.spares[:n-1]
	} else {
		room = make([]byte, 0, max(chunkSize, len(c.content)))
	}
	c.whole = room
	c.content = append(room, c.content...)
	return c
}

// sparesMax bounds the memory of chunks that is kept to be used again.
const sparesMax = 16

// free keeps the memory of a chunk. The caller holds mu.
func (q *queue) free(c chunk) {
	if cap(c.whole) == chunkSize && len(q.spares) < sparesMax {
		q.spares = append(q.spares, c.whole[:0])
	}
}

// reuse takes back the content of a piece, which nobody looks at any more.
func (q *queue) reuse(content []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.spare = content[:0]
}

// close says that nothing will be appended any more; what is there is due at once.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wake()
}

// flushNow makes everything that was received so far due at once.
func (q *queue) flushNow() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.flush = q.received
	q.wake()
}

// setEager says whether commits wait for us.
func (q *queue) setEager(eager bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.eager != eager {
		q.eager = eager
		q.wake()
	}
}

func (q *queue) isEager() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.eager
}

// next waits until a piece is due and takes it. ok is false when the queue is closed and empty. lag is how long a put takes at present:
// a piece is cut that much before its age reaches the flush interval.
func (q *queue) next(ctx context.Context, lag time.Duration) (p piece, ok bool, err error) {
	for {
		q.mu.Lock()
		wait, due := q.due(time.Now(), lag)
		if due {
			p = q.take()
			q.mu.Unlock()
			return p, true, nil
		}
		finished, changed := q.closed && len(q.chunks) == 0, q.changed
		q.mu.Unlock()
		if finished {
			return piece{}, false, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return piece{}, false, ctx.Err()
		case <-changed:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// idleWait is how long next sleeps when nothing waits; every append wakes it.
const idleWait = time.Hour

// due decides whether a piece should be cut now, and if not, after which time at the latest. The caller holds mu.
func (q *queue) due(now time.Time, lag time.Duration) (time.Duration, bool) {
	if len(q.chunks) == 0 {
		return idleWait, false
	}
	if q.ready() {
		return 0, true
	}
	age := now.Sub(q.chunks[0].arrived)
	limit := q.opt.FlushInterval - min(lag, q.opt.FlushInterval/2)
	if int(q.received-q.taken) >= q.opt.PartSizeMax {
		limit = min(limit, q.opt.FlushInterval/largePatience)
	}
	return limit - age, age >= limit
}

// largePatience is the part of the flush interval for which a piece that has reached its size waits for the end of its stretch: while a server is
// caught up with, whole segments are stored and no parts before them.
const largePatience = 4

// ready reports whether a piece is due whatever its age. The caller holds mu.
func (q *queue) ready() bool {
	return len(q.chunks) > 0 && (q.closed || q.eager || q.ends > 0 || q.flush > q.taken || int(q.received-q.taken) >= q.opt.SizeMax/2)
}

// take cuts up to PartSizeMax bytes, never past the end of a stretch. The caller holds mu.
func (q *queue) take() piece {
	since := q.chunks[0].since
	n := q.nextLength()
	p := piece{Start: q.taken, Arrived: q.chunks[0].arrived, Eager: q.eager, Content: q.spare}
	if q.spare = nil; cap(p.Content) < n {
		p.Content = make([]byte, 0, n)
	}
	for len(p.Content) < n {
		c := &q.chunks[0]
		p.Clock = c.clock
		if room := n - len(p.Content); len(c.content) > room {
			p.Content = append(p.Content, c.content[:room]...)
			c.content = c.content[room:]
			break
		}
		p.Content = append(p.Content, c.content...)
		p.Index, p.Ends = c.index, c.ends
		if c.ends {
			q.ends--
		}
		q.free(*c)
		q.chunks[0] = chunk{}
		q.chunks = q.chunks[1:]
	}
	p.End = p.Start + pg.LSN(len(p.Content))
	p.Followed = !p.Ends && q.ends > 0
	q.taken = p.End
	q.flights = append(q.flights, flight{start: p.Start, end: p.End, since: since})
	return p
}

// nextLength is how many bytes take cuts. The caller holds mu.
func (q *queue) nextLength() (n int) {
	for _, c := range q.chunks {
		n += len(c.content)
		if c.ends || n >= q.opt.PartSizeMax {
			break
		}
	}
	return min(n, q.opt.PartSizeMax)
}

// setStored says that everything from one position to another is in the store. Whatever was taken before and is not in it yet
// holds up what is reported.
func (q *queue) setStored(from, to pg.LSN) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.flights {
		if f := &q.flights[i]; from <= f.start && f.end <= to {
			f.stored = true
		}
	}
	for len(q.flights) > 0 && q.flights[0].stored {
		q.size -= int(q.flights[0].end - q.stored)
		q.stored = q.flights[0].end
		q.flights = q.flights[1:]
	}
	q.wake()
}

// oldest is since when the byte at stored may have waited; zero when nothing waits. The caller holds mu.
func (q *queue) oldest() time.Time {
	switch {
	case len(q.flights) > 0:
		return q.flights[0].since
	case len(q.chunks) > 0:
		return q.chunks[0].since
	}
	return time.Time{}
}

// positions are what is reported to Postgres and shown in the metrics.
type positions struct {
	Received, Stored pg.LSN
	Waiting          int       // bytes
	Oldest           time.Time // when the oldest byte that is not stored was written, or could have been; zero: none waits
	FullWaits        uint64
}

func (q *queue) positions() positions {
	q.mu.Lock()
	defer q.mu.Unlock()
	return positions{Received: q.received, Stored: q.stored, Waiting: q.size, Oldest: q.oldest(), FullWaits: q.waits}
}
