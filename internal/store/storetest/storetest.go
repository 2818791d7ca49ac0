// Package storetest is the contract of store.Store as tests. Every driver runs it against the real thing.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pitr/internal/store"
)

// Run holds the store against every sentence of the contract. open gives a fresh, empty store.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	t.Run("what was put is there, whole and in any range", func(t *testing.T) { ranges(t, open(t)) })
	t.Run("of sixteen conditional puts one wins", func(t *testing.T) { racers(t, open(t)) })
	t.Run("an unconditional put replaces", func(t *testing.T) { replace(t, open(t)) })
	t.Run("an absent object is certainly absent", func(t *testing.T) { absent(t, open(t)) })
	t.Run("listing is ordered, filtered, resumed and paged", func(t *testing.T) { listing(t, open(t)) })
	t.Run("deleting twice is no error", func(t *testing.T) { deleting(t, open(t)) })
	t.Run("a cancelled context writes nothing", func(t *testing.T) { cancelled(t, open(t)) })
	t.Run("impossible keys are refused", func(t *testing.T) { keys(t, open(t)) })
	t.Run("a probe finds nothing missing and leaves nothing", func(t *testing.T) { probed(t, open(t)) })
}

func probed(t *testing.T, s store.Store) {
	for _, found := range store.Probe(t.Context(), s, time.Now) {
		if found.Err != nil {
			t.Errorf("%s: %v; so %s", found.What, found.Err, found.Consequence)
		}
	}
	for object, err := range s.List(t.Context(), "", "") {
		t.Errorf("%s is left, %v", object.Key, err)
	}
}

func put(t *testing.T, s store.Store, key string, content []byte) {
	t.Helper()
	if err := s.Put(t.Context(), key, content, store.PutOptions{}); err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
}

func get(t *testing.T, s store.Store, key string, offset, length int64) []byte {
	t.Helper()
	body, err := s.Get(t.Context(), key, offset, length)
	if err != nil {
		t.Fatalf("get %s [%d,%d]: %v", key, offset, length, err)
	}
	content, err := io.ReadAll(body)
	if err := errors.Join(err, body.Close()); err != nil {
		t.Fatalf("get %s [%d,%d]: %v", key, offset, length, err)
	}
	return content
}

func ranges(t *testing.T, s store.Store) {
	content := make([]byte, 3<<20+17)
	for i := range content {
		content[i] = byte(i * 7 / 3)
	}
	put(t, s, "a/big", content)
	put(t, s, "a/empty", nil)
	for _, r := range [][2]int64{{0, -1}, {0, 1}, {0, 0}, {5, 10}, {1 << 20, 1 << 20}, {3 << 20, -1}, {3 << 20, 100}, {0, 4 << 20}} {
		end := int64(len(content))
		if r[1] >= 0 {
			end = min(end, r[0]+r[1])
		}
		if got := get(t, s, "a/big", r[0], r[1]); !bytes.Equal(got, content[r[0]:end]) {
			t.Errorf("range %v: %d bytes, want %d, or other ones", r, len(got), end-r[0])
		}
	}
	for _, length := range []int64{-1, 0, 5} {
		if got := get(t, s, "a/empty", 0, length); len(got) != 0 {
			t.Errorf("the empty object has %d bytes", len(got))
		}
	}
	for _, offset := range []int64{int64(len(content)), int64(len(content)) + 1, -1} {
		if _, err := s.Get(t.Context(), "a/big", offset, 1); !errors.Is(err, store.ErrRange) {
			t.Errorf("a range from %d: %v, want ErrRange", offset, err)
		}
	}
}

func racers(t *testing.T, s store.Store) {
	var wins, losses atomic.Int32
	var winner atomic.Value
	var wait sync.WaitGroup
	for i := range 16 {
		wait.Go(func() {
			content := bytes.Repeat([]byte{byte('a' + i)}, 100_000)
			switch err := s.Put(t.Context(), "race/key", content, store.PutOptions{IfAbsent: true}); {
			case err == nil:
				wins.Add(1)
				winner.Store(content)
			case errors.Is(err, store.ErrExist):
				losses.Add(1)
			default:
				t.Errorf("racer %d: %v", i, err)
			}
		})
	}
	wait.Wait()
	if wins.Load() != 1 || losses.Load() != 15 {
		t.Fatalf("%d won, %d lost", wins.Load(), losses.Load())
	}
	if got := get(t, s, "race/key", 0, -1); !bytes.Equal(got, winner.Load().([]byte)) {
		t.Error("the object is not the winner's")
	}
	if err := s.Put(t.Context(), "race/key", []byte("late"), store.PutOptions{IfAbsent: true}); !errors.Is(err, store.ErrExist) {
		t.Errorf("a late one got %v", err)
	}
}

