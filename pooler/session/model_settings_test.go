package session

import (
	"maps"
	"strings"
)

// modelSettings follows src/backend/utils/misc/guc.c: SET, SET LOCAL, savepoints, and what remains of it.
type modelSettings struct {
	now      modelValues
	before   *modelValues // at the beginning of the transaction, nil while nothing has changed
	saved    []modelSavepoint
	reported string
}

type modelValues struct{ session, local map[string]string }

type modelSavepoint struct {
	name string
	modelValues
}

func newModelSettings() modelSettings {
	return modelSettings{now: modelValues{map[string]string{}, map[string]string{}}}
}

func (v modelValues) copy() modelValues {
	return modelValues{maps.Clone(v.session), maps.Clone(v.local)}
}

func (s *modelSettings) get(name string) string {
	if value, found := s.now.local[name]; found {
		return value
	}
	return s.now.session[name]
}

func (s *modelSettings) begin() {
	if s.before == nil {
		before := s.now.copy()
		s.before = &before
	}
}

func (s *modelSettings) change(word, rest string, inTransaction bool) {
	s.begin()
	rest, local := strings.CutPrefix(rest, "local ")
	rest = strings.ReplaceAll(rest, `"`, "")
	name, value, _ := strings.Cut(rest, " = ")
	switch {
	case local && !inTransaction:
	case local:
		s.now.local[name] = value
	case word == "reset" && name == "all":
		clear(s.now.session)
		clear(s.now.local)
	case word == "reset":
		delete(s.now.session, name)
		delete(s.now.local, name)
	default:
		s.now.session[name] = value
		delete(s.now.local, name)
	}
}

func (s *modelSettings) commit() {
	clear(s.now.local)
	s.before, s.saved = nil, nil
}

func (s *modelSettings) rollback() {
	if s.before != nil {
		s.now = *s.before
	}
	s.commit()
}

func (s *modelSettings) savepoint(name string) {
	s.saved = append(s.saved, modelSavepoint{name, s.now.copy()})
}

func (s *modelSettings) place(name string) int {
	for i := len(s.saved) - 1; i >= 0; i-- {
		if s.saved[i].name == name {
			return i
		}
	}
	return -1
}

func (s *modelSettings) release(name string) bool {
	i := s.place(name)
	if i >= 0 {
		s.saved = s.saved[:i]
	}
	return i >= 0
}

func (m *model) rollbackTo(name string) (failed bool) {
	i := m.settings.place(name)
	if i < 0 || m.status == 'I' {
		m.fail("3B001")
		return true
	}
	m.settings.now = m.settings.saved[i].copy()
	m.settings.saved = m.settings.saved[:i+1]
	m.status = 'T'
	m.say('C', "ROLLBACK\x00")
	return false
}
