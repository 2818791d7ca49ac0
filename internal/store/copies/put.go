package copies

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"pitr/internal/store"
)

// flight is a put or a delete on its way to one member. Flights of one key at one member follow one another in the order in which they began.
type flight struct {
	member   *member
	key      string
	removes  bool
	cost     int64
	order    uint64        // of its beginning
	behind   []*flight     // that must have ended before; nil when it has ended itself
	done     chan struct{} // its outcome is known
	clear    chan struct{} // so are those of all before it
	began    time.Time
	left     bool            // its caller has gone; guarded by Store.mu
	recalled atomic.Bool     // by a caller who has given up
	home     context.Context // of the member when it began
	ctx      context.Context
	cancel   context.CancelFunc
	stop     func() bool // lets it go on without its caller
	skipped  bool        // it would have come too early
	hampered bool        // what it would have relied on has not arrived
	missed   bool        // valid after done: it has not arrived
	err      error       // valid after done
	existing []byte      // valid after done: what a conditional put has met
	met      bool        // it has met something
}

// flightCost is what a flight holds besides its content.
const flightCost = 512

// existingMax bounds an object that is read back to be compared.
const existingMax = 1 << 30

// start begins a flight to each of the members. All of them get their place in the order of the key at the same time. The caller holds mu.
func (s *Store) start(ctx context.Context, members []*member, key string, cost int64, removes bool, send func(ctx context.Context, m *member, f *flight) error) []*flight {
	var flights []*flight
	for _, m := range members {
		if m.state == away { // it is needed, so it is asked again
			s.move(m, filling, nil)
		}
		f := &flight{member: m, key: key, cost: cost, removes: removes, done: make(chan struct{}), clear: make(chan struct{}), began: time.Now(), home: m.ctx}
		f.ctx, f.cancel = context.WithCancel(m.ctx)
		s.line(f)
		f.stop = context.AfterFunc(ctx, func() {
			f.recalled.Store(true)
			f.cancel()
		})
		m.flights[key] = f
		flights = append(flights, f)
		s.tasks.Go(func() { s.fly(f, send) })
	}
	return flights
}

// line finds out behind what a flight follows. What comes last is put behind everything. Something is removed because of what was put, or removed, before:
// a part because the segment is there, a pack because no manifest is; so a member must have taken that first. The caller holds mu.
func (s *Store) line(f *flight) {
	m := f.member
	s.flown++
	f.order = s.flown
	if before := m.flights[f.key]; before != nil {
		f.behind = append(f.behind, before)
	}
	if !f.removes && !s.last(f.key) {
		return
	}
	fence := m.fence // the last removal follows everything before it
	if f.removes {
		m.fence = f
	} else {
		fence = nil
	}
	if fence != nil {
		f.behind = append(f.behind, fence)
	}
	for _, before := range m.flights {
		if before.key != f.key && (fence == nil || before.order > fence.order) {
			f.behind = append(f.behind, before)
		}
	}
}

// isHampered reports whether something before a removal has not arrived at the member. What has failed long ago is the filler's.
func (f *flight) isHampered() bool {
	return f.removes && slices.ContainsFunc(f.behind, func(before *flight) bool { return before.home == f.home && before.key != f.key && before.missed })
}

func (s *Store) fly(f *flight, send func(ctx context.Context, m *member, f *flight) error) {
	defer f.cancel()
	defer f.stop()
	for _, before := range f.behind {
		select {
		case <-before.clear:
		case <-f.ctx.Done():
		}
	}
	if f.err = f.ctx.Err(); f.err == nil && f.isHampered() {
		f.hampered, f.err = true, errors.New("what was put or removed before has not arrived there")
	}
	if f.err == nil && s.tooEarly(f) {
		f.skipped, f.err = true, errors.New("it is being filled")
	}
	if f.err == nil {
		f.err = send(f.ctx, f.member, f)
	}
	f.missed = f.err != nil && !f.skipped
	s.mu.Lock()
	if f.left && !f.missed { // what is missed stays in it until that is noted: see vouched
		f.member.backlog -= f.cost
	}
	if f.missed && !f.removes {
		f.member.unnoted[f] = true
	}
	close(f.done)
	s.mu.Unlock()
	for _, before := range f.behind { // it may have given up on them: those that follow it have not
		<-before.clear
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f.behind = nil
	if f.member.fence == f {
		f.member.fence = nil
	}
	if f.member.flights[f.key] == f {
		delete(f.member.flights, f.key)
	}
	close(f.clear)
}

// tooEarly reports whether a member still lacks what must be there before an object that makes it visible.
func (s *Store) tooEarly(f *flight) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !f.removes && s.last(f.key) && f.member.state != live
}

