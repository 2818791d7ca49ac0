package restore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"pitr/archiver"
	"pitr/internal/pg"
	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
	"pitr/internal/repo"
	"pitr/internal/store/file"
)

// fetchEnv makes this test binary a restore_command: it names the store.
const fetchEnv = "PITR_TEST_FETCH_FROM"

// prefetchEnv makes it a prefetcher, likewise.
const prefetchEnv = "PITR_TEST_PREFETCH_FROM"

func TestMain(m *testing.M) {
	if root := os.Getenv(fetchEnv); root != "" {
		os.Exit(fetchAsCommand(root, os.Args[1], os.Args[2]))
	}
	if root := os.Getenv(prefetchEnv); root != "" {
		os.Exit(prefetchAsCommand(root, os.Args[1]))
	}
	code := m.Run()
	if err := endWorld(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func fetchAsCommand(root, name, destination string) int {
	files, err := file.Open(root)
	if err == nil {
		var compressor *repo.Compressor
		if compressor, err = repo.NewCompressor("zstd:1"); err == nil {
			err = FetchWAL(context.Background(), repo.New(files, "main", compressor), name, destination, FetchOptions{})
		}
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrAbsent):
		return 1
	}
	fmt.Fprintln(os.Stderr, err)
	return 255
}

func prefetchAsCommand(root, data string) int {
	files, err1 := file.Open(root)
	compressor, err2 := repo.NewCompressor("zstd:1")
	err := errors.Join(err1, err2)
	if err == nil {
		err = Prefetch(context.Background(), repo.New(files, "main", compressor), PrefetchOptions{Data: data, Max: 4 << 20, Parallel: 3, Log: slog.New(slog.DiscardHandler)})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// world is a repository that the real archiver has written for a real Postgres. Timeline 1 holds two base backups with commits, aborts,
// prepared transactions and restore points around them; a copy that was restored to the point named "fork" was promoted and archived as
// timeline 2, while timeline 1 goes on behind the fork. What must come out of plans is decided by pg_waldump.
type world struct {
	maker   testing.TB // the test that came first
	install *postmaster.Install
	dir     string // of everything; the user who runs Postgres may enter
	root    string // of the store
	self    string // this binary, where that user may execute it
	repo    *repo.Repo
	size    pg.SegmentSize
	fork    pg.LSN
	ends    map[pg.Timeline][]Xact         // on the way to a timeline, in WAL order
	rows    map[pg.Timeline]map[uint32]int // the number that a transaction has inserted
	backups []repo.Backup
	servers []*postmaster.Server

	catalogs time.Duration // between two catalogs; zero: none
}

var (
	worldOnce  sync.Once
	worldValue *world
	worldErr   error
)

// theWorld makes the world once for all tests.
func theWorld(t testing.TB) *world {
	t.Helper()
	worldOnce.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		worldValue = &world{maker: t, size: 1 << 20, ends: map[pg.Timeline][]Xact{}, rows: map[pg.Timeline]map[uint32]int{1: {}, 2: {}}}
		worldErr = worldValue.make(ctx)
	})
	if worldErr != nil {
		t.Fatal(worldErr)
	}
	return worldValue
}

func endWorld() error {
	if worldValue == nil {
		return nil
	}
	var errs []error
	for _, server := range worldValue.servers {
		errs = append(errs, server.Stop(context.Background(), postmaster.Immediate))
	}
	return errors.Join(append(errs, os.RemoveAll(worldValue.dir))...)
}

func (w *world) make(ctx context.Context) (err error) {
	if w.install, err = postmaster.Find(ctx); err != nil {
		return err
	}
	if w.dir, err = os.MkdirTemp("", "pitr-test-"); err != nil {
		return err
	}
	w.root, w.self = filepath.Join(w.dir, "store"), filepath.Join(w.dir, "restore.test")
	binary, err := os.ReadFile("/proc/self/exe")
	if err := errors.Join(err, os.Mkdir(w.root, 0o755), os.WriteFile(w.self, binary, 0o755), w.install.Own(w.dir)); err != nil {
		return err
	}
	files, err1 := file.Open(w.root)
	compressor, err2 := repo.NewCompressor("zstd:1")
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	w.repo = repo.New(files, "main", compressor)
	if err := w.makeOrigin(ctx); err != nil {
		return err
	}
	return w.makeFork(ctx)
}

// start runs a cluster of the world on a port of its own.
func (w *world) start(ctx context.Context, dir string) (*postmaster.Server, error) {
	server, err := w.install.StartChild(ctx, postmaster.StartOptions{Dir: dir, Port: postmastertest.FreePort(w.maker), Log: dir + ".log",
		Settings: []string{"fsync=off", "shared_buffers=32MB", "wal_keep_size=1GB", "max_prepared_transactions=10", "autovacuum=off", "wal_sender_timeout=5s"}})
	if err == nil {
		w.servers = append(w.servers, server)
	}
	return server, err
}

func (w *world) archiveOptions(server *postmaster.Server) archiver.Options {
	return archiver.Options{DSN: w.dsn(server), Slot: "pitr", FlushInterval: 20 * time.Millisecond, PartSizeMax: 1 << 20, BufferMax: 8 << 20, PutsInFlight: 4,
		ShutdownGrace: 5 * time.Second, BackupBufferMax: 64 << 20, BackupWALWait: 20 * time.Second, Retention: archiver.Retention{Window: time.Hour, Minimum: 1},
		CatalogInterval: w.catalogs, CatalogRelationsMax: 10_000, Repo: w.repo, Log: slog.New(slog.DiscardHandler)}
}

func (w *world) dsn(server *postmaster.Server) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", server.Port)
}

