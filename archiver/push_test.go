package archiver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// finished makes the server finish some segments, of which records span the boundaries, and returns their names in order.
func (b *bench) finished() []string {
	b.t.Helper()
	first := b.query("select pg_walfile_name(pg_current_wal_insert_lsn())")
	b.query("create table load as select i, md5(i::text) from generate_series(1, 30000) i")
	b.query("select pg_logical_emit_message(true, 'pitr', repeat('big', 300000))") // goes on into the next segment
	b.query("select pg_create_restore_point('here')")
	b.query("insert into load select i, md5(i::text) from generate_series(1, 10000) i")
	b.query("select pg_switch_wal()")
	b.query("checkpoint")
	last := b.query("select pg_walfile_name(pg_current_wal_insert_lsn())")
	var names []string
	for segment := b.parse(first); segment != b.parse(last); segment = segment.Next() {
		names = append(names, segment.Name(b.size))
	}
	if len(names) < 3 {
		b.t.Fatalf("only %v were finished", names)
	}
	return names
}

func (b *bench) parse(name string) pg.Segment {
	b.t.Helper()
	segment, err := pg.ParseSegmentName(name, b.size)
	if err != nil {
		b.t.Fatal(err)
	}
	return segment
}

func (b *bench) walFile(name string) []byte {
	b.t.Helper()
	content, err := os.ReadFile(filepath.Join(b.server.Dir, "pg_wal", name))
	if err != nil {
		b.t.Fatal(err)
	}
	return content
}

func (b *bench) pusher() *Pusher {
	return NewPusher(b.repo, slog.New(slog.NewTextHandler(b.log, nil)))
}

func pushFile(name string, content, before []byte) PushFile {
	f := PushFile{Name: name, Size: int64(len(content)), Content: bytes.NewReader(content)}
	f.Sum = func() ([sha256.Size]byte, error) { return sha256.Sum256(content), nil }
	if header, err := wal.ParseSegmentHeader(content); err == nil && pg.IsSegmentName(name) {
		f.SystemID, f.Segments = header.SystemID, header.SegmentSize
	}
	if before != nil {
		f.Before = bytes.NewReader(before)
	}
	return f
}

func (b *bench) push(name string, content, before []byte) error {
	_, err := b.pusher().Push(b.t.Context(), pushFile(name, content, before))
	return err
}

func TestPushedSegmentsAreWhatTheArchiverWouldHaveStored(t *testing.T) {
	b := newBench(t, 1, "wal_keep_size=1GB")
	a := b.run(b.options())
	a.archived(b.written())
	names := b.finished()
	a.archived(b.written())
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	streamed := b.repo
	_, pushedRepo := newStore(t)
	var before []byte
	for _, name := range names {
		b.repo = pushedRepo
		content := b.walFile(name)
		for range 2 { // the second time it is there already
			if err := b.push(name, content, before); err != nil {
				t.Fatal(err)
			}
		}
		before = content
		got, err := pushedRepo.ReadSegment(t.Context(), b.size, b.parse(name))
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes came back, %v", name, len(got), err)
		}
		b.sameIndex(streamed, pushedRepo, name, name == names[0])
	}
}

// sameIndex compares what an index says of the log. Without the segment before there is none for a segment that goes on with a record.
func (b *bench) sameIndex(streamed, pushed *repo.Repo, name string, first bool) {
	b.t.Helper()
	want, err := streamed.ReadIndex(b.t.Context(), b.size, b.parse(name))
	if err != nil {
		b.t.Fatal(err)
	}
	got, err := pushed.ReadIndex(b.t.Context(), b.size, b.parse(name))
	if first && errors.Is(err, repo.ErrNotExist) {
		return
	}
	if err != nil {
		b.t.Fatal(err)
	}
	want.Clocks, got.Clocks = nil, nil
	wanted, err1 := json.Marshal(want)
	have, err2 := json.Marshal(got)
	if err := errors.Join(err1, err2); err != nil || !bytes.Equal(wanted, have) {
		b.t.Errorf("%s: the pushed segment's index is %s, the streamed one's %s (%v)", name, have, wanted, err)
	}
}

