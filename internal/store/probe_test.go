package store_test

import (
	"context"
	"errors"
	"io"
	"iter"
	"strings"
	"testing"
	"time"

	"pitr/internal/store"
	"pitr/internal/store/file"
)

// flawed is a store that lacks one thing.
type flawed struct {
	store.Store
	lacks string
}

func (f flawed) Put(ctx context.Context, key string, content []byte, opt store.PutOptions) error {
	switch f.lacks {
	case "put":
		return errors.New("403 Forbidden")
	case "conditional put":
		opt.IfAbsent = false
	}
	return f.Store.Put(ctx, key, content, opt)
}

func (f flawed) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	switch {
	case f.lacks == "get":
		return io.NopCloser(strings.NewReader("something else")), nil
	case f.lacks == "ranged get" && offset > 0:
		return f.Store.Get(ctx, key, 0, -1)
	}
	body, err := f.Store.Get(ctx, key, offset, length)
	if f.lacks == "get of what is absent" && errors.Is(err, store.ErrNotExist) {
		err = errors.New("403 Forbidden")
	}
	return body, err
}

func (f flawed) List(ctx context.Context, prefix, after string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		if f.lacks == "list after put" {
			return
		}
		for object, err := range f.Store.List(ctx, prefix, after) {
			if f.lacks == "a clock" {
				object.Modified = object.Modified.Add(time.Hour)
			}
			if !yield(object, err) {
				return
			}
		}
	}
}

func (f flawed) Delete(ctx context.Context, key string) error {
	switch f.lacks {
	case "delete":
		return nil
	case "rights":
		return store.ErrDenied
	}
	return f.Store.Delete(ctx, key)
}

func TestProbeNamesWhatAStoreLacks(t *testing.T) {
	for _, c := range []struct {
		lacks  string
		failed []string
	}{
		{"", nil},
		{"put", []string{"put"}},
		{"conditional put", []string{"conditional put"}},
		{"get", []string{"conditional put", "get", "ranged get", "get of what is absent", "delete"}},
		{"ranged get", []string{"ranged get"}},
		{"list after put", []string{"list after put"}},
		{"a clock", []string{"clock"}},
		{"get of what is absent", []string{"get of what is absent", "delete"}},
		{"delete", []string{"delete"}},
		{"rights", []string{"delete"}},
	} {
		files, err := file.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		var failed []string
		for _, found := range store.Probe(t.Context(), flawed{files, c.lacks}, time.Now) {
			if found.Err != nil {
				failed = append(failed, found.What)
			}
			if found.Bearable != (c.lacks == "rights" && found.What == "delete") {
				t.Errorf("without %s: %s is bearable: %v", c.lacks, found.What, found.Bearable)
			}
			if found.Consequence == "" {
				t.Errorf("%s has no consequence", found.What)
			}
		}
		if strings.Join(failed, ", ") != strings.Join(c.failed, ", ") {
			t.Errorf("a store that lacks %q: failed %q, want %q", c.lacks, failed, c.failed)
		}
		for object, err := range files.List(t.Context(), "", "") {
			if c.lacks != "delete" && c.lacks != "rights" {
				t.Errorf("%s was left behind, %v", object.Key, err)
			}
		}
	}
}
