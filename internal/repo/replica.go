package repo

import (
	"errors"

	"pitr/internal/store"
)

// replicated is a store that is made of several, each of which may hold an object that is damaged in another.
type replicated interface {
	Replicas() []store.Store
	Damaged(key string, found error, number int)
	Doubt()
}

// from is the repository as one store has it.
func (r *Repo) from(s store.Store) *Repo {
	one := *r
	one.store = s
	return &one
}

// elsewhere is called when an object was read with an error. If it is damaged it is read from one store after the other.
func (r *Repo) elsewhere(key string, err error, read func(one *Repo) error) error {
	several, ok := r.store.(replicated)
	if !ok || !errors.Is(err, ErrDamaged) {
		return err
	}
	for i, s := range several.Replicas() {
		if read(r.from(s)) == nil {
			several.Damaged(key, err, i)
			return nil
		}
	}
	return err
}

// Stores is how many stores the repository lies in.
func (r *Repo) Stores() int {
	if several, ok := r.store.(replicated); ok {
		return len(several.Replicas())
	}
	return 1
}

// Attempt is the repository as an attempt of this number should read it: the first one, 0, from whichever store answers, further ones
// from one store after the other, since a piece of an object tells nothing of who has damaged it.
func (r *Repo) Attempt(number int) *Repo {
	several, ok := r.store.(replicated)
	if !ok || number == 0 {
		return r
	}
	stores := several.Replicas()
	return r.from(stores[(number-1)%len(stores)])
}

// Recovered tells that an attempt has succeeded with an object that was damaged for an earlier one.
func (r *Repo) Recovered(p Pack, found error, attempt int) {
	if several, ok := r.store.(replicated); ok && attempt > 0 && errors.Is(found, ErrDamaged) {
		several.Damaged(p.Key, found, (attempt-1)%len(several.Replicas()))
	}
}

// Doubt tells that another process may have written here, and not to every store: what is known of them is to be found out again.
func (r *Repo) Doubt() {
	if several, ok := r.store.(replicated); ok {
		several.Doubt()
	}
}
