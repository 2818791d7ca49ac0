package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
)

// binaries are the real program, where the user who runs Postgres can execute it: with the race detector for the services, and
// without it, as people use it, for commands.
type binaries struct{ dir, raced, plain string }

// buildBinaries builds once for all tests.
var buildBinaries = sync.OnceValues(func() (binaries, error) {
	dir, err := os.MkdirTemp("", "pitr-bin-")
	if err != nil {
		return binaries{}, err
	}
	builtIn = dir
	b := binaries{dir: dir, raced: filepath.Join(dir, "pitr-raced"), plain: filepath.Join(dir, "pitr")}
	for _, args := range [][]string{{"build", "-race", "-o", b.raced, "."}, {"build", "-o", b.plain, "."}} {
		if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
			return b, fmt.Errorf("build pitr: %w\n%s", err, out)
		}
	}
	return b, os.Chmod(dir, 0o755)
})

// builtIn is where the binaries are; empty when no test has needed them. TestMain removes it.
var builtIn string

// harness is a Postgres with pitr around it: real processes that can really be killed.
type harness struct {
	t       *testing.T
	bin     binaries
	install *postmaster.Install
	server  *postmaster.Server
	dir     string
	config  string
	own     map[string]string // configuration of a service that has one of its own
	pooler  int               // port
	metrics map[string]int

	mu       sync.Mutex // guards what follows
	procs    map[string]*exec.Cmd
	launched map[string]time.Time
}

const harnessConfig = `cluster: test
postgres: {dsn: "postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable"}
pooler:
  listen: [127.0.0.1:%d]
  default_pool_size: 5
  auth: {type: trust}
archive: {store: "%s", flush_interval: 200ms}
backup: {schedule: ""}
http: {pooler: 127.0.0.1:%d, archiver: 127.0.0.1:%d}
`

// newHarness starts Postgres and writes the configuration. An empty store means a directory.
func newHarness(t *testing.T, store string, settings ...string) *harness {
	t.Helper()
	bin, err := buildBinaries()
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{t: t, bin: bin, install: postmastertest.Find(t), procs: map[string]*exec.Cmd{}, pooler: postmastertest.FreePort(t)}
	h.metrics = map[string]int{"pooler": postmastertest.FreePort(t), "archiver": postmastertest.FreePort(t)}
	h.server = postmastertest.Start(t, h.install, postmastertest.Options{Settings: append([]string{"wal_keep_size=4GB"}, settings...)})
	h.dir = postmastertest.TempDir(t, h.install)
	if store == "" {
		root := filepath.Join(h.dir, "repository")
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		store = "file://" + root
	}
	h.config = filepath.Join(h.dir, "pitr.yaml")
	text := fmt.Sprintf(harnessConfig, h.server.Port, h.pooler, store, h.metrics["pooler"], h.metrics["archiver"])
	if err := errors.Join(os.WriteFile(h.config, []byte(text), 0o644), h.install.Own(h.dir)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.killAll)
	return h
}

// replace changes the configuration, which contains old.
func (h *harness) replace(old, with string) {
	h.t.Helper()
	text, err := os.ReadFile(h.config)
	if err == nil && !strings.Contains(string(text), old) {
		err = fmt.Errorf("%q is not in the configuration", old)
	}
	if err == nil {
		err = os.WriteFile(h.config, []byte(strings.Replace(string(text), old, with, 1)), 0o644)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// start runs one of the services and waits until it is ready.
func (h *harness) start(ctx context.Context, service string) {
	h.t.Helper()
	h.launch(service)
	h.waitReady(ctx, service)
}

// launch runs one of the services.
func (h *harness) launch(service string) {
	h.t.Helper()
	config := h.config
	if own, found := h.own[service]; found {
		config = own
	}
	log, err := os.OpenFile(filepath.Join(h.dir, service+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		h.t.Fatal(err)
	}
	cmd := h.install.Command(context.Background(), h.bin.raced, "-c", config, service)
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.Stdout, cmd.Stderr = log, log
	if err := errors.Join(cmd.Start(), log.Close()); err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	h.procs[service] = cmd
	if h.launched == nil {
		h.launched = map[string]time.Time{}
	}
	h.launched[service] = time.Now()
	h.mu.Unlock()
}

func (h *harness) waitReady(ctx context.Context, service string) {
	h.t.Helper()
	h.eventually(ctx, service+" is ready", func() bool {
		response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", h.metrics[service]))
		if err != nil {
			return false
		}
		return response.Body.Close() == nil && response.StatusCode == http.StatusOK
	})
}

// eventually polls until the condition holds or ctx ends.
func (h *harness) eventually(ctx context.Context, what string, holds func() bool) {
	h.t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			h.t.Fatalf("waited in vain until %s\n%s", what, h.logs())
		case <-ticker.C:
		}
	}
}

// kill ends a service as kill -9 does.
func (h *harness) kill(service string) {
	h.mu.Lock()
	cmd := h.procs[service]
	delete(h.procs, service)
	h.mu.Unlock()
	if cmd == nil {
		return
	}
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		h.t.Errorf("kill %s: %v", service, err)
	}
	_ = cmd.Wait() // "signal: killed" is what we want
}

// stop ends a service with SIGTERM and returns how it exited.
func (h *harness) stop(service string) error {
	h.mu.Lock()
	cmd := h.procs[service]
	delete(h.procs, service)
	h.mu.Unlock()
	return errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait())
}

func (h *harness) killAll() {
	h.kill("archiver")
	h.kill("pooler")
	if logs := h.logs(); strings.Contains(logs, "DATA RACE") || strings.Contains(logs, "panic:") {
		h.t.Errorf("a service raced or panicked:\n%s", logs)
	}
}

func (h *harness) logs() string {
	var all bytes.Buffer
	for _, service := range []string{"archiver", "pooler"} {
		content, err := os.ReadFile(filepath.Join(h.dir, service+".log"))
		if err == nil {
			fmt.Fprintf(&all, "--- %s\n%s", service, content[max(0, len(content)-8000):])
		}
	}
	return all.String()
}

// pitr runs a command to its end.
func (h *harness) pitr(ctx context.Context, args ...string) (string, error) {
	cmd := h.install.Command(ctx, h.bin.plain, append([]string{"-c", h.config}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("pitr %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

func (h *harness) mustPitr(ctx context.Context, args ...string) string {
	h.t.Helper()
	out, err := h.pitr(ctx, args...)
	if err != nil {
		h.t.Fatalf("%v\n%s", err, h.logs())
	}
	return out
}

// connect opens a connection; a test ends it.
func (h *harness) connect(ctx context.Context, port int) (*pgx.Conn, error) {
	return pgx.Connect(ctx, fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres sslmode=disable connect_timeout=5", port))
}

// psql runs a statement on the server itself.
func (h *harness) psql(ctx context.Context, sql string) string {
	h.t.Helper()
	out, err := h.server.Query(ctx, "postgres", "postgres", sql)
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

// archived waits until the repository holds everything that the server has written, as the slot tells.
func (h *harness) archived(ctx context.Context) {
	h.t.Helper()
	target := h.psql(ctx, "select pg_current_wal_flush_lsn()")
	h.eventually(ctx, "WAL is archived up to "+target, func() bool {
		return h.psql(ctx, "select coalesce(bool_or(flush_lsn >= '"+target+"'), false) from pg_stat_replication where application_name = 'pitr'") == "t"
	})
}
