package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"pitr/internal/store"
)

// WrappedKey is a data key as it lies in the store: wrapped once, or several times while it is being wrapped anew.
type WrappedKey struct {
	ID    string   `json:"id"`
	Wraps []string `json:"wraps"` // keys of objects, oldest first
}

// WrappedKeys lists the data keys. Their names say all.
func (r *Repo) WrappedKeys(ctx context.Context) ([]WrappedKey, error) {
	var list []WrappedKey
	err := r.keys(ctx, keysDir, func(object store.Object) error {
		id, number, _ := strings.Cut(object.Key[len(keysDir):], "/")
		if _, err := parseKeyID(id); err != nil || len(number) < 6 || strings.Trim(number, "0123456789") != "" {
			return fmt.Errorf("list %s: %s is no data key: %w", keysDir, object.Key, ErrDamaged)
		}
		if n := len(list); n == 0 || list[n-1].ID != id {
			list = append(list, WrappedKey{ID: id})
		}
		k := &list[len(list)-1]
		k.Wraps = append(k.Wraps, object.Key)
		return nil
	})
	return list, err
}

// Rewrap wraps a data key for the present recipients, and removes what it was wrapped in before. What it opens is not touched. The new
// wrapping has a name of its own and is read back before an old one goes: whenever this is killed, the key can be opened.
func (r *Repo) Rewrap(ctx context.Context, k WrappedKey) error {
	if !r.Encrypts() {
		return errors.New("rewrap: there are no recipients: archive.encryption.recipients is empty")
	}
	id, err := parseKeyID(k.ID)
	if err != nil {
		return fmt.Errorf("rewrap %s: %w", k.ID, err)
	}
	key, err := r.readingKey(ctx, id)
	if err != nil {
		return fmt.Errorf("rewrap %s: %w", k.ID, err)
	}
	wrapped, err := wrap(key, r.crypt.recipients)
	if err != nil {
		return fmt.Errorf("rewrap %s: %w", k.ID, err)
	}
	newest := k.Wraps[len(k.Wraps)-1]
	last, err := strconv.Atoi(newest[strings.LastIndexByte(newest, '/')+1:])
	if err != nil {
		return fmt.Errorf("rewrap %s: %w", k.ID, err)
	}
	name := wrapKey(id, last+1)
	// A name that is taken is somebody's who does the same: nothing is removed then.
	if err := r.store.Put(ctx, r.prefix+name, wrapped, store.PutOptions{IfAbsent: true}); err != nil {
		return fmt.Errorf("rewrap %s: put %s: %w", k.ID, name, err)
	}
	back, err := store.ReadAll(ctx, r.store, r.prefix+name, wrapSizeMax)
	if err != nil {
		return fmt.Errorf("rewrap %s: get %s: %w", k.ID, name, err)
	}
	if !bytes.Equal(back, wrapped) {
		return fmt.Errorf("rewrap %s: get %s: %w: it is not what was written", k.ID, name, ErrDamaged)
	}
	for _, old := range k.Wraps {
		if err := r.store.Delete(ctx, r.prefix+old); err != nil {
			return fmt.Errorf("rewrap %s: delete %s: %w", k.ID, old, err)
		}
	}
	return nil
}
