package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"pitr/internal/store"
)

// Keep says that somebody wants a backup to stay, whatever the retention says. docs/FORMAT.md, "Keeps".
type Keep struct {
	Since  time.Time `json:"since"`
	Reason string    `json:"reason,omitempty"`
}

// Tombstone says that a backup was found to be needless, and since when: it is removed when it is still needless some time after.
// docs/FORMAT.md, "Tombstones".
type Tombstone struct {
	Since time.Time `json:"since"`
}

// Running says that a backup is being taken, and which backups' packs it may refer to. docs/FORMAT.md, "Running backups".
type Running struct {
	Since time.Time `json:"since"`
	Bases []string  `json:"bases"` // ids of backups
}

// noteSizeMax bounds a keep, a tombstone and the mark of a running backup.
const noteSizeMax = 1 << 20

// putNote puts a small JSON object. One that is there stays as it is.
func putNote(ctx context.Context, r *Repo, key string, value any) error {
	content, err := json.Marshal(value)
	if err == nil {
		err = r.store.Put(ctx, r.prefix+key, append(content, '\n'), store.PutOptions{IfAbsent: true})
	}
	if err != nil && !errors.Is(err, store.ErrExist) {
		return fmt.Errorf("put %s: %w", key, err)
	}
	return nil
}

// notes reads all small JSON objects of a directory, under the names of their backups.
func notes[T any](ctx context.Context, r *Repo, dir string) (map[string]T, error) {
	all := map[string]T{}
	err := r.keys(ctx, dir, func(object store.Object) error {
		backup := object.Key[len(dir):]
		if _, err := time.Parse(backupIDLayout, backup); err != nil {
			return fmt.Errorf("%s is named after no backup: %w", object.Key, ErrDamaged)
		}
		content, err := store.ReadAll(ctx, r.store, r.prefix+object.Key, noteSizeMax)
		if errors.Is(err, store.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return fmt.Errorf("get %s: %w", object.Key, err)
		}
		var value T
		if err := json.Unmarshal(content, &value); err != nil {
			return fmt.Errorf("get %s: %w: %w", object.Key, ErrDamaged, err)
		}
		all[backup] = value
		return nil
	})
	return all, err
}

func (r *Repo) deleteNote(ctx context.Context, key string) error {
	if err := r.store.Delete(ctx, r.prefix+key); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

// PutKeep lets a backup stay. ErrNotExist says that there is no such backup, or none any more. One that expiry is about to remove at this very
// moment may be gone afterwards all the same: it looks for keeps before each manifest.
func (r *Repo) PutKeep(ctx context.Context, backup string, k Keep) error {
	if _, err := r.ReadBackup(ctx, backup); err != nil {
		return fmt.Errorf("keep %s: %w", backup, err)
	}
	if err := putNote(ctx, r, keepsDir+backup, k); err != nil {
		return err
	}
	// Expiry may have looked for keeps just before, and removed it since.
	if _, err := r.ReadBackup(ctx, backup); err != nil {
		return fmt.Errorf("keep %s: %w", backup, err)
	}
	return nil
}

// Keeps are the backups that somebody wants to stay.
func (r *Repo) Keeps(ctx context.Context) (map[string]Keep, error) {
	return notes[Keep](ctx, r, keepsDir)
}

// DeleteKeep leaves a backup to the retention again.
func (r *Repo) DeleteKeep(ctx context.Context, backup string) error {
	return r.deleteNote(ctx, keepsDir+backup)
}

// PutTombstone notes that a backup is needless. The first one stays.
func (r *Repo) PutTombstone(ctx context.Context, backup string, t Tombstone) error {
	return putNote(ctx, r, tombstonesDir+backup, t)
}

// Tombstones are those of the backups that were found to be needless.
func (r *Repo) Tombstones(ctx context.Context) (map[string]Tombstone, error) {
	return notes[Tombstone](ctx, r, tombstonesDir)
}

// DeleteTombstone removes that of a backup that is gone, or needed again.
func (r *Repo) DeleteTombstone(ctx context.Context, backup string) error {
	return r.deleteNote(ctx, tombstonesDir+backup)
}

// ErrBegun says that another backup that is being taken has the id.
var ErrBegun = errors.New("another backup began in the same second")

// BeginBackup says that a backup is being taken that may refer to packs of the given ones, and returns those of them that it may refer to:
// whoever removes a backup puts its tombstone before it looks for running ones, and this looks for tombstones after it has said so. ErrBegun
// says that the id is another's, whose mark protects other bases and is not ours to remove.
func (r *Repo) BeginBackup(ctx context.Context, backup string, running Running) (bases []string, err error) {
	key := runningDir + backup
	if err := putNote(ctx, r, key, running); err != nil {
		return nil, err
	}
	want, err := json.Marshal(running)
	if err != nil {
		return nil, err
	}
	there, err := store.ReadAll(ctx, r.store, r.prefix+key, noteSizeMax)
	if err != nil && !errors.Is(err, store.ErrNotExist) { // it was another's, which has just ended
		return nil, fmt.Errorf("get %s: %w", key, err)
	}
	if !bytes.Equal(bytes.TrimSpace(there), want) {
		return nil, fmt.Errorf("put %s: %w", key, ErrBegun)
	}
	condemned, err := r.Tombstones(ctx)
	if err != nil {
		return nil, err
	}
	for _, base := range running.Bases {
		if _, dead := condemned[base]; dead {
			continue
		}
		// The tombstone goes last.
		_, err := r.header(ctx, manifestKey(base), KindManifest)
		if errors.Is(err, store.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look whether backup %s is there: %w", base, err)
		}
		bases = append(bases, base)
	}
	return bases, nil
}

// EndBackup says that a backup is not being taken any more: its manifest is there, or will never be.
func (r *Repo) EndBackup(ctx context.Context, backup string) error {
	return r.deleteNote(ctx, runningDir+backup)
}

// RunningBackups are those that are being taken, or whose end nobody has told.
func (r *Repo) RunningBackups(ctx context.Context) (map[string]Running, error) {
	return notes[Running](ctx, r, runningDir)
}
