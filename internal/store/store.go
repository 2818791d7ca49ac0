// Package store is the object store as pitr needs it: four methods, and decorators for retry, measurement and faults around them.
// What lies in the objects is the business of internal/repo. The drivers are store/file and store/s3; store/storetest is the
// contract as tests.
package store

import (
	"context"
	"errors"
	"io"
	"iter"
	"strings"
	"time"
)

// Store keeps objects under keys.
//
// A key is a relative slash-separated path of non-empty elements, none of which is "." or "..", up to KeyMax bytes. No key is
// another one followed by a slash: stores that keep files could not hold both.
// Every method may be called from many goroutines. A cancelled context makes a call return soon; a Put that has returned an error
// has either written the whole object or nothing, and the caller cannot tell which.
type Store interface {
	// Put writes an object, durably and as a whole: when it returns nil, every later Get and List sees it, also after a crash of
	// the store. With IfAbsent it fails with ErrExist when the key is taken, and of several racers exactly one wins.
	Put(ctx context.Context, key string, content []byte, opt PutOptions) error

	// Get reads length bytes from offset, or all from offset when length is negative. It fails with ErrNotExist only when the
	// object is certainly absent; a store that cannot tell fails with another error. A range that begins behind the end fails with
	// ErrRange, one that ends behind it is cut short. The caller closes the reader and checks the reader's errors: a body that
	// breaks off is io.ErrUnexpectedEOF or the transport's error, never a quiet io.EOF.
	Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)

	// List yields the objects whose key begins with prefix and is greater than after, in the order of the keys' bytes. The prefix
	// is a string, not a directory. An error ends the sequence; a prefix without objects is none.
	List(ctx context.Context, prefix, after string) iter.Seq2[Object, error]

	// Delete removes an object. An absent one is no error.
	Delete(ctx context.Context, key string) error
}

// PutOptions changes what Put does.
type PutOptions struct {
	IfAbsent bool
}

// Use says what an object is for, as far as a store may treat objects differently.
type Use int

const (
	// Kept is a small object that stays.
	Kept Use = iota
	// Bulk is an object that stays and holds much.
	Bulk
	// Brief is an object that a larger one replaces soon.
	Brief
	// Passing is one that the next of its kind replaces, and whose loss costs no data.
	Passing
)

// ProbePrefix is that of the objects by which Probe tries a store. No repository has such keys.
const ProbePrefix = "pitr-probe/"

// Object is one line of a listing.
type Object struct {
	Key      string
	Size     int64
	Modified time.Time
}

// KeyMax is the longest key in bytes: the limit of S3.
const KeyMax = 1024

var (
	// ErrNotExist says that an object is certainly absent.
	ErrNotExist = errors.New("object does not exist")
	// ErrExist says that IfAbsent met an object under the key.
	ErrExist = errors.New("object exists already")
	// ErrRange says that a range begins behind the end of the object.
	ErrRange = errors.New("range begins behind the end of the object")
	// ErrKey says that a string cannot be a key.
	ErrKey = errors.New("not a valid key")
	// ErrPermanent marks errors that sending the request again cannot mend, such as a wrong credential or an absent bucket.
	ErrPermanent = errors.New("asking again would not help")
	// ErrDenied says that the credentials may not do what was asked, or that there are none. It is permanent.
	ErrDenied = errors.New("the credentials do not allow it")
	// ErrLocked says that an object cannot be removed yet, whoever asks: the store retains it. It is permanent.
	ErrLocked = errors.New("the object is retained and cannot be removed yet")
)

// CheckKey returns ErrKey for what the contract does not allow as a key.
func CheckKey(key string) error {
	if key == "" || len(key) > KeyMax || strings.ContainsRune(key, 0) {
		return ErrKey
	}
	for element := range strings.SplitSeq(key, "/") {
		if element == "" || element == "." || element == ".." || strings.HasPrefix(element, ".pitr-tmp-") {
			return ErrKey
		}
	}
	return nil
}

// ReadAll gets a whole object, or fails when it is longer than max bytes.
func ReadAll(ctx context.Context, s Store, key string, max int64) ([]byte, error) {
	body, err := s.Get(ctx, key, 0, -1)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(body, max+1))
	if err := errors.Join(err, body.Close()); err != nil {
		return nil, err
	}
	if int64(len(content)) > max {
		return nil, errors.New("object is longer than expected")
	}
	return content, nil
}

// ReadRange gets exactly length bytes from offset; fewer are io.ErrUnexpectedEOF.
func ReadRange(ctx context.Context, s Store, key string, offset, length int64) ([]byte, error) {
	body, err := s.Get(ctx, key, offset, length)
	if err != nil {
		return nil, err
	}
	content := make([]byte, length)
	_, err = io.ReadFull(body, content)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return content, errors.Join(err, body.Close())
}
