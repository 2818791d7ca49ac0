package archiver

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
	"pitr/internal/repo"
	"pitr/internal/store"
	"pitr/internal/store/file"
)

// hooked calls functions, those that are not nil, instead of the store that it wraps.
type hooked struct {
	store.Store
	mu     sync.Mutex // guards what follows
	put    func(ctx context.Context, key string, content []byte, put func() error) error
	delete func(key string) error
}

func (h *hooked) onPut(f func(ctx context.Context, key string, content []byte, put func() error) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.put = f
}

func (h *hooked) Put(ctx context.Context, key string, content []byte, opt store.PutOptions) error {
	h.mu.Lock()
	hook := h.put
	h.mu.Unlock()
	put := func() error { return h.Store.Put(ctx, key, content, opt) }
	if hook == nil {
		return put()
	}
	return hook(ctx, key, content, put)
}

func (h *hooked) Delete(ctx context.Context, key string) error {
	h.mu.Lock()
	hook := h.delete
	h.mu.Unlock()
	if hook != nil {
		if err := hook(key); err != nil {
			return err
		}
	}
	return h.Store.Delete(ctx, key)
}

func (h *hooked) List(ctx context.Context, prefix, after string) iter.Seq2[store.Object, error] {
	return h.Store.List(ctx, prefix, after)
}

// bench is a Postgres, a repository and what runs between them.
type bench struct {
	t       *testing.T
	install *postmaster.Install
	server  *postmaster.Server
	store   *hooked
	repo    *repo.Repo
	log     *logBuffer
	size    pg.SegmentSize
}

// logBuffer is a log that may be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newStore(t *testing.T) (*hooked, *repo.Repo) {
	t.Helper()
	files, err := file.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	compressor, err := repo.NewCompressor("zstd:1")
	if err != nil {
		t.Fatal(err)
	}
	h := &hooked{Store: files}
	return h, repo.New(h, "main", compressor)
}

func newBench(t *testing.T, segmentMB int, settings ...string) *bench {
	t.Helper()
	b := &bench{t: t, install: postmastertest.Find(t), log: &logBuffer{}, size: pg.SegmentSize(segmentMB) << 20}
	b.store, b.repo = newStore(t)
	b.server = postmastertest.Start(t, b.install, postmastertest.Options{SegmentSizeMB: segmentMB, Settings: settings})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(b.log.String())
		}
	})
	return b
}

func (b *bench) dsn() string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", b.server.Port)
}

func (b *bench) options() Options {
	return Options{DSN: b.dsn(), Slot: "pitr", FlushInterval: 50 * time.Millisecond, PartSizeMax: 1 << 20, BufferMax: 8 << 20, PutsInFlight: 8,
		ShutdownGrace: 5 * time.Second, BackupBufferMax: 64 << 20, BackupWALWait: 3 * time.Minute, Retention: Retention{Window: time.Hour, Minimum: 1},
		Repo: b.repo, Log: slog.New(slog.NewTextHandler(b.log, nil))}
}

// running is an archiver that runs.
type running struct {
	*Archiver
	t      *testing.T
	cancel context.CancelFunc
	done   chan struct{}
	err    error // valid after done
}

func (b *bench) run(opt Options) *running {
	b.t.Helper()
	a, err := New(opt)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Archiver: a, t: b.t, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = a.Run(ctx)
	}()
	b.t.Cleanup(func() { r.stop() })
	return r
}

// stop ends the archiver in order and returns what Run has returned.
func (r *running) stop() error {
	r.t.Helper()
	r.cancel()
	select {
	case <-r.done:
		return r.err
	case <-time.After(30 * time.Second):
		r.t.Fatal("the archiver does not stop")
		return nil
	}
}

// until polls until ok holds.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(45 * time.Second)
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		case <-ticker.C:
		}
	}
}

func (b *bench) query(sql string) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := b.server.Query(ctx, "postgres", "postgres", sql)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

func (b *bench) lsn(sql string) pg.LSN {
	b.t.Helper()
	text := b.query(sql)
	if text == "" {
		return 0
	}
	lsn, err := pg.ParseLSN(text)
	if err != nil {
		b.t.Fatal(err)
	}
	return lsn
}

// written makes the server flush what it has written and returns up to where.
func (b *bench) written() pg.LSN {
	b.t.Helper()
	b.query("create table if not exists flushed (i int); insert into flushed values (1)")
	return b.lsn("select pg_current_wal_flush_lsn()")
}

// archived waits until the archiver has stored everything up to a position.
func (r *running) archived(lsn pg.LSN) {
	r.t.Helper()
	until(r.t, fmt.Sprintf("WAL up to %s is stored", lsn), func() bool { return r.Stats().Stored >= lsn })
}

// pgbench runs a load of a few seconds and returns when it is over.
func (b *bench) pgbench(args ...string) {
	b.t.Helper()
	args = append(args, "-h", b.server.Dir, "-p", fmt.Sprint(b.server.Port), "-U", "postgres", "postgres")
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if out, err := b.install.Command(ctx, "pgbench", args...).CombinedOutput(); err != nil {
		b.t.Fatalf("pgbench: %v\n%s", err, out)
	}
}

// frontier is how far an independent reader of the store can read without a gap: it decompresses and compares what it counts.
func (b *bench) frontier(tli pg.Timeline) pg.LSN {
	b.t.Helper()
	inv, err := b.repo.Inventory(b.t.Context(), tli, b.size, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	runs := inv.Runs()
	if len(runs) == 0 {
		return 0
	}
	return runs[len(runs)-1].End
}

// compareWAL compares every stored byte with the server's own WAL files, of those that it still has, and returns how many there were.
func (b *bench) compareWAL(tli pg.Timeline) int {
	b.t.Helper()
	p, err := b.repo.Path(b.t.Context(), tli, b.size, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	runs := p.Inventory(tli).Runs()
	if len(runs) != 1 {
		b.t.Fatalf("the archive of timeline %d has %d runs: %v", tli, len(runs), runs)
	}
	compared := 0
	err = b.repo.ReadWAL(b.t.Context(), p, runs[0].Start, runs[0].End, func(at pg.LSN, content []byte) error {
		compared += len(content)
		return b.compareAt(tli, at, content)
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return compared
}

func (b *bench) backupOptions() BackupOptions {
	opt := b.options()
	return BackupOptions{DSN: opt.DSN, Repo: opt.Repo, BufferMax: opt.BackupBufferMax, WALWait: opt.BackupWALWait, Log: opt.Log}
}

func (b *bench) backup() repo.Backup {
	b.t.Helper()
	return b.backupWith(b.backupOptions())
}

func (b *bench) backupWith(opt BackupOptions) repo.Backup {
	b.t.Helper()
	backup, err := TakeBackup(b.t.Context(), opt)
	if err != nil {
		b.t.Fatal(err)
	}
	return backup
}