// Put implements store.Store. It returns when the quorum holds the object; the other members take it behind the caller's back. ErrExist
// says that some member had an object there before, and that the quorum holds one that means the same as that. Nobody may change
// content afterwards.
func (s *Store) Put(ctx context.Context, key string, content []byte, opt store.PutOptions) error {
	if err := store.CheckKey(key); err != nil {
		return fmt.Errorf("key %q: %w", key, err)
	}
	if s.isSole(key) {
		return s.members[0].store.Put(ctx, key, content, opt)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.prepare(ctx, key); err != nil {
		return err
	}
	s.mu.Lock()
	if err := s.conflict; err != nil {
		s.mu.Unlock()
		return err
	}
	members, skipped := s.targets(key)
	flights := s.start(ctx, members, key, int64(len(content))+flightCost, false, func(ctx context.Context, m *member, f *flight) error {
		return s.send(ctx, m, f, content, opt)
	})
	s.mu.Unlock()
	b := ballot{s: s, ctx: ctx, key: key, content: content, flights: flights, skipped: skipped, decided: make(chan error, 1)}
	s.tasks.Go(b.count)
	return <-b.decided
}

// prepare sees to it that something that must come last finds members that hold what comes before it: whoever has not compared them yet
// does so now.
func (s *Store) prepare(ctx context.Context, key string) error {
	if !s.last(key) {
		return nil
	}
	s.mu.Lock()
	ready := 0
	for _, m := range s.members {
		if m.state == live {
			ready++
		}
	}
	s.mu.Unlock()
	if ready >= s.quorum {
		return nil
	}
	return s.Fill(ctx, nil)
}

// targets are the members that a put goes to, and those that it does not. The caller holds mu.
func (s *Store) targets(key string) (members, skipped []*member) {
	reachable := 0
	for _, m := range s.members {
		if m.state != away {
			reachable++
		}
	}
	for _, m := range s.members {
		// Without enough others it is better to ask one that was away than to fail.
		if m.state == away && reachable >= s.quorum {
			skipped = append(skipped, m)
			continue
		}
		members = append(members, m)
	}
	return members, skipped
}

// send puts content to one member, and reads what it meets.
func (s *Store) send(ctx context.Context, m *member, f *flight, content []byte, opt store.PutOptions) error {
	if err := s.admit(ctx, m, f.key); err != nil {
		return err
	}
	err := m.store.Put(ctx, f.key, content, opt)
	if !errors.Is(err, store.ErrExist) {
		return err
	}
	if f.existing, err = store.ReadAll(ctx, m.store, f.key, existingMax); err != nil {
		return fmt.Errorf("it exists; compare: %w", err)
	}
	f.met = true
	return nil
}

// recalled notes that a member may lack something, though it has not failed. The caller holds mu.
func (s *Store) recalled(m *member) {
	m.failures++
	if m.state == live {
		s.move(m, filling, nil)
	}
}

// leave lets flights go on without their caller, within the bound of what a member may be behind.
func (s *Store) leave(key string, flights []*flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, end, ok := s.position(key); ok {
		s.highest = max(s.highest, end)
	}
	for _, f := range flights {
		f.stop()
		select {
		case <-f.done:
			continue
		default:
		}
		m := f.member
		f.left = true
		m.backlog += f.cost
		if m.backlog > s.opt.BufferMax {
			m.counts.overflows++
			s.move(m, away, errOverflow)
		}
	}
}

// Delete implements store.Store. It returns when one member has removed the object; one that cannot is made to follow when it is filled. A member
// removes it only when everything that was put or removed before has arrived there.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := store.CheckKey(key); err != nil {
		return fmt.Errorf("key %q: %w", key, err)
	}
	if s.isSole(key) {
		return s.members[0].store.Delete(ctx, key)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	var members []*member
	for _, m := range s.members {
		if m.state != away {
			members = append(members, m)
		}
	}
	if len(members) == 0 {
		members = s.members
	}
	flights := s.start(ctx, members, key, flightCost, true, func(ctx context.Context, m *member, _ *flight) error {
		if err := s.admit(ctx, m, key); err != nil {
			return err
		}
		return m.store.Delete(ctx, key)
	})
	s.mu.Unlock()
	decided := make(chan error, 1)
	s.tasks.Go(func() { s.removed(key, flights, decided) })
	return <-decided
}