func replace(t *testing.T, s store.Store) {
	put(t, s, "k", []byte("a long first content"))
	put(t, s, "k", []byte("second"))
	if got := get(t, s, "k", 0, -1); string(got) != "second" {
		t.Errorf("got %q", got)
	}
}

func absent(t *testing.T, s store.Store) {
	put(t, s, "dir/object", []byte("x"))
	for _, key := range []string{"nothing", "dir/other", "no/such/dir/object", "dir"} {
		for _, length := range []int64{-1, 0, 5} {
			if body, err := s.Get(t.Context(), key, 0, length); !errors.Is(err, store.ErrNotExist) {
				t.Errorf("get %s gave %v, %v", key, body, err)
			}
		}
	}
	for object, err := range s.List(t.Context(), "nothing/", "") {
		t.Errorf("an empty listing yielded %v, %v", object, err)
	}
}

func list(t *testing.T, s store.Store, prefix, after string) []string {
	t.Helper()
	var names []string
	for object, err := range s.List(t.Context(), prefix, after) {
		if err != nil {
			t.Fatalf("list %q after %q: %v", prefix, after, err)
		}
		if object.Size != int64(len(object.Key)) || object.Modified.IsZero() {
			t.Errorf("%s has size %d, modified %s", object.Key, object.Size, object.Modified)
		}
		names = append(names, object.Key)
	}
	return names
}

func listing(t *testing.T, s store.Store) {
	var all []string
	for i := range 1100 { // more than a page of S3
		all = append(all, fmt.Sprintf("wal/%04d", i))
	}
	// names around a slash, whose place in the order of bytes is easy to get wrong
	all = append(all, "wal/0003.parts/a", "wal/0003.parts/b", "wal/0003-x", "wam", "wal-b", "x/y")
	slices.Sort(all)
	for _, key := range all {
		put(t, s, key, []byte(key))
	}
	expect := func(prefix, after string) {
		t.Helper()
		var want []string
		for _, key := range all {
			if key > after && len(key) >= len(prefix) && key[:len(prefix)] == prefix {
				want = append(want, key)
			}
		}
		if got := list(t, s, prefix, after); !slices.Equal(got, want) {
			t.Errorf("list %q after %q: %d keys, want %d, or in another order", prefix, after, len(got), len(want))
		}
	}
	expect("", "")
	expect("wal/", "")
	expect("wal/0003", "")
	expect("wal/0003.parts/", "")
	expect("wal/", "wal/0500")
	expect("wal/", "wal/0003.parts/a")
	expect("wa", "wal/1099")
	expect("", "zzz")
	count := 0
	for range s.List(t.Context(), "wal/", "") {
		if count++; count == 3 {
			break
		}
	}
	if count != 3 {
		t.Errorf("the listing went on behind a break, or ended early: %d", count)
	}
}

func deleting(t *testing.T, s store.Store) {
	put(t, s, "gone/soon", []byte("x"))
	for range 2 {
		if err := s.Delete(t.Context(), "gone/soon"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Get(t.Context(), "gone/soon", 0, -1); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if err := s.Delete(t.Context(), "never/was"); err != nil {
		t.Errorf("deleting what never was: %v", err)
	}
}

func cancelled(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Put(ctx, "cancelled", []byte("x"), store.PutOptions{}); err == nil {
		t.Error("a cancelled put succeeded")
	}
	if _, err := s.Get(t.Context(), "cancelled", 0, -1); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("a cancelled put wrote: %v", err)
	}
	put(t, s, "kept", []byte("x"))
	if err := s.Delete(ctx, "kept"); err == nil {
		t.Error("a cancelled delete succeeded")
	}
	get(t, s, "kept", 0, -1)
	failed := false
	for _, err := range s.List(ctx, "", "") {
		failed = failed || err != nil
	}
	if !failed {
		t.Error("a cancelled listing ended as if it were complete")
	}
	if _, err := s.Get(ctx, "kept", 0, -1); err == nil || errors.Is(err, store.ErrNotExist) {
		t.Errorf("a cancelled get said %v", err)
	}
}

func keys(t *testing.T, s store.Store) {
	for _, key := range []string{"", "/", "/a", "a/", "a//b", "../a", "a/../b", ".", "a/./b", "a\x00b", string(make([]byte, 2000))} {
		if err := s.Put(t.Context(), key, nil, store.PutOptions{}); !errors.Is(err, store.ErrKey) {
			t.Errorf("put %q: %v", key, err)
		}
		if _, err := s.Get(t.Context(), key, 0, -1); !errors.Is(err, store.ErrKey) {
			t.Errorf("get %q: %v", key, err)
		}
		if err := s.Delete(t.Context(), key); !errors.Is(err, store.ErrKey) {
			t.Errorf("delete %q: %v", key, err)
		}
	}
}