func TestPushRefusesWhatIsNoSegmentOfThisCluster(t *testing.T) {
	b := newBench(t, 1, "wal_keep_size=1GB")
	names := b.finished()
	name, content := names[1], b.walFile(names[1])
	refused := func(what, name string, content []byte, text string, is error) {
		t.Helper()
		err := b.push(name, content, nil)
		if err == nil || !strings.Contains(err.Error(), text) || is != nil && !errors.Is(err, is) {
			t.Errorf("%s: %v", what, err)
		}
	}
	damaged := bytes.Clone(content)
	damaged[len(damaged)/2] ^= 1
	refused("a flipped bit", name, damaged, "it is damaged, and was not stored", nil)
	torn := append(bytes.Clone(content[:len(content)/2]), make([]byte, len(content)/2)...)
	refused("zeros from the middle on", name, torn, "it is damaged, and was not stored", nil)
	refused("half of it", name, content[:len(content)/2], "was it cut off?", nil)
	refused("ten bytes", name, content[:10], "segment header has 10 bytes", nil)
	refused("nothing", name, nil, "segment header has 0 bytes", nil)
	refused("another name", names[2], content, "its content is that of the segment at", nil)
	refused("an impossible name", "0000000100000000FFFFFFFF", content, "no such segment", nil)
	refused("no name of pg_wal", "postgresql.conf", content, "it is no segment", nil)
	if inv, err := b.repo.Inventory(t.Context(), 1, b.size, 0); err != nil || len(inv.Segments)+len(inv.Parts) > 0 {
		t.Errorf("something was stored: %+v, %v", inv, err)
	}
	if err := b.push(name, content, nil); err != nil {
		t.Fatal(err)
	}
	other := newBench(t, 1, "wal_keep_size=1GB")
	foreign := other.walFile(other.finished()[0])
	refused("another cluster's", other.parse(names[0]).Name(b.size), foreign, "", repo.ErrForeign)
	refused("a damaged one of what is there", name, damaged, "the key holds other content", repo.ErrConflict)
	// What was stored stays as it is.
	if got, err := b.repo.ReadSegment(t.Context(), b.size, b.parse(name)); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestPushOfOtherContentIsAConflict(t *testing.T) {
	b := newBench(t, 1, "wal_keep_size=1GB")
	names := b.finished()
	writer, _ := b.encrypted()
	for what, opt := range map[string]repo.Encryption{"plain": {}, "encrypted": writer} {
		b.store, b.repo = newStore(t)
		b.repo = b.with(opt)
		if err := b.push(names[0], b.walFile(names[0]), nil); err != nil {
			t.Fatal(err)
		}
		var other repo.StretchBuilder
		other.Add(make([]byte, b.size), b.repo.Pack(make([]byte, b.size)))
		if err := b.repo.PutStretch(t.Context(), b.size, b.wholeOf(names[1]), time.Time{}, &other); err != nil {
			t.Fatal(err)
		}
		if err := b.push(names[1], b.walFile(names[1]), nil); !errors.Is(err, repo.ErrConflict) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestPushFailsWhileTheStoreDoes(t *testing.T) {
	b := newBench(t, 1, "wal_keep_size=1GB")
	names := b.finished()
	for _, failing := range []string{"cluster.json", "/wal/", "/index/"} {
		injected := errors.New("injected: 503")
		b.store.onPut(func(_ context.Context, key string, _ []byte, put func() error) error {
			if strings.Contains(key, failing) {
				return injected
			}
			return put()
		})
		if err := b.push(names[0], b.walFile(names[0]), nil); !errors.Is(err, injected) && failing != "/index/" {
			t.Errorf("%s: %v", failing, err)
		}
	}
	b.store.onPut(nil)
	if err := b.push(names[0], b.walFile(names[0]), nil); err != nil {
		t.Error(err)
	}
}

func TestPushedFilesThatAreNoSegments(t *testing.T) {
	b := newBench(t, 1, "wal_keep_size=1GB")
	names := b.finished()
	header, err := wal.ParseSegmentHeader(b.walFile(names[0]))
	if err != nil {
		t.Fatal(err)
	}
	history := []byte("1\t0/A00000\tno recovery target specified\n")
	f := pushFile("00000002.history", history, nil)
	if _, err := b.pusher().Push(t.Context(), f); err == nil || !strings.Contains(err.Error(), "to which cluster it belongs") {
		t.Errorf("a history file of nobody: %v", err)
	}
	f = pushFile("00000002.history", history, nil)
	f.SystemID, f.Segments = header.SystemID, header.SegmentSize
	if _, err := b.pusher().Push(t.Context(), f); err != nil {
		t.Error(err)
	}
	if got, err := b.repo.HistoryFile(t.Context(), 2); err != nil || !bytes.Equal(got, history) {
		t.Errorf("%q, %v", got, err)
	}
	f = pushFile("00000002.history", []byte("1\t0/B00000\tanother\n"), nil)
	f.SystemID, f.Segments = header.SystemID, header.SegmentSize
	if _, err := b.pusher().Push(t.Context(), f); !errors.Is(err, repo.ErrConflict) {
		t.Errorf("another history: %v", err)
	}
	remark, err := b.pusher().Push(t.Context(), pushFile(names[0]+".00000028.backup", []byte("START WAL LOCATION"), nil))
	if err != nil || !strings.Contains(remark, "not stored") {
		t.Errorf("%q, %v", remark, err)
	}
}

func TestPartialSegmentIsStoredUpToWhereItsLogEnds(t *testing.T) {
	b := newBench(t, 1, "wal_keep_size=1GB")
	names := b.finished()
	content := b.walFile(names[0])
	// The segment was left in the middle: what follows is what the file held before.
	partial := append(bytes.Clone(content[:len(content)*3/4]), content[:len(content)/4]...)
	push := func(content []byte) (string, error) {
		return b.pusher().Push(t.Context(), pushFile(names[0]+".partial", content, nil))
	}
	if _, err := push(partial); !errors.Is(err, errLeftUnknown) {
		t.Errorf("nobody knows where the timeline was left: %v", err)
	}
	history := []byte("1\t" + b.inventory(1).Runs()[0].End.String() + "\tno recovery target specified\n")
	if err := b.repo.PutHistory(t.Context(), 2, history); err != nil {
		t.Fatal(err)
	}
	remark, err := push(partial)
	if err != nil || !strings.Contains(remark, "stored up to") {
		t.Fatal(remark, err)
	}
	got, err := b.repo.ReadSegment(t.Context(), b.size, b.parse(names[0]))
	if err != nil || len(got) == 0 || len(got) > len(partial)*3/4 || !bytes.Equal(got, content[:len(got)]) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
	if _, err := push(partial); err != nil {
		t.Errorf("the same again: %v", err)
	}
	b.store, b.repo = newStore(t)
	if err := b.repo.PutHistory(t.Context(), 2, history); err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(partial)
	damaged[len(damaged)/4] ^= 0x40
	if _, err := push(damaged); err == nil || !strings.Contains(err.Error(), "it is damaged there") {
		t.Errorf("a damaged one: %v", err)
	}
	if err := b.push(names[0], content, nil); err != nil {
		t.Errorf("the whole segment after it: %v", err)
	}
	if remark, err := push(partial); err != nil || !strings.Contains(remark, "as a whole") {
		t.Errorf("the partial one after the whole: %q, %v", remark, err)
	}
}

// TestPushSocket goes through the socket of an archiver.
func TestPushSocket(t *testing.T) {
	b := newBench(t, 1, "wal_keep_size=1GB")
	names := b.finished()
	path := filepath.Join(t.TempDir(), "push.sock")
	if err := os.WriteFile(path, []byte("left behind"), 0o644); err != nil {
		t.Fatal(err)
	}
	var counts PushCounts
	here := PushSocketOptions{Path: path, Place: "here", Stall: 30 * time.Second, PushesMax: 4, Counts: &counts}
	there := here
	there.Place = "there"
	socket, err := ListenPush(here, b.pusher())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ListenPush(here, b.pusher()); err == nil || !strings.Contains(err.Error(), "another archiver serves it") {
		t.Errorf("a second one: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- socket.Run(ctx) }()
	var before []byte
	for _, name := range names {
		content := b.walFile(name)
		if _, err := PushThrough(ctx, here, pushFile(name, content, before), int64(len(before))); err != nil {
			t.Error(err)
		}
		before = content
		if got, err := b.repo.ReadSegment(ctx, b.size, b.parse(name)); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if done, bytes := counts.Done.Load(), counts.Bytes.Load(); done != uint64(len(names)) || bytes != done*uint64(b.size) {
		t.Errorf("%d pushes of %d bytes are counted, of %d", done, bytes, len(names))
	}
	if _, err := b.repo.ReadIndex(ctx, b.size, b.parse(names[2])); err != nil {
		t.Error(err)
	}
	damaged := bytes.Clone(before)
	damaged[len(damaged)/2] ^= 1
	_, err = PushThrough(ctx, here, pushFile(names[0], damaged, before), int64(len(before)))
	if err == nil || errors.Is(err, ErrNoSocket) {
		t.Errorf("a damaged one: %v", err)
	}
	var other repo.StretchBuilder
	other.Add(make([]byte, b.size), b.repo.Pack(make([]byte, b.size)))
	next := b.query("select pg_walfile_name(pg_switch_wal())")
	if err := b.repo.PutStretch(ctx, b.size, b.wholeOf(next), time.Time{}, &other); err != nil {
		t.Fatal(err)
	}
	if _, err = PushThrough(ctx, here, pushFile(next, b.walFile(next), nil), 0); !errors.Is(err, repo.ErrConflict) {
		t.Errorf("another content: %v", err)
	}
	if _, err = PushThrough(ctx, there, pushFile(next, b.walFile(next), nil), 0); !errors.Is(err, ErrNoSocket) {
		t.Errorf("an archiver of another place: %v", err)
	}
	short := pushFile(next, b.walFile(next)[:100_000], nil)
	short.Size = int64(b.size)
	if _, err = PushThrough(ctx, here, short, 0); err == nil {
		t.Error("a push that broke off was answered as stored")
	}
	until(t, "three failures are counted", func() bool { return counts.Failed.Load() == 3 }) // not that of the other place
	if done := counts.Done.Load(); done != uint64(len(names)) {
		t.Errorf("%d pushes are counted", done)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if _, err = PushThrough(t.Context(), here, pushFile(next, nil, nil), 0); !errors.Is(err, ErrNoSocket) {
		t.Errorf("without an archiver: %v", err)
	}
}

// wholeOf is a segment as the part that it is of itself.
func (b *bench) wholeOf(name string) repo.Part {
	segment := b.parse(name)
	return repo.Part{Timeline: segment.Timeline, Start: segment.Start(b.size), End: segment.End(b.size)}
}
