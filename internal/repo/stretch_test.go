package repo

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/store"
)

// interrupted is a store in which something happens right before a part is read.
type interrupted struct {
	store.Store
	happens func()
}

func (s *interrupted) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if happens := s.happens; happens != nil && strings.Contains(key, partsSuffix+"/") {
		s.happens = nil
		happens()
	}
	return s.Store.Get(ctx, key, offset, length)
}

// TestLargeSegmentIsReadWhileItsPartsArePutTogether replaces the parts of a stretch between the moment in which they are listed and that in
// which they are read.
func TestLargeSegmentIsReadWhileItsPartsArePutTogether(t *testing.T) {
	const size = pg.SegmentSize(128 << 20)
	stretch := Stretch(size)
	segment := pg.Segment{Timeline: 1, Number: 1}
	start := segment.Start(size)
	r := newRepo(t, nil)
	content := bytes.Repeat([]byte("WAL of a large segment. "), int(stretch)/24+1)[:stretch]
	part := func(from, to pg.LSN) Part { return Part{Timeline: 1, Start: start + from, End: start + to} }
	put := func(p Part) {
		t.Helper()
		if err := r.PutPart(t.Context(), size, p, time.Time{}, r.Pack(content[p.Start-start:p.End-start])); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(p Part) {
		t.Helper()
		if err := r.DeletePart(t.Context(), size, p); err != nil {
			t.Fatal(err)
		}
	}
	small := []Part{part(0, stretch/2), part(stretch/2, stretch)}
	watched := &interrupted{Store: r.store}
	r.store = watched
	read := map[string]func() ([]byte, error){
		"ReadSegment": func() ([]byte, error) { return r.ReadSegment(t.Context(), size, segment) },
		"VisitSegment": func() (got []byte, err error) {
			err = r.VisitSegment(t.Context(), size, segment, func(at pg.LSN, piece []byte) error {
				if at != start+pg.LSN(len(got)) {
					t.Errorf("a piece at %s behind %d bytes", at, len(got))
				}
				got = append(got, piece...)
				return nil
			})
			return got, err
		},
	}
	for what, read := range read {
		for _, p := range small {
			put(p)
		}
		watched.happens = func() {
			var b StretchBuilder
			b.Add(content, r.Pack(content))
			if err := r.PutStretch(t.Context(), size, part(0, stretch), time.Time{}, &b); err != nil {
				t.Error(err)
			}
			for _, p := range small {
				remove(p)
			}
		}
		got, err := read()
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes, %v", what, len(got), err)
		}
		remove(part(0, stretch))

		// A part that is listed and cannot be read is damage, however often one looks.
		put(small[0])
		watched.happens = nil
		gone := &absentParts{Store: watched.Store}
		r.store = gone
		if _, err := read(); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s of a part that is listed and not there: %v", what, err)
		}
		r.store = watched
		remove(small[0])
		if _, err := read(); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("%s of nothing: %v", what, err)
		}
	}
}

// absentParts lists parts and has none.
type absentParts struct{ store.Store }

func (s *absentParts) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if strings.Contains(key, partsSuffix+"/") {
		return nil, store.ErrNotExist
	}
	return s.Store.Get(ctx, key, offset, length)
}
