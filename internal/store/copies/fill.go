package copies

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"pitr/internal/store"
)

// Pauses between attempts to fill, doubling from the first to the last.
const (
	fillPauseMin = time.Second
	fillPauseMax = 30 * time.Second
	// fillsInFlight bounds how many objects are copied at a time; archive.copies_buffer_max bounds their bytes.
	fillsInFlight = 8
)

// Run keeps the members equal until ctx ends. While they are it compares their listings every Options.Check and asks nothing otherwise.
// expire removes what the retention does not need; it is called before a backup is filled, since a store that was away may show one that
// has been removed.
func (s *Store) Run(ctx context.Context, expire func(context.Context) error) {
	for pause := fillPauseMin; ; {
		wait := s.opt.Check
		err := s.Fill(ctx, expire)
		if ctx.Err() != nil {
			return
		}
		if err != nil || !s.allLive() {
			wait = pause
			pause = min(2*pause, fillPauseMax)
		} else {
			pause = fillPauseMin
		}
		if err != nil {
			s.opt.Log.Warn("the stores are not equal yet", "error", err, "again_in", wait)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
			continue
		case <-s.wake:
		}
		// What was just put may still be on its way everywhere.
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-time.After(min(wait, fillPauseMin)):
		}
		timer.Stop()
	}
}

func (s *Store) allLive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !slices.ContainsFunc(s.members, func(m *member) bool { return m.state != live })
}

// filler is one pass over the listings.
type filler struct {
	s        *Store
	members  []*member // that can be reached
	failures []int     // of these when the pass began
	complete bool      // these are all members
	needless func(key, next string) bool
	copied   int
	lost     map[*member]bool
}

// Fill compares the members and copies to each what it lacks, oldest first. Those that had no failure meanwhile hold everything then.
func (s *Store) Fill(ctx context.Context, expire func(context.Context) error) error {
	s.passMu.Lock()
	defer s.passMu.Unlock()
	f := &filler{s: s, lost: map[*member]bool{}, needless: func(string, string) bool { return false }}
	errs := []error{f.reach(ctx)}
	if len(f.members) == 0 {
		return errs[0]
	}
	s.mu.Lock()
	for _, m := range f.members {
		f.failures = append(f.failures, m.failures)
	}
	s.mu.Unlock()
	missing, hidden, err := f.survey(ctx)
	if err == nil && missing > 0 {
		if hidden && expire != nil {
			err = expire(ctx)
		}
		if err == nil && s.opt.Format != nil {
			f.needless, err = s.opt.Format.Judge(ctx)
		}
		if err == nil {
			err = f.copyAll(ctx)
		}
	}
	if err == nil {
		f.finish()
	}
	return errors.Join(append(errs, err)...)
}

