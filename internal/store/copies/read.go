package copies

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"pitr/internal/store"
)

// deafFor is how long reads ask a member last that has not answered.
const deafFor = 30 * time.Second

// sole lists the prefixes of what lies in the first member alone.
func (s *Store) sole() []string {
	if s.opt.Format == nil {
		return nil
	}
	return s.opt.Format.Sole()
}

func (s *Store) isSole(key string) bool {
	return slices.ContainsFunc(s.sole(), func(prefix string) bool { return strings.HasPrefix(key, prefix) })
}

// readers are the members in the order in which they are asked for an object: those that are away, or have not answered, or wait for a
// put of it, come last. A member that is about to delete it has it no more.
func (s *Store) readers(key string) []*member {
	s.mu.Lock()
	defer s.mu.Unlock()
	rank := func(m *member) int {
		switch f := m.flights[key]; {
		case m.state == away || time.Now().Before(m.deaf):
			return 2
		case f != nil && !f.removes:
			return 1
		}
		return 0
	}
	var list []*member
	for _, m := range s.members {
		if f := m.flights[key]; f == nil || !f.removes {
			list = append(list, m)
		}
	}
	slices.SortStableFunc(list, func(a, b *member) int { return rank(a) - rank(b) })
	return list
}

func (s *Store) heard(m *member, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.deaf = time.Time{}
	if err != nil {
		m.deaf = time.Now().Add(deafFor)
	}
}

// isDeaf reports whether a member has not answered lately, so that asking it again and again would only take time.
func (s *Store) isDeaf(m *member) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Before(m.deaf)
}

// answered reports whether an error is an answer about the object.
func answered(err error) bool {
	return errors.Is(err, store.ErrNotExist) || errors.Is(err, store.ErrRange) || errors.Is(err, store.ErrKey)
}

// Get implements store.Store. It asks one member after the other, each once and then with retries. The object is absent only when all
// members say so but those that nothing acknowledged can be on alone: see vouched. A body comes from one member to its end, and breaks off when that does.
func (s *Store) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := store.CheckKey(key); err != nil {
		return nil, fmt.Errorf("key %q: %w", key, err)
	}
	if s.isSole(key) {
		return s.members[0].store.Get(ctx, key, offset, length)
	}
	waiting := s.readers(key)
	var errs []error
	var lacking []*member
	for _, quick := range []bool{true, false} {
		var silent []*member
		errs = nil
		for _, m := range waiting {
			from := m.store
			if quick && len(s.members) > 1 {
				from = m.quick
			}
			body, err := from.Get(ctx, key, offset, length)
			switch {
			case err == nil:
				s.heard(m, nil)
				return body, nil
			case ctx.Err() != nil:
				return nil, err
			case errors.Is(err, store.ErrNotExist):
				lacking = append(lacking, m)
			case answered(err):
				return nil, err
			default:
				s.heard(m, err)
				silent = append(silent, m)
				errs = append(errs, fmt.Errorf("%s: %w", m.name, err))
			}
		}
		if waiting = silent; s.vouched(lacking, len(waiting)) {
			return nil, store.ErrNotExist
		}
	}
	return nil, fmt.Errorf("no store that answers has it: %w", errors.Join(errs...))
}

// vouched reports whether those who have answered know of all that was acknowledged although so many others are silent: these are fewer
// than the quorum, or one who has answered is known to hold everything.
func (s *Store) vouched(by []*member, silent int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return silent < s.quorum || slices.ContainsFunc(by, func(m *member) bool {
		return m.state == live && m.backlog == 0
	})
}

// List implements store.Store: what any member holds. It fails when it may lack something for which a put has returned: see vouched.
func (s *Store) List(ctx context.Context, prefix, after string) iter.Seq2[store.Object, error] {
	if s.isSole(prefix) {
		return s.members[0].store.List(ctx, prefix, after)
	}
	return func(yield func(store.Object, error) bool) {
		failed := 0
		listed := slices.Clone(s.members)
		tolerate := func(m *member, err error) error {
			failed++
			listed = slices.DeleteFunc(listed, func(other *member) bool { return other == m })
			if ctx.Err() != nil || !s.vouched(listed, failed) {
				return fmt.Errorf("%s cannot be listed, and may hold what no other store does (archive.quorum is %d); if it is lost, take it out of archive.store and archive.copies: %w", m.name, s.quorum, err)
			}
			s.heard(m, err)
			return nil
		}
		for row, err := range s.merge(ctx, s.members, prefix, after, tolerate) {
			if err != nil {
				yield(store.Object{}, err)
				return
			}
			i := slices.IndexFunc(row.objects, func(o store.Object) bool { return o.Key != "" })
			if s.isGoing(row) {
				continue
			}
			if !yield(row.objects[i], nil) {
				return
			}
		}
	}
}

// isGoing reports whether all members that list an object are about to delete it.
func (s *Store) isGoing(r row) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, object := range r.objects {
		if f := r.members[i].flights[r.key]; object.Key != "" && (f == nil || !f.removes) {
			return false
		}
	}
	return true
}

// row is a key of the joined listing: what each of the members has there.
type row struct {
	key     string
	members []*member
	objects []store.Object // one for each member; the zero value: it has none
}

// merge lists members side by side, in the order of keys. fail decides whether the listing goes on without a member.
func (s *Store) merge(ctx context.Context, members []*member, prefix, after string, fail func(*member, error) error) iter.Seq2[row, error] {
	return func(yield func(row, error) bool) {
		heads := make([]store.Object, len(members))
		next := make([]func() (store.Object, error, bool), len(members))
		var failure error
		advance := func(i int) {
			object, err, ok := next[i]()
			heads[i] = store.Object{}
			switch {
			case !ok:
			case err == nil:
				heads[i] = object
			case failure == nil:
				failure = fail(members[i], err)
			}
		}
		for i, m := range members {
			from := m.store
			if s.isDeaf(m) {
				from = m.quick
			}
			pull, stop := iter.Pull2(from.List(ctx, prefix, after))
			defer stop()
			next[i] = pull
			advance(i)
		}
		for failure == nil {
			r := row{members: members, objects: make([]store.Object, len(members))}
			for _, head := range heads {
				if head.Key != "" && (r.key == "" || head.Key < r.key) {
					r.key = head.Key
				}
			}
			if r.key == "" {
				return
			}
			for i, head := range heads {
				if head.Key == r.key {
					r.objects[i] = head
					advance(i)
				}
			}
			if failure == nil && !yield(r, nil) {
				return
			}
		}
		yield(row{}, failure)
	}
}

// Replicas are the members one by one, for those who have found an object of one damaged.
func (s *Store) Replicas() []store.Store {
	list := make([]store.Store, len(s.members))
	for i, m := range s.members {
		list[i] = m.store
	}
	return list
}

// Damaged notes that an object could not be used as some member has it, and was read from the one of that number in Replicas.
func (s *Store) Damaged(key string, found error, number int) {
	s.damaged.Add(1)
	s.opt.Log.Warn("an object is damaged in one store and was read from another", "key", key, "read_from", s.members[number].name, "error", found,
		"hint", "pitr verify --level checksum tells which store; remove the object there, and it is filled again")
}

// names lists members for people.
func names(members []*member) string {
	list := make([]string, len(members))
	for i, m := range members {
		list[i] = m.name
	}
	return strings.Join(list, ", ")
}