// archive runs work while an archiver runs, and waits until everything is stored.
func (w *world) archive(ctx context.Context, server *postmaster.Server, work func(sql func(string) string) error) error {
	a, err := archiver.New(w.archiveOptions(server))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	var errs []error
	sql := func(text string) string {
		out, err := server.Query(ctx, "postgres", "postgres", text)
		if err != nil {
			errs = append(errs, err)
		}
		return out
	}
	errs = append(errs, work(sql))
	end, err := pg.ParseLSN(sql("select pg_current_wal_flush_lsn()"))
	errs = append(errs, err)
	for a.Stats().Stored < end && ctx.Err() == nil && errors.Join(errs...) == nil {
		sql("select pg_sleep(0.02)") // the server's sleep: it also answers keepalives meanwhile
	}
	cancel()
	return errors.Join(append(errs, <-done)...)
}

func (w *world) backup(ctx context.Context, server *postmaster.Server) error {
	opt := w.archiveOptions(server)
	b, err := archiver.TakeBackup(ctx, archiver.BackupOptions{DSN: opt.DSN, Repo: opt.Repo, BufferMax: opt.BackupBufferMax, WALWait: opt.BackupWALWait, Log: opt.Log})
	w.backups = append(w.backups, b)
	return err
}

// insert runs transactions of one row each; every third is rolled back and every fifth prepared first.
func (w *world) insert(sql func(string) string, tli pg.Timeline, from, to int) {
	for i := from; i < to; i++ {
		end, then := "commit", ""
		switch {
		case i%3 == 0:
			end = "rollback"
		case i%5 == 0:
			end, then = fmt.Sprintf("prepare transaction 'p%d'", i), fmt.Sprintf("commit prepared 'p%d'", i)
		}
		out := sql(fmt.Sprintf("begin; insert into t values (%d); select pg_current_xact_id(); %s", i, end))
		if xid, err := strconv.ParseUint(out, 10, 32); err == nil && end != "rollback" {
			w.rows[tli][uint32(xid)] = i
		}
		if then != "" {
			sql(then)
		}
	}
}

func (w *world) makeOrigin(ctx context.Context) error {
	dir := filepath.Join(w.dir, "origin")
	if err := w.install.InitDB(ctx, postmaster.InitOptions{Dir: dir, Superuser: "postgres", SegmentSizeMB: 1}); err != nil {
		return err
	}
	space := filepath.Join(w.dir, "space")
	if err := errors.Join(os.Mkdir(space, 0o700), w.install.Own(space)); err != nil {
		return err
	}
	server, err := w.start(ctx, dir)
	if err != nil {
		return err
	}
	err = w.archive(ctx, server, func(sql func(string) string) error {
		sql("create table t (i int)")
		sql("create tablespace space location '" + space + "'")
		sql("create table elsewhere (i int) tablespace space")
		sql("insert into elsewhere select generate_series(1, 1000)")
		w.insert(sql, 1, 1, 10)
		if err := w.backup(ctx, server); err != nil {
			return err
		}
		w.insert(sql, 1, 10, 25)
		sql("select pg_create_restore_point('twice'), pg_create_restore_point('twice')")
		sql("create table filler as select repeat(md5(i::text), 20) as x from generate_series(1, 4000) i") // crosses segments
		w.insert(sql, 1, 25, 40)
		sql("select pg_switch_wal()")
		sql("select pg_create_restore_point('fork')")
		w.insert(sql, 1, 40, 50)
		if err := w.backup(ctx, server); err != nil {
			return err
		}
		w.insert(sql, 1, 50, 65)
		return nil
	})
	if err != nil {
		return err
	}
	return w.readEnds(ctx, dir, 1, w.backups[0].Start)
}