// reach asks each member whether it answers, and whether it belongs to the same as the others.
func (f *filler) reach(ctx context.Context) error {
	var errs []error
	for _, m := range f.s.members {
		err := f.s.admit(ctx, m, "")
		if err == nil {
			for _, listErr := range m.quick.List(ctx, f.root(), "") {
				err = listErr
				break
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		f.s.mu.Lock()
		if err != nil {
			f.s.move(m, away, err)
			errs = append(errs, fmt.Errorf("%s: %w", m.name, err))
		} else {
			f.members = append(f.members, m)
			if m.state == away {
				f.s.move(m, filling, nil)
			}
		}
		f.s.mu.Unlock()
	}
	f.complete = len(f.members) == len(f.s.members)
	return errors.Join(errs...)
}

func (f *filler) root() string {
	if f.s.opt.Format == nil {
		return ""
	}
	return f.s.opt.Format.Root()
}

// rows are the keys that not all members hold alike, in the order of filling. wait is called when all before the last prefix are through.
func (f *filler) rows(ctx context.Context, wait func()) iter.Seq2[row, error] {
	return func(yield func(row, error) bool) {
		order := []string{f.root()}
		if f.s.opt.Format != nil {
			order = f.s.opt.Format.Order()
		}
		last := len(order) - 1
		for i, prefix := range order {
			if i == last {
				if last > 0 && !f.others(ctx, order, yield) {
					return
				}
				wait()
			}
			if !f.list(ctx, prefix, "", nil, yield) {
				return
			}
		}
	}
}

// others are the rows below no known prefix. It jumps over those that are known.
func (f *filler) others(ctx context.Context, order []string, yield func(row, error) bool) bool {
	after := ""
	for {
		jump := ""
		ok := f.list(ctx, f.root(), after, func(key string) bool {
			for _, prefix := range append(f.s.sole(), order...) {
				if len(key) > len(prefix) && key[:len(prefix)] == prefix {
					jump = prefix + "~" // behind all that names contain
					return true
				}
			}
			return false
		}, yield)
		if !ok || jump == "" {
			return ok
		}
		after = jump
	}
}

// list yields the differing rows of a prefix until stop says so; false means that nobody wants more.
func (f *filler) list(ctx context.Context, prefix, after string, stop func(key string) bool, yield func(row, error) bool) bool {
	fail := func(m *member, err error) error {
		if ctx.Err() == nil {
			f.lose(m, err)
		}
		return fmt.Errorf("list %s: %w", m.name, err)
	}
	for r, err := range f.s.merge(ctx, f.members, prefix, after, fail) {
		if err != nil {
			yield(r, err)
			return false
		}
		if stop != nil && stop(r.key) {
			return true
		}
		if !yield(r, nil) {
			return false
		}
	}
	return true
}

// lose gives a member up for this pass.
func (f *filler) lose(m *member, err error) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	f.lost[m] = true
	m.failures++
	f.s.move(m, away, err)
}

// unequal reports whether some member lacks the object, or holds one of another size. What is on its way is not looked at.
func (f *filler) unequal(r row) bool {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	size, differs := int64(-1), false
	for i, m := range f.members {
		if m.flights[r.key] != nil {
			return false
		}
		object := r.objects[i]
		switch {
		case object.Key == "":
			differs = true
		case size >= 0 && object.Size != size:
			differs = true
		default:
			size = object.Size
		}
	}
	return differs
}

// survey counts what each member lacks. hidden: something that makes other objects visible is among it.
func (f *filler) survey(ctx context.Context) (missing int, hidden bool, err error) {
	lacks := make([]lack, len(f.members))
	highest := uint64(0)
	for r, err := range f.rows(ctx, func() {}) {
		if err != nil {
			return 0, false, err
		}
		start, end, isWAL := f.s.position(r.key)
		highest = max(highest, end)
		if !f.unequal(r) {
			continue
		}
		missing++
		hidden = hidden || f.s.last(r.key)
		for i := range f.members {
			if r.objects[i].Key == "" {
				lacks[i].note(r, start, isWAL)
			}
		}
	}
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	f.s.highest = max(f.s.highest, highest)
	for i, m := range f.members {
		if m.state == filling {
			m.lack = lacks[i]
			m.lack.known = true
		}
		if n := lacks[i].objects; n > 0 {
			f.s.opt.Log.Info("a store lacks objects that another has", "store", m.name, "objects", n)
		}
	}
	return missing, hidden, nil
}

func (l *lack) note(r row, start uint64, isWAL bool) {
	l.objects++
	for _, object := range r.objects {
		if object.Key != "" && (l.oldest.IsZero() || object.Modified.Before(l.oldest)) {
			l.oldest = object.Modified
		}
	}
	if isWAL && (l.from == 0 || start < l.from) {
		l.from = start
	}
}

// copyAll goes through the listings again and makes the members equal, some objects at a time.
func (f *filler) copyAll(ctx context.Context) error {
	var batch []job
	var errs []error
	bytes := int64(0)
	flush := func() {
		errs = append(errs, f.carryOut(ctx, batch)...)
		batch, bytes = nil, 0
	}
	held := row{} // its judgement needs the key behind it
	take := func(next string) {
		j := job{row: held, needless: held.key != "" && f.needless(held.key, next)}
		if held.key == "" || !f.unequal(held) {
			return
		}
		size := j.size()
		if len(batch) == fillsInFlight || len(batch) > 0 && bytes+size > f.s.opt.BufferMax {
			flush()
		}
		batch, bytes = append(batch, j), bytes+size
	}
	settle := func() {
		take("")
		held = row{}
		flush()
	}
	for r, err := range f.rows(ctx, settle) {
		if err != nil {
			errs = append(errs, err)
			break
		}
		take(r.key)
		held = r
		if len(errs) > 0 || ctx.Err() != nil {
			break // what comes later may rest on what has failed
		}
	}
	if len(errs) == 0 && ctx.Err() == nil {
		settle()
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// job is an object that is not alike everywhere.
type job struct {
	row
	needless bool
}

func (j job) size() (size int64) {
	for _, object := range j.objects {
		size = max(size, object.Size)
	}
	return size
}

// carryOut copies what some lack, and then removes what may be gone: when what replaces it has arrived.
func (f *filler) carryOut(ctx context.Context, batch []job) []error {
	var lacking, removals []job
	for _, j := range batch {
		if j.needless {
			removals = append(removals, j)
		} else {
			lacking = append(lacking, j)
		}
	}
	if errs := f.together(ctx, lacking); len(errs) > 0 {
		return errs
	}
	return f.together(ctx, removals)
}

// together carries out jobs at the same time.
func (f *filler) together(ctx context.Context, batch []job) []error {
	var wait sync.WaitGroup
	var mu sync.Mutex // guards errs
	var errs []error
	for _, j := range batch {
		wait.Go(func() {
			err := f.one(ctx, j)
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("fill %s: %w", j.key, err))
			}
		})
	}
	wait.Wait()
	return errs
}

// one makes the members alike in one object: it removes what may be gone and is gone elsewhere, or copies what some lack.
func (f *filler) one(ctx context.Context, j job) error {
	if j.needless {
		if !f.complete || f.s.opt.Format.Kept(j.key) {
			return nil
		}
		return f.remove(ctx, j)
	}
	from := slices.IndexFunc(j.objects, func(o store.Object) bool { return o.Key != "" })
	content, err := store.ReadAll(ctx, f.members[from].store, j.key, existingMax)
	if errors.Is(err, store.ErrNotExist) {
		return nil // removed since it was listed
	}
	if err != nil {
		f.lose(f.members[from], err)
		return err
	}
	for i, m := range f.members {
		switch {
		case i == from:
		case j.objects[i].Key == "":
			err = errors.Join(err, f.give(ctx, m, j, content))
		case j.objects[i].Size != j.objects[from].Size:
			err = errors.Join(err, f.compare(ctx, m, j, content))
		}
	}
	return err
}

// give puts an object to a member that lacks it.
func (f *filler) give(ctx context.Context, m *member, j job, content []byte) error {
	err := m.store.Put(ctx, j.key, content, store.PutOptions{IfAbsent: true})
	if errors.Is(err, store.ErrExist) {
		return f.compare(ctx, m, j, content)
	}
	if err != nil {
		if ctx.Err() == nil {
			f.lose(m, err)
		}
		return fmt.Errorf("%s: %w", m.name, err)
	}
	f.s.filled.Add(1)
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	m.counts.filled++
	m.given++
	m.lack.objects = max(0, m.lack.objects-1)
	if _, end, ok := f.s.position(j.key); ok && m.lack.from != 0 {
		m.lack.from = max(m.lack.from, end)
	}
	return nil
}

// compare holds what a member has under a key against what another one has there. A conflict is told, and is no reason to stop.
func (f *filler) compare(ctx context.Context, m *member, j job, content []byte) error {
	has, err := store.ReadAll(ctx, m.store, j.key, existingMax)
	if errors.Is(err, store.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", m.name, err)
	}
	err = f.s.same(ctx, j.key, content, has)
	if err != nil { // a server may show an object while it is being written: look again
		from := slices.IndexFunc(j.objects, func(o store.Object) bool { return o.Key != "" })
		again, err1 := store.ReadAll(ctx, f.members[from].store, j.key, existingMax)
		has, err2 := store.ReadAll(ctx, m.store, j.key, existingMax)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("compare: %w", err)
		}
		err = f.s.same(ctx, j.key, again, has)
	}
	if err != nil && ctx.Err() == nil {
		f.s.mu.Lock()
		defer f.s.mu.Unlock()
		_ = f.s.clash(m, j.key, err) // told and counted
	}
	return nil
}

// remove makes up for deletions that a member has missed.
func (f *filler) remove(ctx context.Context, j job) error {
	for i, m := range f.members {
		if j.objects[i].Key == "" {
			continue
		}
		if err := m.store.Delete(ctx, j.key); err != nil && !refused(err) {
			f.lose(m, err)
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}

// finish calls those members live that had no failure during the pass. What is only among themselves equal is not: another member may
// hold more.
func (f *filler) finish() {
	s := f.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, m := range f.members {
		switch {
		case f.lost[m] || m.failures != f.failures[i] || m.state == away:
		case f.complete || m.state == live:
			s.move(m, live, nil)
		}
	}
}
