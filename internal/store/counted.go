package store

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync/atomic"
)

// Counts are the requests that a store has seen since it was wrapped.
type Counts struct {
	Puts, Gets, Lists, Deletes atomic.Uint64
	Failures                   atomic.Uint64 // answers other than success, ErrNotExist and ErrExist
	BytesPut                   atomic.Uint64
	DeletesDenied              atomic.Uint64 // that the credentials do not allow, asked or not: see Denied
	DeletesLocked              atomic.Uint64 // of objects that the store retains
}

// Counted counts into c what inner is asked. It belongs under Retry, so that every attempt counts.
func Counted(inner Store, c *Counts) Store { return &counted{inner, c} }

type counted struct {
	inner Store
	c     *Counts
}

func (s *counted) outcome(err error) error {
	if err != nil && !errors.Is(err, ErrNotExist) && !errors.Is(err, ErrExist) && !errors.Is(err, context.Canceled) {
		s.c.Failures.Add(1)
	}
	return err
}

func (s *counted) Put(ctx context.Context, key string, content []byte, opt PutOptions) error {
	s.c.Puts.Add(1)
	err := s.outcome(s.inner.Put(ctx, key, content, opt))
	if err == nil {
		s.c.BytesPut.Add(uint64(len(content)))
	}
	return err
}

func (s *counted) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	s.c.Gets.Add(1)
	body, err := s.inner.Get(ctx, key, offset, length)
	return body, s.outcome(err)
}

func (s *counted) List(ctx context.Context, prefix, after string) iter.Seq2[Object, error] {
	s.c.Lists.Add(1)
	return func(yield func(Object, error) bool) {
		for object, err := range s.inner.List(ctx, prefix, after) {
			if !yield(object, s.outcome(err)) {
				return
			}
		}
	}
}

func (s *counted) Delete(ctx context.Context, key string) error {
	s.c.Deletes.Add(1)
	err := s.inner.Delete(ctx, key)
	if errors.Is(err, ErrDenied) || errors.Is(err, ErrLocked) {
		return err // an answer, which Denied counts
	}
	return s.outcome(err)
}