// makeFork restores a copy to the restore point "fork", promotes it and archives what it writes.
func (w *world) makeFork(ctx context.Context) error {
	target, err := ParseTarget("name:fork", nil)
	if err != nil {
		return err
	}
	plan, err := NewPlan(ctx, w.repo, target, PlanOptions{Now: time.Now(), Parallel: 4})
	if err != nil {
		return err
	}
	dir := filepath.Join(w.dir, "fork")
	if _, err := CarryOut(ctx, w.repo, plan, w.options(dir)); err != nil {
		return err
	}
	if err := w.install.Own(w.root); err != nil {
		return err
	}
	server, err := w.start(ctx, dir)
	if err != nil {
		return err
	}
	err = w.archive(ctx, server, func(sql func(string) string) error {
		w.insert(sql, 2, 1000, 1017)
		return nil
	})
	if err != nil {
		return err
	}
	content, err := w.repo.HistoryFile(ctx, 2)
	if err != nil {
		return err
	}
	history, err := pg.ParseHistory(2, content)
	if err != nil || len(history) != 1 {
		return fmt.Errorf("the history of timeline 2 is %v: %w", history, err)
	}
	w.fork = history[0].Switch
	for _, x := range w.ends[1] {
		if x.LSN < w.fork {
			w.ends[2] = append(w.ends[2], x)
		}
	}
	return errors.Join(w.readEnds(ctx, dir, 2, w.fork), w.install.Own(w.root))
}

// options are those of a restore into dir that this binary serves with WAL.
func (w *world) options(dir string) Options {
	return Options{Dir: dir, FetchWAL: fmt.Sprintf("%s=%s %s %%f %%p", fetchEnv, w.root, w.self), Isolated: true, Parallel: 4, Own: w.install.Own,
		Log: slog.New(slog.DiscardHandler)}
}

var waldumpEnd = regexp.MustCompile(`tx: +(\d+), lsn: ([0-9A-F/]+), prev [0-9A-F/]+, desc: (COMMIT|ABORT)(?:_PREPARED (\d+):)? (\S+ \S+) UTC`)

// readEnds asks pg_waldump which transactions have ended on a timeline from a position on.
func (w *world) readEnds(ctx context.Context, dir string, tli pg.Timeline, from pg.LSN) error {
	out, err := w.servers[len(w.servers)-1].Query(ctx, "postgres", "postgres", "select pg_current_wal_flush_lsn()")
	if err != nil {
		return err
	}
	cmd := w.install.Command(ctx, "pg_waldump", "-p", filepath.Join(dir, "pg_wal"), "-r", "Transaction", "-t", fmt.Sprint(tli), "-s", from.String(), "-e", out)
	cmd.Env = append(cmd.Env, "TZ=UTC")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("pg_waldump: %w: %s", err, stderr.String())
	}
	for lines := bufio.NewScanner(&stdout); lines.Scan(); {
		m := waldumpEnd.FindStringSubmatch(lines.Text())
		if m == nil {
			if strings.Contains(lines.Text(), "COMMIT") || strings.Contains(lines.Text(), "ABORT") {
				return fmt.Errorf("pg_waldump says %q", lines.Text())
			}
			continue
		}
		text := m[1]
		if m[4] != "" {
			text = m[4]
		}
		xid, err1 := strconv.ParseUint(text, 10, 32)
		lsn, err2 := pg.ParseLSN(m[2])
		at, err3 := time.Parse("2006-01-02 15:04:05.999999", m[5])
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
		w.ends[tli] = append(w.ends[tli], Xact{XID: uint32(xid), Time: at, LSN: lsn, Committed: m[3] == "COMMIT"})
	}
	return nil
}

// copyOf is a copy of the repository that a test may change.
func (w *world) copyOf(t testing.TB) (root string, r *repo.Repo, f *faulty) {
	t.Helper()
	root = filepath.Join(t.TempDir(), "store")
	if err := os.CopyFS(root, os.DirFS(w.root)); err != nil {
		t.Fatal(err)
	}
	r, f = openRepo(t, root)
	return root, r, f
}
