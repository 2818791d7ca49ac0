package restore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// fetched calls FetchWAL and returns what it has written; nil when there is nothing.
func fetched(t testing.TB, r *repo.Repo, name string, opt FetchOptions) ([]byte, error) {
	t.Helper()
	dir := t.TempDir()
	destination := filepath.Join(dir, "RECOVERYXLOG")
	err := FetchWAL(t.Context(), r, name, destination, opt)
	entries, dirErr := os.ReadDir(dir)
	if dirErr != nil {
		t.Fatal(dirErr)
	}
	if err != nil {
		if len(entries) != 0 {
			t.Errorf("fetch of %s failed and left %s", name, entries[0].Name())
		}
		return nil, err
	}
	content, err := os.ReadFile(destination)
	if err != nil || len(entries) != 1 {
		t.Fatalf("fetch of %s left %d files (%v)", name, len(entries), err)
	}
	return content, nil
}

func TestAFetchBringsWhatTheServerHasWritten(t *testing.T) {
	w := theWorld(t)
	inv, err := w.repo.Inventory(t.Context(), 1, w.size, 0)
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, number := range inv.Segments {
		name := pg.Segment{Timeline: 1, Number: number}.Name(w.size)
		want, err := os.ReadFile(filepath.Join(w.dir, "origin/pg_wal", name))
		if errors.Is(err, os.ErrNotExist) {
			continue // the server has removed it
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := fetched(t, w.repo, name, FetchOptions{})
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes that differ from the server's (%v)", name, len(got), err)
		}
		compared++
	}
	if compared < 3 {
		t.Errorf("%d segments were compared: the test shows nothing", compared)
	}
	// The open segment is filled with zeros, which to Postgres are the end of WAL.
	last := inv.Last()
	open, err := fetched(t, w.repo, w.size.Segment(1, last).Name(w.size), FetchOptions{})
	if err != nil || len(open) != int(w.size) || bytes.Trim(open[w.size.Offset(last):], "\x00") != nil && len(bytes.Trim(open[w.size.Offset(last):], "\x00")) > 0 {
		t.Errorf("the open segment has %d bytes (%v)", len(open), err)
	}
	history, err := fetched(t, w.repo, "00000002.history", FetchOptions{})
	if err != nil || !bytes.Contains(history, []byte(w.fork.String())) {
		t.Errorf("the history is %q (%v)", history, err)
	}
}

func TestOnlyWhatIsCertainlyAbsentIsCalledAbsent(t *testing.T) {
	w := theWorld(t)
	inv, err := w.repo.Inventory(t.Context(), 1, w.size, 0)
	if err != nil {
		t.Fatal(err)
	}
	behind := w.size.Segment(1, inv.Last()).Next().Name(w.size)
	absent := func(name string, want bool, r *repo.Repo) {
		t.Helper()
		if _, err := fetched(t, r, name, FetchOptions{}); err == nil || errors.Is(err, ErrAbsent) != want {
			t.Errorf("%s: %v; certainly absent: %t, want %t", name, err, errors.Is(err, ErrAbsent), want)
		}
	}
	whole := pg.Segment{Timeline: 1, Number: inv.Segments[len(inv.Segments)-2]}
	history := "00000009.history"
	absent(behind, true, w.repo)
	absent(history, true, w.repo)
	absent("000000010000000000000002.00000028.backup", true, w.repo)
	absent("nonsense", false, w.repo)
	absent("00000001000000000000ZZZZ", false, w.repo)

	// A hole in the archive is not its end.
	root, r, _ := w.copyOf(t)
	remove(t, filepath.Join(root, "main/wal/00000001", whole.Name(w.size)))
	absent(whole.Name(w.size), false, r)

	// Nor is a segment of which there is a beginning, when the archive goes on behind it.
	content, err := w.repo.ReadSegment(t.Context(), w.size, whole)
	if err != nil {
		t.Fatal(err)
	}
	start := whole.Start(w.size)
	if err := r.PutPart(t.Context(), w.size, repo.Part{Timeline: 1, Start: start, End: start + 8192}, w.backups[0].StopTime, r.Pack(content[:8192])); err != nil {
		t.Fatal(err)
	}
	absent(whole.Name(w.size), false, r)

	// A recovery that stops before the hole needs nothing behind it, but Postgres reads ahead.
	until := FetchOptions{Until: start + 8192}
	if content, err := fetched(t, r, whole.Name(w.size), until); err != nil || len(content) != int(w.size) || len(bytes.Trim(content[8192:], "\x00")) > 0 {
		t.Errorf("what lies before the stop is not brought: %d bytes, %v", len(content), err)
	}
	if _, err := fetched(t, r, whole.Name(w.size), FetchOptions{Until: start + 8193}); err == nil || errors.Is(err, ErrAbsent) {
		t.Errorf("what the stop needs is missing, and the fetch says %v", err)
	}
	remove(t, filepath.Join(root, "main/wal/00000001", whole.Name(w.size)+".parts"))
	if _, err := fetched(t, r, whole.Name(w.size), FetchOptions{Until: start}); !errors.Is(err, ErrAbsent) {
		t.Errorf("a segment behind the stop that is not there: %v", err)
	}
	absent(whole.Name(w.size), false, r)

	// Nor is what lies in no repository at all.
	empty, _ := openRepo(t, t.TempDir())
	absent(behind, false, empty)
	absent(history, false, empty)

	// Nor is anything that a store that fails does not bring.
	_, r, f := w.copyOf(t)
	for fault, spoil := range faults {
		f.onGet(func(_ int, _ string, body io.ReadCloser) (io.ReadCloser, error) { return spoil(body) })
		for _, name := range []string{behind, history, whole.Name(w.size), "00000002.history"} {
			if content, err := fetched(t, r, name, FetchOptions{}); err == nil || errors.Is(err, ErrAbsent) {
				t.Errorf("%s, answers %s: %d bytes, %v", name, fault, len(content), err)
			}
		}
	}
	f.onGet(nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := FetchWAL(ctx, r, behind, filepath.Join(t.TempDir(), "x"), FetchOptions{}); err == nil || errors.Is(err, ErrAbsent) {
		t.Errorf("an interrupted fetch says %v", err)
	}
}
