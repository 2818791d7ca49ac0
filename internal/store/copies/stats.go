package copies

import (
	"fmt"
	"time"
)

// Stat is what is known of one member.
type Stat struct {
	Name      string
	State     string // live, filling or away
	Behind    bool   // it lacks something, or it is not known yet that it does not
	Since     time.Time
	Cause     string
	Frontier  uint64    // it holds all WAL up to there that any member does, as an LSN; zero: not known
	Missing   int       // objects that it lacks
	Oldest    time.Time // of these; zero: none
	Backlog   int64     // bytes that are on their way to it without anybody waiting
	Conflicts uint64
	Filled    uint64
	Overflows uint64 // times that archive.copies_buffer_max was reached
}

// Stats is a snapshot of all members, in their order.
func (s *Store) Stats() []Stat {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Stat
	for _, m := range s.members {
		st := Stat{Name: m.name, State: m.state.String(), Behind: m.state != live, Since: m.since, Missing: m.lack.objects, Oldest: m.lack.oldest,
			Backlog: m.backlog, Conflicts: m.counts.conflicts, Filled: m.counts.filled, Overflows: m.counts.overflows}
		if m.cause != nil {
			st.Cause = m.cause.Error()
		}
		if m.lack.known {
			st.Frontier = s.highest
			if m.lack.from != 0 {
				st.Frontier = min(st.Frontier, m.lack.from)
			}
		}
		for f := range m.unnoted {
			s.lacks(&st, f)
		}
		for _, f := range m.flights {
			if !m.unnoted[f] {
				s.lacks(&st, f)
			}
		}
		list = append(list, st)
	}
	return list
}

// lacks counts a put whose caller has gone and that has not arrived. The caller holds mu.
func (s *Store) lacks(st *Stat, f *flight) {
	if !f.left || f.removes {
		return
	}
	st.Missing++
	if st.Oldest.IsZero() || f.began.Before(st.Oldest) {
		st.Oldest = f.began
	}
	if start, _, ok := s.position(f.key); ok && st.Frontier != 0 {
		st.Frontier = min(st.Frontier, start)
	}
}

// DamagedReads counts the objects that were damaged in one member and read from another.
func (s *Store) DamagedReads() uint64 { return s.damaged.Load() }

// Ready fails when too few members take what is put, or when two hold other content under one key.
func (s *Store) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conflict != nil {
		return s.conflict
	}
	var gone []*member
	for _, m := range s.members {
		if len(m.clashes) > 0 {
			return fmt.Errorf("%s holds other content than the other stores under %d keys", m.name, len(m.clashes))
		}
		if m.state == away {
			gone = append(gone, m)
		}
	}
	if taking := len(s.members) - len(gone); taking < s.quorum {
		return fmt.Errorf("%d of %d stores take objects, archive.quorum is %d; away: %s", taking, len(s.members), s.quorum, names(gone))
	}
	return nil
}
