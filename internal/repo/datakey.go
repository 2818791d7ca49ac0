package repo

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"filippo.io/age"

	"pitr/internal/store"
)

// keyID names a data key. It is random and says nothing.
type keyID [16]byte

func (id keyID) String() string { return hex.EncodeToString(id[:]) }

func parseKeyID(text string) (id keyID, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("%q is no id of a data key", text)
	}
	return keyID(b), nil
}

const (
	dataKeySize = 32
	// dataKeyLifetime bounds what one data key opens: whoever looks into the memory of a running writer learns that of one day.
	dataKeyLifetime = 24 * time.Hour
	// wrapSizeMax bounds a wrapped data key: some 200 bytes and 100 for each recipient, 1,600 for a hybrid one.
	wrapSizeMax = 1 << 20
)

// dataKey is what a writer encrypts with. The store has it wrapped for the recipients only.
type dataKey struct {
	id   keyID
	key  [dataKeySize]byte
	made time.Time
}

func wrapKey(id keyID, number int) string { return fmt.Sprintf("%s%s/%06d", keysDir, id, number) }

// writingKey returns the key for what is written now. A new one is in the store before anything is encrypted with it.
func (r *Repo) writingKey(ctx context.Context) (*dataKey, error) {
	c := r.crypt
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writing != nil && time.Since(c.writing.made) < dataKeyLifetime {
		return c.writing, nil
	}
	k := &dataKey{made: time.Now()}
	rand.Read(k.id[:])
	rand.Read(k.key[:])
	wrapped, err := wrap(k.key, c.recipients)
	if err != nil {
		return nil, err
	}
	err = r.store.Put(ctx, r.prefix+wrapKey(k.id, 0), wrapped, store.PutOptions{IfAbsent: true})
	if err != nil && !errors.Is(err, store.ErrExist) { // nobody else draws the same id: it was an attempt of ours that has arrived
		return nil, fmt.Errorf("put %s: %w", wrapKey(k.id, 0), err)
	}
	c.writing = k
	return k, nil
}

func wrap(key [dataKeySize]byte, recipients []age.Recipient) ([]byte, error) {
	var wrapped bytes.Buffer
	w, err := age.Encrypt(&wrapped, recipients...)
	if err != nil {
		return nil, fmt.Errorf("wrap a data key: %w", err)
	}
	_, err = w.Write(key[:])
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("wrap a data key: %w", err)
	}
	return wrapped.Bytes(), nil
}

// readingKey returns the data key of an id, opened with the identities.
func (r *Repo) readingKey(ctx context.Context, id keyID) ([dataKeySize]byte, error) {
	c := r.crypt
	c.mu.Lock()
	defer c.mu.Unlock()
	if key, known := c.known[id]; known {
		return key, nil
	}
	if err := c.loadIdentities(); err != nil {
		return [dataKeySize]byte{}, err
	}
	key, err := r.unwrap(ctx, id)
	if errors.Is(err, store.ErrNotExist) {
		key, err = r.unwrap(ctx, id) // it was wrapped anew while we looked
	}
	if errors.Is(err, store.ErrNotExist) {
		return key, fmt.Errorf("%w: its data key %s is not there any more", ErrDamaged, id)
	}
	if err == nil {
		c.known[id] = key
	}
	return key, err
}

// loadIdentities reads the identity file once. The caller holds mu.
func (c *crypt) loadIdentities() error {
	if c.identities != nil {
		return nil
	}
	if c.identityFile == "" {
		return ErrNoIdentity
	}
	content, err := os.ReadFile(c.identityFile)
	if err != nil {
		return fmt.Errorf("%w that can be read: %s", ErrNoIdentity, err.Error())
	}
	identities, err := age.ParseIdentities(bytes.NewReader(content))
	if err != nil {
		return fmt.Errorf("%w that can be used: %s: %s", ErrNoIdentity, c.identityFile, err.Error())
	}
	c.identities = identities
	return nil
}

// unwrap opens a data key with whichever of its wrappings fits; the newest comes first. The caller holds mu.
func (r *Repo) unwrap(ctx context.Context, id keyID) (key [dataKeySize]byte, err error) {
	var wraps []string
	dir := keysDir + id.String() + "/"
	err = r.keys(ctx, dir, func(object store.Object) error {
		wraps = append(wraps, object.Key)
		return nil
	})
	if err != nil {
		return key, err
	}
	if len(wraps) == 0 {
		return key, fmt.Errorf("list %s: %w", dir, store.ErrNotExist)
	}
	var errs []error
	for _, name := range slices.Backward(wraps) {
		wrapped, err := store.ReadAll(ctx, r.store, r.prefix+name, wrapSizeMax)
		if err == nil {
			key, err = openWrap(wrapped, r.crypt.identities)
		}
		if err == nil {
			return key, nil
		}
		errs = append(errs, fmt.Errorf("get %s: %w", name, err))
	}
	return key, errors.Join(errs...)
}

func openWrap(wrapped []byte, identities []age.Identity) (key [dataKeySize]byte, err error) {
	plain, err := age.Decrypt(bytes.NewReader(wrapped), identities...)
	var noMatch *age.NoIdentityMatchError
	if errors.As(err, &noMatch) {
		return key, ErrWrongIdentity
	}
	if err != nil {
		return key, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	content, err := io.ReadAll(io.LimitReader(plain, dataKeySize+1))
	if err != nil || len(content) != dataKeySize {
		return key, fmt.Errorf("%w: it holds no data key (%d bytes, %v)", ErrDamaged, len(content), err)
	}
	return [dataKeySize]byte(content), nil
}
