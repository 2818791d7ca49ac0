package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"pitr/config"
	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
	"pitr/internal/store/s3/s3test"
)

// stores replaces the setting archive of the harness's configuration.
func (h *harness) stores(settings string) {
	h.t.Helper()
	text, err := os.ReadFile(h.config)
	if err != nil {
		h.t.Fatal(err)
	}
	text = regexp.MustCompile(`(?m)^archive: .*$`).ReplaceAllLiteral(text, []byte("archive: {flush_interval: 200ms, store_retries: 1, "+settings+"}"))
	if err := os.WriteFile(h.config, text, 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// metric is a value of the archiver for one store; -1 while there is none.
func (h *harness) metric(name, store string) float64 {
	response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", h.metrics["archiver"]))
	if err != nil {
		return -1
	}
	text, err := io.ReadAll(response.Body)
	if errors.Join(err, response.Body.Close()) != nil {
		return -1
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		if value, found := strings.CutPrefix(line, fmt.Sprintf("%s{store=%q} ", name, store)); found {
			if n, err := strconv.ParseFloat(value, 64); err == nil {
				return n
			}
		}
	}
	return -1
}

// filled waits until a store lacks nothing.
func (h *harness) filled(ctx context.Context, store string) {
	h.t.Helper()
	h.eventually(ctx, store+" is filled", func() bool {
		return h.metric("pitr_copy_behind", store) == 0 && h.metric("pitr_copy_missing_objects", store) == 0
	})
}

// write inserts numbers until stop is closed, and returns how many were committed.
func (h *harness) write(ctx context.Context, stop <-chan struct{}) <-chan int {
	h.t.Helper()
	conn, err := h.connect(ctx, h.server.Port)
	if err != nil {
		h.t.Fatal(err)
	}
	total := make(chan int, 1)
	go func() {
		n := 0
		defer func() { total <- n }()
		defer func() { _ = conn.Close(context.Background()) }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := conn.Exec(ctx, "insert into t select "+strconv.Itoa(n)+", repeat(md5(random()::text), 20)"); err != nil {
				h.t.Errorf("insert: %v", err)
				return
			}
			n++
		}
	}()
	return total
}

// restored restores the latest state and returns what a query gives there.
func (h *harness) restored(ctx context.Context, name, query string) string {
	h.t.Helper()
	into, port := filepath.Join(h.dir, name), postmastertest.FreePort(h.t)
	h.mustPitr(ctx, "restore", "--to", "latest", "--into", into, "--start", "--port", strconv.Itoa(port))
	copied := h.install.Attach(into, port)
	rows, err := copied.Query(ctx, "postgres", "postgres", query)
	if err := errors.Join(err, copied.Stop(ctx, postmaster.Immediate)); err != nil {
		h.t.Fatal(err)
	}
	return rows
}

// TestAnArchiveWithCopiesOutlivesItsMainStore goes through the life of a copy: it goes away under load and is filled, commits wait for it when
// the quorum needs it, another is added later, and each alone brings every row back when the main store is gone.
func TestAnArchiveWithCopiesOutlivesItsMainStore(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	s3 := s3test.Start(t)
	h := newHarness(t, "")
	mainDir, second := filepath.Join(h.dir, "repository"), filepath.Join(h.dir, "second")
	main, copyURL := "file://"+mainDir, s3.URL("copy")
	name := config.StoreName(copyURL)
	h.stores(fmt.Sprintf("store: %q, copies: [%q]", main, copyURL))
	h.start(ctx, "archiver")
	h.psql(ctx, "create table t (i int, filler text)")
	h.mustPitr(ctx, "backup")
	h.filled(ctx, name)

	// The copy is killed under load: the archive goes on without it, and fills it.
	stop := make(chan struct{})
	written := h.write(ctx, stop)
	s3.Kill()
	h.eventually(ctx, "the copy is behind", func() bool {
		return h.metric("pitr_copy_behind", name) == 1 && h.metric("pitr_copy_missing_objects", name) > 0
	})
	h.psql(ctx, "select pg_switch_wal()")
	h.archived(ctx)
	if lag, frontier, ahead := h.metric("pitr_copy_lag_seconds", name), h.metric("pitr_copy_frontier_lsn", name), h.metric("pitr_copy_frontier_lsn", config.StoreName(main)); lag <= 0 || frontier >= ahead {
		t.Errorf("while it is away it lags %v s, and holds WAL up to %v of %v", lag, frontier, ahead)
	}
	s3.Restart()
	h.filled(ctx, name)
	close(stop)
	total := <-written
	h.archived(ctx)
	if log := h.logs(); strings.Count(log, "a store has fallen behind") != 1 || strings.Count(log, "a store has caught up") != 1 {
		t.Errorf("what the log tells of it:\n%s", log)
	}

	// With a quorum of both, commits that wait for the archive wait for the copy.
	if err := h.stop("archiver"); err != nil {
		t.Fatal(err)
	}
	h.stores(fmt.Sprintf("store: %q, copies: [%q], quorum: 2", main, copyURL))
	h.start(ctx, "archiver")
	h.filled(ctx, name)
	h.psql(ctx, "alter system set synchronous_standby_names = 'pitr'")
	h.psql(ctx, "select pg_reload_conf()")
	h.psql(ctx, "insert into t values (-1)")
	s3.Kill()
	conn, err := h.connect(ctx, h.server.Port)
	if err != nil {
		t.Fatal(err)
	}
	committed := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, "insert into t values (-2)")
		committed <- err
	}()
	select {
	case err := <-committed:
		t.Errorf("a commit returned although the quorum cannot be reached: %v", err)
	case <-time.After(3 * time.Second):
	}
	s3.Restart()
	if err := errors.Join(<-committed, conn.Close(ctx)); err != nil {
		t.Error(err)
	}
	total += 2

	// Another copy is added to what is there.
	if err := errors.Join(h.stop("archiver"), os.Mkdir(second, 0o755), h.install.Own(second)); err != nil {
		t.Fatal(err)
	}
	h.stores(fmt.Sprintf("store: %q, copies: [%q, %q], quorum: 2", main, copyURL, "file://"+second))
	h.start(ctx, "archiver")
	h.filled(ctx, config.StoreName("file://"+second))
	h.psql(ctx, "insert into t values (-3)")
	total++
	h.archived(ctx)
	h.filled(ctx, config.StoreName("file://"+second))
	if out := h.mustPitr(ctx, "verify", "--level", "checksum"); strings.Count(out, ": 0 defects") != 3 {
		t.Errorf("verify: %s", out)
	}
	h.kill("archiver")

	// The main store is lost for good. Each copy alone has everything.
	if err := os.RemoveAll(mainDir); err != nil {
		t.Fatal(err)
	}
	want := strconv.Itoa(total)
	for name, store := range map[string]string{"from-s3": copyURL, "from-file": "file://" + second} {
		h.stores(fmt.Sprintf("store: %q", store))
		if got := h.restored(ctx, name, "select count(*) from t"); got != want {
			t.Errorf("%s: %s rows came back, %s were committed", name, got, want)
		}
	}
	// So have the stores together, since fewer than the quorum are lost; and the restore tells of what is damaged.
	h.stores(fmt.Sprintf("store: %q, copies: [%q, %q], quorum: 2", main, copyURL, "file://"+second))
	if got := h.restored(ctx, "from-both", "select count(*) from t"); got != want {
		t.Errorf("from both: %s rows came back, %s were committed", got, want)
	}
}

