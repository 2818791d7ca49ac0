package auth

import (
	"context"
	"sync"
	"time"
)

// Query asks a database for a user's secret, as auth_query does. found is false if there is nobody who may log in by that name.
type Query func(ctx context.Context, database, user string) (secret string, found bool, err error)

// lookups remembers what auth_query has answered, also that somebody does not exist.
type lookups struct {
	ask      Query
	max      int
	lifetime time.Duration

	// mu guards entries and overflows. Nothing is waited for while it is held.
	mu        sync.Mutex
	entries   map[lookupKey]*lookup
	overflows uint64
}

type lookupKey struct{ database, user string }

// lookup is one answer, or the wait for it.
type lookup struct {
	done chan struct{} // closed once the fields below are set
	user *user         // nil: there is nobody by that name
	err  error
	at   time.Time
}

// fresh reports whether the answer may still be used, and true for one that is awaited.
func (l *lookup) fresh(now time.Time, lifetime time.Duration) bool {
	select {
	case <-l.done:
		return now.Sub(l.at) < lifetime
	default:
		return true
	}
}

// userNameMax is NAMEDATALEN in src/include/pg_config_manual.h: nobody has a longer name, and nobody's is asked for or remembered.
const userNameMax = 64

// find returns the user of that name, or nil. Who asks for the same user at the same time gets the same answer.
func (l *lookups) find(ctx context.Context, database, name string, made func(secret string) (*user, error)) (*user, error) {
	if len(name) >= userNameMax {
		return nil, nil
	}
	key := lookupKey{database, name}
	l.mu.Lock()
	entry := l.entries[key]
	if entry != nil && entry.fresh(time.Now(), l.lifetime) {
		l.mu.Unlock()
		select {
		case <-entry.done:
			return entry.user, entry.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	l.room()
	entry = &lookup{done: make(chan struct{})}
	l.entries[key] = entry
	l.mu.Unlock()
	text, found, err := l.ask(ctx, database, name)
	if err == nil {
		if entry.user, err = made(text); !found {
			entry.user = nil
		}
	}
	entry.err, entry.at = err, time.Now()
	close(entry.done)
	if err != nil {
		l.mu.Lock()
		if l.entries[key] == entry {
			delete(l.entries, key)
		}
		l.mu.Unlock()
	}
	return entry.user, err
}

// room makes room for one more: of what is too old, or else of anything. The caller holds mu.
func (l *lookups) room() {
	if len(l.entries) < l.max {
		return
	}
	now := time.Now()
	for key, entry := range l.entries {
		if !entry.fresh(now, l.lifetime) {
			delete(l.entries, key)
		}
	}
	for key := range l.entries {
		if len(l.entries) < l.max {
			return
		}
		l.overflows++
		delete(l.entries, key)
	}
}

// staleAfter is how old an answer is at least that a failed login makes be asked for again: the password may have been changed, but
// whoever guesses does not get a query for each guess.
const staleAfter = time.Second

// failed notes that somebody could not log in with what is remembered.
func (l *lookups) failed(database, name string) {
	key := lookupKey{database, name}
	l.mu.Lock()
	defer l.mu.Unlock()
	if entry := l.entries[key]; entry != nil && !entry.fresh(time.Now(), min(staleAfter, l.lifetime)) {
		delete(l.entries, key)
	}
}
