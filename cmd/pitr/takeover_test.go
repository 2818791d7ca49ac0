package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pitr/pooler/takeover"
)

// upgrading is a harness whose pooler can be replaced.
type upgrading struct {
	*harness
	dir string // of the Unix sockets
}

func newUpgrading(t *testing.T) *upgrading {
	t.Helper()
	h := newHarness(t, "")
	dir, err := os.MkdirTemp("/tmp", "pitr-up-") // short enough for a Unix socket
	if err == nil {
		err = h.install.Own(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	h.replace("default_pool_size: 5", fmt.Sprintf("default_pool_size: 5\n  unix_socket_dir: %s\n  takeover_socket: %s/up\n  takeover_timeout: 10m", dir, dir))
	return &upgrading{h, dir}
}

// detach lets the running pooler be, so that another can be started beside it. It returns what tells how the first has ended.
func (u *upgrading) detach() (cmd *exec.Cmd, ended chan error) {
	u.t.Helper()
	u.mu.Lock()
	cmd = u.procs["pooler"]
	delete(u.procs, "pooler")
	u.mu.Unlock()
	ended = make(chan error, 1)
	var waiting sync.WaitGroup
	waiting.Go(func() { ended <- cmd.Wait() })
	u.t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			u.t.Error(err)
		}
		waiting.Wait()
	})
	return cmd, ended
}

func (u *upgrading) count(text string) int { return strings.Count(u.log(), text) }

// log is the whole of what the poolers have logged.
func (u *upgrading) log() string {
	u.t.Helper()
	content, err := os.ReadFile(filepath.Join(u.harness.dir, "pooler.log"))
	if err != nil {
		u.t.Fatal(err)
	}
	return string(content)
}

// replacePooler starts another pooler and waits until it has the place of the running one.
func (u *upgrading) replacePooler(ctx context.Context) (old *exec.Cmd, ended chan error) {
	u.t.Helper()
	before := u.count("place of another pooler taken")
	old, ended = u.detach()
	u.launch("pooler")
	u.eventually(ctx, "the new pooler has taken over", func() bool { return u.count("place of another pooler taken") > before })
	return old, ended
}

// bench runs pgbench through the pooler and returns what it has said.
func (u *upgrading) bench(ctx context.Context, host string, args ...string) (string, error) {
	args = append([]string{"-h", host, "-p", fmt.Sprint(u.pooler), "-U", "postgres", "-n", "-S", "--progress=1"}, args...)
	out, err := u.install.Command(ctx, "pgbench", append(args, "postgres")...).CombinedOutput()
	return string(out), err
}

// TestPoolerIsReplacedUnderLoadWithoutAnError replaces the pooler twice while pgbench's clients keep their connections, over TCP, and others reconnect for each transaction, over TCP and the Unix socket.
func TestPoolerIsReplacedUnderLoadWithoutAnError(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	u := newUpgrading(t)
	u.start(ctx, "pooler")
	if out, err := u.install.Command(ctx, "pgbench", "-h", u.server.Host(), "-p", fmt.Sprint(u.server.Port), "-U", "postgres", "-i", "-q", "postgres").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	type outcome struct {
		name, out string
		err       error
	}
	outcomes := make(chan outcome, 3)
	var load sync.WaitGroup
	defer load.Wait()
	for name, args := range map[string][]string{
		"stay":             {"127.0.0.1", "-c", "64", "-j", "2", "-T", "15", "-M", "prepared"},
		"reconnect":        {"127.0.0.1", "-c", "8", "-T", "15", "-C"},
		"reconnect, local": {u.dir, "-c", "8", "-T", "15", "-C"},
	} {
		load.Go(func() {
			out, err := u.bench(ctx, args[0], args[1:]...)
			outcomes <- outcome{name, out, err}
		})
	}
	u.eventually(ctx, "all clients are there", func() bool {
		return strings.Contains(u.poolerMetrics(), "\npitr_clients 6") || strings.Contains(u.poolerMetrics(), "\npitr_clients 7")
	})
	_, first := u.replacePooler(ctx)
	u.waitReady(ctx, "pooler")
	_, second := u.replacePooler(ctx)
	u.waitReady(ctx, "pooler")
	for range 3 {
		one := <-outcomes
		t.Logf("%s:\n%s", one.name, one.out)
		if one.err != nil || !strings.Contains(one.out, "number of failed transactions: 0 (0.000%)") || strings.Contains(one.out, "error:") {
			t.Errorf("%s: %v\n%s", one.name, one.err, one.out)
		}
	}
	for _, ended := range []chan error{first, second} {
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("a pooler that was replaced exited with %v\n%s", err, u.logs())
			}
		case <-ctx.Done():
			t.Fatalf("a pooler that was replaced does not exit\n%s", u.logs())
		}
	}
	if n := u.count("clients_cut=0"); n != 2 || u.count("pooler stopped") != 2 {
		t.Errorf("clients were cut\n%s", u.log())
	}
	if err := u.stop("pooler"); err != nil {
		t.Error(err)
	}
	for _, path := range []string{fmt.Sprintf("%s/.s.PGSQL.%d", u.dir, u.pooler), u.dir + "/up"} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s was not removed by the last pooler: %v", path, err)
		}
	}
}

