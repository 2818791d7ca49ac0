// Package copies makes one store of several: every object goes to all of them, byte for byte, and a put is done when so many of them as
// the quorum says hold it. What a store has missed is filled later from the others. It never overwrites an object that was put
// conditionally, and knows of what lies in the objects only what a Format tells it. docs/decisions/0009-copies.md.
package copies

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"pitr/internal/store"
)

// Member is one of the stores.
type Member struct {
	Name  string      // for logs, errors and metrics: without credentials
	Store store.Store // with retries
	Quick store.Store // the same without, for reads that can go on to another member; nil: Store
}

// Format is what the copies must know of the objects. Keys are those of the store.
type Format interface {
	// Root is the prefix of everything that is copied.
	Root() string
	// Anchor is the key of the object that says what a store belongs to. It comes first: nothing is written to a store that holds another.
	Anchor() string
	// Bound tells what the anchor says, before anything else is written. An error: it says nothing, since it is damaged or not whole yet.
	Bound(anchor []byte) error
	// Order lists prefixes in the order in which they are filled. What lies below none of them is filled before the last one.
	Order() []string
	// Sole lists prefixes of what lies in the first store alone and is not copied: what several writers agree on needs one place.
	Sole() []string
	// Same compares two objects of one key that are not the same bytes, and returns nil when they mean the same, whoever of two
	// writers has made them. Any other error is a conflict.
	Same(ctx context.Context, key string, a, b []byte) error
	// Position says which WAL an object holds, as LSNs; ok is false when it holds none.
	Position(key string) (start, end uint64, ok bool)
	// Judge tells for keys in order, each with the one behind it ("" for none), whether an object may be gone by the rules of deletion.
	// Such objects are not filled.
	Judge(ctx context.Context) (needless func(key, next string) bool, err error)
	// Kept reports whether a needless object must stay nevertheless where it is.
	Kept(key string) bool
}

// Options says what a Store is made of. Bounds have their names in config.
type Options struct {
	Members   []Member // in the order in which they are read
	Quorum    int      // how many must hold an object before a put returns
	BufferMax int64    // bytes of objects that a member may still have to take after their puts have returned; archive.copies_buffer_max
	Check     time.Duration
	Format    Format // nil: nothing is known of the objects
	Log       *slog.Logger
}

// Store is a store.Store of several members.
type Store struct {
	opt     Options
	quorum  int
	members []*member

	base   context.Context // of what goes on behind a put that has returned; ends with Close
	end    context.CancelFunc
	tasks  sync.WaitGroup
	wake   chan struct{} // something is to be filled
	passMu sync.Mutex    // held by the one who fills

	damaged, filled atomic.Uint64

	mu       sync.Mutex // guards what follows and all members
	anchor   []byte     // what all members must be bound to; nil: not known yet
	conflict error      // of a put whose caller had gone: the next one returns it
	highest  uint64     // end of the WAL that the quorum holds, as an LSN
	flown    uint64     // flights that have begun
}

var _ store.Store = (*Store)(nil)

// state is what a member is good for. It moves in Store.move.
type state int

const (
	// filling: it gets what is put, but may lack what was put before, so that nothing that must come last is put there.
	filling state = iota
	// live: it holds everything, or is about to.
	live
	// away: it has failed and gets nothing until it is asked again.
	away
)

func (s state) String() string { return [...]string{"filling", "live", "away"}[s] }

// member is one store with what is known of it. Store.mu guards all that changes.
type member struct {
	name         string
	store, quick store.Store

	state    state
	cause    error // of being away
	alarmed  bool
	admitted bool
	since    time.Time // away or filling
	failures int       // puts and deletes that did not arrive
	flights  map[string]*flight
	unnoted  map[*flight]bool   // puts that it has missed, until that is noted in lack
	fence    *flight            // the last removal on its way; nil: none is
	backlog  int64              // bytes of flights whose callers have gone
	ctx      context.Context    // of its flights; ends when it goes away
	cancel   context.CancelFunc // ends ctx
	deaf     time.Time          // reads ask it last until then
	lack     lack
	given    int // objects that it was filled with since it was last live
	counts   counts
	clashes  map[string]bool // keys that hold other content here
}

// lack is what a member does not hold although others do.
type lack struct {
	objects int
	oldest  time.Time // of these objects; zero: none
	from    uint64    // start of the first WAL it lacks, as an LSN; zero: none is known to be missing
	known   bool      // it has been counted
}

type counts struct {
	conflicts, filled, overflows, damaged uint64
}

// ErrQuorum says that too few stores hold an object.
var ErrQuorum = errors.New("too few stores hold the object")

