package archiver

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

func testQueue() *queue {
	return newQueue(queueOptions{Start: 0x200000, SegmentSize: mib, FlushInterval: time.Second, PartSizeMax: 1000, SizeMax: 3000})
}

func storedUpTo(q *queue, p piece) { q.setStored(p.Start, p.End) }

// takes asks for the next piece in the background.
func takes(ctx context.Context, q *queue, lag time.Duration) chan piece {
	taken := make(chan piece, 1)
	go func() {
		defer close(taken)
		if p, ok, err := q.next(ctx, lag); ok && err == nil {
			taken <- p
		}
	}()
	return taken
}

func add(t *testing.T, q *queue, n int) {
	t.Helper()
	if err := q.append(t.Context(), chunk{content: make([]byte, n), arrived: time.Now(), clock: time.Now()}); err != nil {
		t.Fatal(err)
	}
}

// within checks that a piece of n bytes is taken after exactly the given time.
func within(t *testing.T, what string, taken chan piece, after time.Duration, n int) piece {
	t.Helper()
	begin := time.Now()
	p, ok := <-taken
	if took := time.Since(begin); !ok || took != after || len(p.Content) != n {
		t.Fatalf("%s: %d bytes after %s (%v), want %d after %s", what, len(p.Content), took, ok, n, after)
	}
	return p
}

// waits checks that nothing is taken yet.
func waits(t *testing.T, what string, taken chan piece) {
	t.Helper()
	synctest.Wait()
	select {
	case p := <-taken:
		t.Fatalf("%s: %d bytes were taken", what, len(p.Content))
	default:
	}
}

func TestQueueCutsWhenTheOldestByteIsOfAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := testQueue()
		taken := takes(t.Context(), q, 0)
		waits(t, "an empty queue", taken)
		add(t, q, 10)
		<-time.After(600 * time.Millisecond)
		add(t, q, 20)
		waits(t, "before the age", taken)
		p := within(t, "of age", taken, 400*time.Millisecond, 30)
		if p.Start != 0x200000 || p.End != 0x20001E || !p.Clock.Equal(p.Arrived.Add(600*time.Millisecond)) || p.Index != nil {
			t.Errorf("got %+v", p)
		}
		q.setStored(p.Start, p.End)

		add(t, q, 10)
		storedUpTo(q, within(t, "with a put that takes 300 ms", takes(t.Context(), q, 300*time.Millisecond), 700*time.Millisecond, 10))
		add(t, q, 10)
		storedUpTo(q, within(t, "with a put that takes an hour", takes(t.Context(), q, time.Hour), 500*time.Millisecond, 10))
	})
}

func TestQueueCutsBySizeAndNeverMoreThanAPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := testQueue()
		taken := takes(t.Context(), q, 0)
		add(t, q, 999)
		waits(t, "a byte less than a part", taken)
		add(t, q, 1500)
		storedUpTo(q, within(t, "more than a part, and half of what there is room for", taken, 0, 1000))
		p := within(t, "the second part waits a little for the end of the segment", takes(t.Context(), q, 0), 250*time.Millisecond, 1000)
		if p.Start != 0x200000+1000 {
			t.Errorf("it begins at %s", p.Start)
		}
		q.setStored(p.Start, p.End)
		storedUpTo(q, within(t, "the rest", takes(t.Context(), q, 0), 750*time.Millisecond, 499))
		add(t, q, 10)
		taken = takes(t.Context(), q, 0)
		waits(t, "ten bytes", taken)
		add(t, q, 1000)
		storedUpTo(q, within(t, "a part is full while somebody waits for its age", taken, 250*time.Millisecond, 1000))
	})
}

func TestPiecesWhoseSegmentIsThereAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := testQueue()
		add(t, q, 1200)
		if err := q.append(t.Context(), chunk{content: make([]byte, 300), arrived: time.Now(), ends: true}); err != nil {
			t.Fatal(err)
		}
		add(t, q, 10)
		for _, want := range []struct {
			length         int
			followed, ends bool
		}{{1000, true, false}, {500, false, true}} {
			p := within(t, "a piece", takes(t.Context(), q, 0), 0, want.length)
			if p.Followed != want.followed || p.Ends != want.ends {
				t.Errorf("followed %v, ends %v; want %+v", p.Followed, p.Ends, want)
			}
			q.reuse(p.Content)
		}
		if p := within(t, "what follows", takes(t.Context(), q, 0), time.Second, 10); p.Followed || p.Ends {
			t.Errorf("%+v", p)
		}
	})
}

func TestQueueCutsAtOnceOnDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := testQueue()
		add(t, q, 10)
		taken := takes(t.Context(), q, 0)
		waits(t, "nobody asks", taken)
		q.flushNow()
		p := within(t, "the server asks for a reply", taken, 0, 10)
		add(t, q, 20) // behind what was asked for
		q.setStored(p.Start, p.End)
		taken = takes(t.Context(), q, 0)
		waits(t, "what came later is not due", taken)
		q.setEager(true)
		storedUpTo(q, within(t, "a commit waits", taken, 0, 20))
		taken = takes(t.Context(), q, 0)
		add(t, q, 30)
		storedUpTo(q, within(t, "another commit waits", taken, 0, 30))
		q.setEager(false)
		taken = takes(t.Context(), q, 0)
		add(t, q, 40)
		waits(t, "no commit waits any more", taken)
		storedUpTo(q, within(t, "of age", taken, time.Second, 40))
	})
}

func TestQueueCutsAtTheEndOfASegmentAndNeverAcrossIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := testQueue()
		index := &repo.Index{Segment: "this"}
		add(t, q, 10)
		if err := q.append(t.Context(), chunk{content: make([]byte, 20), arrived: time.Now(), index: index, ends: true}); err != nil {
			t.Fatal(err)
		}
		add(t, q, 30) // of the next segment
		p := within(t, "a whole segment", takes(t.Context(), q, 0), 0, 30)
		if p.Index != index {
			t.Error("the piece that completes the segment has no index")
		}
		q.setStored(p.Start, p.End)
		p = within(t, "the next segment", takes(t.Context(), q, 0), time.Second, 30)
		if p.Index != nil {
			t.Error("the index came twice")
		}
	})
}

func TestQueueThatIsFullMakesTheReceiverWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := testQueue()
		add(t, q, 2000)
		appended := make(chan struct{})
		go func() {
			defer close(appended)
			add(t, q, 1001)
		}()
		synctest.Wait()
		if at := q.positions(); at.Waiting != 2000 || at.FullWaits != 1 || at.Received != 0x200000+2000 {
			t.Fatalf("%+v", at)
		}
		p, _, err := q.next(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		select {
		case <-appended:
			t.Fatal("there was room while the piece was under way: memory is not bounded")
		default:
		}
		q.setStored(p.Start, p.End)
		<-appended
		if at := q.positions(); at.Waiting != 2001 || at.FullWaits != 1 || at.Stored != 0x200000+1000 {
			t.Errorf("%+v", at)
		}
		// A message that is larger than the bound passes when the queue is empty: nothing waits for ever.
		empty := testQueue()
		add(t, empty, 5000)

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := empty.append(ctx, chunk{content: make([]byte, 1)}); !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled append: %v", err)
		}
	})
}

func TestClosedQueueGivesWhatItHasAndThenEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := testQueue()
		add(t, q, 10)
		taken := takes(t.Context(), q, 0)
		waits(t, "open", taken)
		q.close()
		storedUpTo(q, within(t, "closed", taken, 0, 10))
		if _, ok, err := q.next(t.Context(), 0); ok || err != nil {
			t.Errorf("empty and closed: %v, %v", ok, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, ok, err := testQueue().next(ctx, 0); ok || !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v, %v", ok, err)
		}
	})
}

func TestOldestByteIsThatBehindTheStoredOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := testQueue()
		if !q.positions().Oldest.IsZero() {
			t.Error("an empty queue has an oldest byte")
		}
		first := time.Now()
		add(t, q, 10)
		p, _, _ := q.next(t.Context(), 0)
		<-time.After(time.Second)
		second := time.Now()
		add(t, q, 10)
		if at := q.positions(); !at.Oldest.Equal(first) {
			t.Errorf("a piece is under way, and the oldest byte is of %s", at.Oldest)
		}
		q.setStored(p.Start, p.End)
		if at := q.positions(); !at.Oldest.Equal(second) {
			t.Errorf("the oldest byte is of %s", at.Oldest)
		}
	})
}

func TestPiecesAreTheBytesThatWereAppendedInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := newQueue(queueOptions{Start: 0x200000, SegmentSize: mib, FlushInterval: time.Second,
			PartSizeMax: rapid.IntRange(1, 50).Draw(t, "part"), SizeMax: 1 << 20})
		var want, got []byte
		ends := map[pg.LSN]bool{} // of segments
		for i := range rapid.IntRange(1, 20).Draw(t, "chunks") {
			c := chunk{content: bytes.Repeat([]byte{byte(i)}, rapid.IntRange(1, 60).Draw(t, "bytes")), arrived: time.Now()}
			want = append(want, c.content...)
			if rapid.Bool().Draw(t, "last of its segment") {
				c.index, c.ends = &repo.Index{}, true
				ends[0x200000+pg.LSN(len(want))] = true
			}
			if err := q.append(context.Background(), c); err != nil {
				t.Fatal(err)
			}
		}
		q.close()
		for at := pg.LSN(0x200000); ; {
			p, ok, err := q.next(context.Background(), 0)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			if p.Start != at || len(p.Content) == 0 || len(p.Content) > q.opt.PartSizeMax || (p.Index != nil) != ends[p.End] {
				t.Fatalf("expected a piece at %s, got one of %d bytes at %s, index %v", at, len(p.Content), p.Start, p.Index)
			}
			for end := range ends {
				if p.Start < end && end < p.End {
					t.Fatalf("a piece from %s to %s spans the end of a segment", p.Start, p.End)
				}
			}
			got = append(got, p.Content...)
			at = p.End
			q.setStored(p.Start, p.End)
		}
		if at := q.positions(); !bytes.Equal(got, want) || at.Waiting != 0 || at.Stored != at.Received {
			t.Fatalf("%d bytes came out of %d; %+v", len(got), len(want), at)
		}
	})
}

// TestWhatIsReportedIsThePrefixThatIsStored stores the pieces in any order.
func TestWhatIsReportedIsThePrefixThatIsStored(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := newQueue(queueOptions{Start: 0x200000, SegmentSize: mib, FlushInterval: time.Second, PartSizeMax: 100, SizeMax: 1 << 20})
		var pieces []piece
		total := 0
		for range rapid.IntRange(1, 10).Draw(t, "pieces") {
			n := rapid.IntRange(1, 60).Draw(t, "bytes")
			total += n
			if err := q.append(context.Background(), chunk{content: make([]byte, n), arrived: time.Unix(int64(total), 0)}); err != nil {
				t.Fatal(err)
			}
			q.flushNow()
			p, _, err := q.next(context.Background(), 0)
			if err != nil {
				t.Fatal(err)
			}
			pieces = append(pieces, p)
		}
		missing := append([]piece(nil), pieces...)
		for _, p := range rapid.Permutation(pieces).Draw(t, "order") {
			from := p.Start
			if rapid.Bool().Draw(t, "with all before it") {
				from = pieces[0].Start
			}
			q.setStored(from, p.End)
			missing = slices.DeleteFunc(missing, func(m piece) bool { return from <= m.Start && m.End <= p.End })
			want := positions{Received: q.received, Stored: q.received}
			if len(missing) > 0 {
				want.Stored, want.Oldest = missing[0].Start, missing[0].Arrived
				want.Waiting = int(want.Received - want.Stored)
			}
			if got := q.positions(); got != want {
				t.Fatalf("with %d missing: %+v, want %+v", len(missing), got, want)
			}
		}
	})
}
