package copies

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pitr/internal/store"
)

// ballot counts the members that hold what was put.
type ballot struct {
	s       *Store
	ctx     context.Context // the caller's
	key     string
	content []byte
	flights []*flight
	skipped []*member
	decided chan error

	held  int
	met   bool
	ref   []byte // what the first that holds it holds
	first *flight
	left  int // flights on their way
	told  bool
	early []*member // that were skipped on their way
	errs  []error
}

// count takes the outcomes one by one, decides as soon as it can, and stays until the last one is there.
func (b *ballot) count() {
	outcomes := make(chan *flight, len(b.flights))
	for _, f := range b.flights {
		b.s.tasks.Go(func() {
			<-f.done
			outcomes <- f
		})
	}
	b.left = len(b.flights)
	b.decide()
	for b.left > 0 {
		f := <-outcomes
		b.left--
		b.take(f)
		b.decide()
	}
	b.close()
}

func (b *ballot) take(f *flight) {
	m := f.member
	if f.err != nil {
		b.errs = append(b.errs, fmt.Errorf("%s: %w", m.name, f.err))
		b.failed(f)
		return
	}
	has := b.content
	if f.met {
		has, b.met = f.existing, true
	}
	if b.ref == nil {
		b.ref, b.first = has, f
	}
	// Who asks is gone, perhaps: the comparison may take an identity's reading of keys, and ends with the store.
	err := b.s.same(b.s.base, b.key, b.ref, has)
	if err != nil {
		var readErr error
		if err, readErr = b.again(f); readErr != nil {
			f.err = fmt.Errorf("compare: %w", readErr)
			b.errs = append(b.errs, fmt.Errorf("%s: %w", m.name, f.err))
			b.failed(f)
			return
		}
	}
	if err != nil {
		b.s.mu.Lock()
		defer b.s.mu.Unlock()
		err = b.s.clash(m, b.key, err)
		if !b.tell(err) && b.s.conflict == nil {
			b.s.conflict = err
		}
		return
	}
	b.held++
}

// again compares once more before anything is called a conflict: a server may show an object while it is being written.
func (b *ballot) again(f *flight) (differs, readErr error) {
	contents := [2][]byte{}
	for i, f := range []*flight{b.first, f} {
		content, err := store.ReadAll(b.s.base, f.member.store, b.key, existingMax)
		if err != nil {
			return nil, err
		}
		contents[i] = content
	}
	return b.s.same(b.s.base, b.key, contents[0], contents[1]), nil
}

// failed deals with a member that did not take the object, unless it is the caller who has changed his mind.
func (b *ballot) failed(f *flight) {
	s := b.s
	s.mu.Lock()
	defer s.mu.Unlock()
	f.settle()
	switch {
	case f.skipped:
		b.early = append(b.early, f.member)
	case f.recalled.Load(): // one has it, perhaps, and another has not
		s.recalled(f.member)
	default:
		s.fail(f, f.err)
	}
}

// settle takes a flight that was missed from what its member is behind. The caller holds Store.mu.
func (f *flight) settle() {
	delete(f.member.unnoted, f)
	if f.left && f.missed {
		f.member.backlog -= f.cost
	}
}

func (b *ballot) tell(err error) bool {
	if b.told {
		return false
	}
	b.told = true
	b.decided <- err
	return true
}

// decide answers the caller when the quorum holds the object, or cannot any more.
func (b *ballot) decide() {
	switch {
	case b.told:
	case b.held >= b.s.quorum:
		b.s.leave(b.key, b.flights)
		b.s.bound(b.key, b.ref)
		if b.met {
			b.tell(store.ErrExist)
		} else {
			b.tell(nil)
		}
	case b.held+b.left < b.s.quorum:
		b.tell(b.tooFew())
	}
}

// bound remembers the anchor, so that nobody needs to ask for it.
func (s *Store) bound(key string, content []byte) {
	if s.opt.Format == nil || key != s.opt.Format.Anchor() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.anchor == nil && s.opt.Format.Bound(content) == nil {
		s.anchor = content
	}
}

func (b *ballot) tooFew() error {
	if err := b.ctx.Err(); err != nil {
		return err
	}
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	for _, m := range b.skipped {
		b.errs = append(b.errs, fmt.Errorf("%s: behind since %s: %w", m.name, m.since.UTC().Format(time.RFC3339), m.cause))
	}
	return fmt.Errorf("%w: %d of %d, archive.quorum is %d: %w", ErrQuorum, b.held, len(b.s.members), b.s.quorum, errors.Join(b.errs...))
}

// close notes what became of an object of which all members have been heard.
func (b *ballot) close() {
	s := b.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.held == 0 {
		return
	}
	for _, m := range append(b.skipped, b.early...) {
		s.missed(m, b.key)
		s.recalled(m) // whoever fills it just now may have looked too soon
		s.fillSoon()
	}
}