// TestPoolerWhosePlaceWasTakenKeepsItsClients looks at the old pooler's clients, their cancel requests, and what SIGTERM does to it.
func TestPoolerWhosePlaceWasTakenKeepsItsClients(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	u := newUpgrading(t)
	u.start(ctx, "pooler")
	one, err := u.connect(ctx, u.pooler)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = one.Close(ctx) }()
	old, ended := u.replacePooler(ctx)
	u.waitReady(ctx, "pooler")
	if info, err := os.Stat(u.dir + "/up"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the socket: %v, %v", info, err)
	}
	var answer string
	if err := one.QueryRow(ctx, "select 'still here'").Scan(&answer); err != nil || answer != "still here" {
		t.Fatalf("a client of the old pooler: %q, %v", answer, err)
	}
	two, err := u.connect(ctx, u.pooler)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = two.Close(ctx) }()
	for _, client := range []*pgx.Conn{one, two} {
		u.cancelSleep(ctx, client)
	}
	select {
	case err := <-ended:
		t.Fatalf("the old pooler has left its client: %v\n%s", err, u.logs())
	default:
	}
	if err := old.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the old pooler exited with %v", err)
	}
	if err := one.QueryRow(ctx, "select 1").Scan(nil); err == nil || !strings.Contains(err.Error(), "57P01") {
		t.Errorf("the client of the old pooler got %v", err)
	}
	u.cancelSleep(ctx, two)
}

// cancelSleep makes a client wait in Postgres, and cancels that through the address on which the new pooler listens.
func (u *upgrading) cancelSleep(ctx context.Context, client *pgx.Conn) {
	u.t.Helper()
	mark := fmt.Sprintf("select pg_sleep(100) /* %p */", client)
	answer := make(chan error, 1)
	go func() {
		_, err := client.Exec(ctx, mark)
		answer <- err
	}()
	u.eventually(ctx, "the statement runs", func() bool {
		return u.psql(ctx, "select count(*) from pg_stat_activity where state = 'active' and query = '"+mark+"'") == "1"
	})
	if err := client.PgConn().CancelRequest(ctx); err != nil {
		u.t.Error(err)
	}
	if err := <-answer; err == nil || !strings.Contains(err.Error(), "57014") {
		u.t.Errorf("a statement that was canceled: %v\n%s", err, u.logs())
	}
}

// TestPoolerGoesOnWhenItsSuccessorCannotStart starts a pooler that has got the sockets and does not come to serve.
func TestPoolerGoesOnWhenItsSuccessorCannotStart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	u := newUpgrading(t)
	u.start(ctx, "pooler")
	u.replace(fmt.Sprintf("listen: [127.0.0.1:%d]", u.pooler), fmt.Sprintf("listen: [127.0.0.1:%d, 127.0.0.1:%d]", u.pooler, u.server.Port))
	old, stays := u.detach()
	u.launch("pooler")
	u.mu.Lock()
	failed := u.procs["pooler"]
	u.mu.Unlock()
	if err := failed.Wait(); err == nil || u.count("takeover began") != 1 || !strings.Contains(u.log(), "address already in use") {
		t.Errorf("a pooler whose address is in use: %v\n%s", err, u.log())
	}
	u.eventually(ctx, "the pooler has noticed", func() bool { return u.count("takeover given up; the pooler goes on") == 1 })
	u.waitReady(ctx, "pooler")
	for _, host := range []string{"127.0.0.1", u.dir} {
		client, err := pgx.Connect(ctx, fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres sslmode=disable", host, u.pooler))
		if err != nil {
			t.Fatalf("%v\n%s", err, u.logs())
		}
		if err := client.Close(ctx); err != nil {
			t.Error(err)
		}
	}
	if uid, _ := u.install.Owner(); uid != os.Getuid() {
		_, _, err := takeover.Ask(u.dir + "/up")
		if err == nil || !strings.Contains(err.Error(), "not to ours") {
			t.Errorf("another user got %v", err)
		}
	}
	if err := old.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-stays; err != nil {
		t.Error(err)
	}
}