// removed waits for all flights of a delete, and answers its caller with the first that succeeds.
func (s *Store) removed(key string, flights []*flight, decided chan<- error) {
	outcomes := make(chan *flight, len(flights))
	for _, f := range flights {
		s.tasks.Go(func() {
			<-f.done
			outcomes <- f
		})
	}
	var errs, answers []error
	told := false
	for range flights {
		f := <-outcomes
		if f.err == nil {
			if !told {
				s.leave(key, flights)
				decided <- nil
			}
			told = true
			continue
		}
		err := fmt.Errorf("%s: %w", f.member.name, f.err)
		if refused(f.err) { // it holds what it should, and something more
			answers = append(answers, err)
			continue
		}
		errs = append(errs, err)
		s.mu.Lock()
		f.settle()
		if f.recalled.Load() || f.hampered {
			s.recalled(f.member)
		} else {
			s.fail(f, f.err)
		}
		s.mu.Unlock()
	}
	if len(errs) == 0 {
		errs = answers
	}
	if !told {
		decided <- errors.Join(errs...)
	}
}

// refused reports whether a store has answered that it does not remove an object: that does not make it lack anything.
func refused(err error) bool {
	return errors.Is(err, store.ErrDenied) || errors.Is(err, store.ErrLocked)
}

// admit makes sure that a member belongs to the same as the others before anything is written there, and binds one that is empty.
func (s *Store) admit(ctx context.Context, m *member, key string) error {
	if s.opt.Format == nil || key == s.opt.Format.Anchor() {
		return nil
	}
	s.mu.Lock()
	admitted := m.admitted
	s.mu.Unlock()
	if admitted {
		return nil
	}
	anchor := s.opt.Format.Anchor()
	want, err := s.reference(ctx, anchor)
	if err != nil {
		return fmt.Errorf("see what %s belongs to: %w", m.name, err)
	}
	have, err := store.ReadAll(ctx, m.store, anchor, anchorMax)
	if errors.Is(err, store.ErrNotExist) && want != nil {
		have = want
		if err = m.store.Put(ctx, anchor, want, store.PutOptions{IfAbsent: true}); errors.Is(err, store.ErrExist) {
			have, err = store.ReadAll(ctx, m.store, anchor, anchorMax)
		}
	}
	if err == nil && want == nil { // it was bound since the others were asked
		want = have
		s.bound(anchor, have)
	}
	switch {
	case errors.Is(err, store.ErrNotExist) && want == nil: // nothing binds anybody
	case err != nil:
		return fmt.Errorf("see what %s belongs to: %w", m.name, err)
	case !bytes.Equal(want, have):
		if err := s.opt.Format.Bound(have); err != nil {
			return fmt.Errorf("see what %s belongs to: %w", m.name, err)
		}
		if err := s.opt.Format.Same(ctx, anchor, want, have); err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.clash(m, anchor, fmt.Errorf("%w: %w", errForeign, err))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m.admitted = want != nil
	return nil
}

// anchorMax bounds the anchor.
const anchorMax = 1 << 20

// reference is the anchor of the first member that has one; nil when certainly none has.
func (s *Store) reference(ctx context.Context, anchor string) ([]byte, error) {
	s.mu.Lock()
	known := s.anchor
	s.mu.Unlock()
	if known != nil {
		return known, nil
	}
	var errs []error
	for _, m := range s.members {
		content, err := store.ReadAll(ctx, m.quick, anchor, anchorMax)
		if err == nil {
			if err = s.opt.Format.Bound(content); err == nil {
				s.bound(anchor, content)
				return content, nil
			}
		}
		if !errors.Is(err, store.ErrNotExist) {
			errs = append(errs, fmt.Errorf("%s: %w", m.name, err))
		}
	}
	return nil, errors.Join(errs...)
}