var (
	errOverflow = errors.New("it takes objects more slowly than they are made: archive.copies_buffer_max")
	errConflict = errors.New("two stores hold other content under one key")
	errForeign  = errors.New("it belongs to something else, and nothing is written there")
)

// New joins members. A Store of its kind must be closed.
func New(opt Options) *Store {
	if opt.Quorum < 1 || opt.Quorum > len(opt.Members) {
		panic("copies: the quorum is between one and all members")
	}
	s := &Store{opt: opt, quorum: opt.Quorum, wake: make(chan struct{}, 1)}
	s.base, s.end = context.WithCancel(context.Background())
	for _, m := range opt.Members {
		quick := m.Quick
		if quick == nil {
			quick = m.Store
		}
		ctx, cancel := context.WithCancel(s.base)
		s.members = append(s.members, &member{name: m.Name, store: m.Store, quick: quick, flights: map[string]*flight{}, unnoted: map[*flight]bool{}, ctx: ctx, cancel: cancel,
			since: time.Now(), clashes: map[string]bool{}})
	}
	return s
}

// Close waits until the members have taken what they can take, at most until ctx ends.
func (s *Store) Close(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		s.tasks.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = fmt.Errorf("not every store has taken every object: %w", ctx.Err())
	}
	s.end()
	<-done
	return err
}

// move is the one place in which a member's state changes. The caller holds mu.
func (s *Store) move(m *member, to state, cause error) {
	if m.state == to {
		return
	}
	from := m.state
	m.state, m.cause = to, cause
	if from == live {
		m.since = time.Now()
	}
	switch {
	case to == away:
		m.cancel() // what is on its way would only keep its callers and its bytes
		if !m.alarmed {
			m.alarmed = true
			s.opt.Log.Error("a store has fallen behind; it is filled when it answers again", "store", m.name, "error", cause)
		}
	case to == filling && from == away:
		m.ctx, m.cancel = context.WithCancel(s.base)
	case to == live && (m.alarmed || m.given > 0):
		m.alarmed = false
		s.opt.Log.Info("a store has caught up", "store", m.name, "behind_for", time.Since(m.since).Round(time.Second), "objects_filled", m.given)
	}
	if to == live {
		m.lack, m.given = lack{known: true}, 0
	}
	if to != live {
		s.fillSoon()
	}
}

// Doubt forgets that members hold everything: another process has put and removed objects, perhaps not everywhere. They are compared again.
func (s *Store) Doubt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.members {
		s.recalled(m)
	}
}

// fillSoon wakes Run.
func (s *Store) fillSoon() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// fail notes that something did not arrive at a member. The caller holds mu.
func (s *Store) fail(f *flight, cause error) {
	m := f.member
	m.failures++
	if !f.removes {
		s.missed(m, f.key)
	}
	if f.home == m.ctx { // it may have been away meanwhile, and be back
		s.move(m, away, cause)
	}
}

// missed notes that a member lacks an object that was put. The caller holds mu.
func (s *Store) missed(m *member, key string) {
	m.lack.objects++
	if m.lack.oldest.IsZero() {
		m.lack.oldest = time.Now()
	}
	if start, _, ok := s.position(key); ok && (m.lack.from == 0 || start < m.lack.from) {
		m.lack.from = start
	}
}

func (s *Store) position(key string) (start, end uint64, ok bool) {
	if s.opt.Format == nil {
		return 0, 0, false
	}
	return s.opt.Format.Position(key)
}

// last reports whether an object makes others visible, and so must be put behind them.
func (s *Store) last(key string) bool {
	if s.opt.Format == nil {
		return false
	}
	order := s.opt.Format.Order()
	prefix := order[len(order)-1]
	return len(key) > len(prefix) && key[:len(prefix)] == prefix
}

// clash notes two contents under one key: law 3. It is told once for each key. The caller holds mu.
func (s *Store) clash(m *member, key string, err error) error {
	err = fmt.Errorf("%s: %s: %w", m.name, key, err)
	if len(m.clashes) < clashesMax && !m.clashes[key] {
		m.clashes[key] = true
		m.counts.conflicts++
		s.opt.Log.Error("a store holds other content than the others; it stays as it is", "store", m.name, "key", key, "error", err)
	}
	return err
}

// clashesMax bounds how many conflicts are remembered of a member; they are counted no further.
const clashesMax = 1000

// same compares two contents of one key.
func (s *Store) same(ctx context.Context, key string, a, b []byte) error {
	switch {
	case string(a) == string(b):
		return nil
	case s.opt.Format == nil:
		return errConflict
	default:
		return s.opt.Format.Same(ctx, key, a, b)
	}
}