func TestARestoreReadsWhatIsDamagedInOneStoreFromAnother(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	h := newHarness(t, "")
	main, second := filepath.Join(h.dir, "repository"), filepath.Join(h.dir, "second")
	if err := errors.Join(os.Mkdir(second, 0o755), h.install.Own(second)); err != nil {
		t.Fatal(err)
	}
	h.stores(fmt.Sprintf("store: %q, copies: [%q]", "file://"+main, "file://"+second))
	h.start(ctx, "archiver")
	h.psql(ctx, "create table t as select generate_series(1, 1000) i")
	h.mustPitr(ctx, "backup")
	h.psql(ctx, "insert into t select generate_series(1, 1000)")
	h.psql(ctx, "select pg_switch_wal()")
	h.archived(ctx)
	h.filled(ctx, config.StoreName("file://"+second))
	h.kill("archiver")
	for _, pattern := range []string{"packs/*/*", "wal/*/*0*", "backups/*/manifest"} {
		objects, err := filepath.Glob(filepath.Join(main, "test", pattern))
		if err != nil || len(objects) == 0 {
			t.Fatal(err, objects)
		}
		for _, object := range objects {
			if info, err := os.Stat(object); err != nil || info.IsDir() {
				continue
			}
			content, err := os.ReadFile(object)
			for i := 100; i < len(content); i += 1000 {
				content[i] ^= 0x55
			}
			if err := errors.Join(err, os.WriteFile(object, content, 0o640)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if out, err := h.pitr(ctx, "verify", "--level", "checksum"); err == nil || strings.Count(out, ": 0 defects") != 1 {
		t.Errorf("verify: %v %s", err, out)
	}
	if got := h.restored(ctx, "restored", "select count(*) from t"); got != "2000" {
		t.Errorf("%s rows came back", got)
	}
}
