package repo

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"
	"iter"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/store"
	"pitr/internal/store/file"
)

const (
	mib     = pg.SegmentSize(1 << 20)
	someDay = 1_790_000_000
)

var clockZero = time.Unix(someDay, 123456000).UTC()

// newRepo is an empty repository below a temporary directory. wrap, if not nil, decorates its store.
func newRepo(t testing.TB, wrap func(store.Store) store.Store) *Repo {
	t.Helper()
	files, err := file.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	compressor, err := NewCompressor("zstd:1")
	if err != nil {
		t.Fatal(err)
	}
	var s store.Store = files
	if wrap != nil {
		s = wrap(s)
	}
	return New(s, "main", compressor)
}

// hooked calls a function before each request to the store that it wraps.
type hooked struct {
	store.Store
	before func(operation, key string)
}

func (h *hooked) Put(ctx context.Context, key string, content []byte, opt store.PutOptions) error {
	h.before("put", key)
	return h.Store.Put(ctx, key, content, opt)
}

func (h *hooked) List(ctx context.Context, prefix, after string) iter.Seq2[store.Object, error] {
	h.before("list", prefix)
	return func(yield func(store.Object, error) bool) {
		for object, err := range h.Store.List(ctx, prefix, after) {
			h.before("listed", object.Key)
			if !yield(object, err) {
				return
			}
		}
	}
}

func (h *hooked) Delete(ctx context.Context, key string) error {
	h.before("delete", key)
	return h.Store.Delete(ctx, key)
}

// walBytes are the bytes of the log between two positions; every position has bytes of its own.
func walBytes(start, end pg.LSN) []byte {
	content := make([]byte, 0, end-start+8)
	for at := start &^ 7; at < end; at += 8 {
		v := (uint64(at) + 1) * 0x9E3779B97F4A7C15
		for i := range 8 {
			content = append(content, byte(v>>(8*i)))
		}
	}
	return content[start%8:][:end-start]
}

func putPart(t testing.TB, r *Repo, tli pg.Timeline, start, end pg.LSN) {
	t.Helper()
	if err := r.PutPart(t.Context(), mib, Part{Timeline: tli, Start: start, End: end}, clockZero, r.Pack(walBytes(start, end))); err != nil {
		t.Fatal(err)
	}
}

func putSegment(t testing.TB, r *Repo, tli pg.Timeline, number uint64) {
	t.Helper()
	var b StretchBuilder
	segment := pg.Segment{Timeline: tli, Number: number}
	start, end := segment.Start(mib), segment.End(mib)
	b.Add(walBytes(start, start+1000), r.Pack(walBytes(start, start+1000)))
	b.Add(walBytes(start+1000, end), r.Pack(walBytes(start+1000, end)))
	if err := r.PutStretch(t.Context(), mib, Part{Timeline: tli, Start: start, End: end}, clockZero, &b); err != nil {
		t.Fatal(err)
	}
}

// object returns the bytes that lie under a key of the repository.
func object(t testing.TB, r *Repo, key string) []byte {
	t.Helper()
	content, err := store.ReadAll(t.Context(), r.store, r.prefix+key, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// overwrite breaks law 3, as a failing disk or a stranger does.
func overwrite(t testing.TB, r *Repo, key string, content []byte) {
	t.Helper()
	if err := r.store.Put(t.Context(), r.prefix+key, content, store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, r *Repo, key string) {
	t.Helper()
	if err := r.store.Delete(t.Context(), r.prefix+key); err != nil {
		t.Fatal(err)
	}
}

func equal(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got %d bytes that differ from the %d that were written", what, len(got), len(want))
	}
}

func checksum(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(nil, crc32.Checksum(b, castagnoli))
}

// failing answers every request for reading with an error.
type failing struct {
	store.Store
	err error
}

func (f failing) Get(context.Context, string, int64, int64) (io.ReadCloser, error) { return nil, f.err }

func (f failing) List(context.Context, string, string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) { yield(store.Object{}, f.err) }
}
