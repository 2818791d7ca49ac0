package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
)

// node is a Postgres of a round. Its archive_command copies WAL files aside for the ledger: that copy does not pass through pitr.
type node struct {
	t       *testing.T
	install *postmaster.Install
	server  *postmaster.Server
	dir     string // of all that is the node's
	wal     string // where its archive_command copies to
	clock   string // file that holds the offset of its clock; empty: the clock is the machine's
	options postmaster.StartOptions
}

// faketimeLibraries is where Debian's package libfaketime puts what is preloaded.
const faketimeLibraries = "/usr/lib/*/faketime/libfaketime.so.1"

// newNode prepares the directories; the data directory is still to be made.
func newNode(t *testing.T, install *postmaster.Install, steppedClock bool) *node {
	t.Helper()
	dir := postmastertest.TempDir(t, install)
	n := &node{t: t, install: install, dir: dir, wal: filepath.Join(dir, "wal")}
	if err := errors.Join(os.Mkdir(n.wal, 0o755), install.Own(n.wal)); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	n.options = postmaster.StartOptions{Dir: data, Port: postmastertest.FreePort(t), Log: filepath.Join(dir, "postgres.log")}
	n.server = install.Attach(data, n.options.Port)
	if steppedClock {
		n.clock = filepath.Join(dir, "clock")
		n.step(0)
	}
	t.Cleanup(n.kill)
	return n
}

// nodeSettings are those of every node. WAL goes as soon as the slot and the archive_command let it.
func (n *node) nodeSettings() []string {
	copyAside := fmt.Sprintf("cp %%p %s/%%f.tmp && mv %s/%%f.tmp %s/%%f", n.wal, n.wal, n.wal)
	return []string{"fsync=off", "shared_buffers=32MB", "archive_mode=on", "archive_command=" + copyAside, "max_prepared_transactions=40", "max_wal_size=64MB",
		"lock_timeout=3s", "deadlock_timeout=200ms", "wal_sender_timeout=5s", "wal_receiver_timeout=5s", "checkpoint_timeout=30s", "log_checkpoints=off", "full_page_writes=on"}
}

// step sets the node's clock off from the machine's.
func (n *node) step(offset time.Duration) {
	n.t.Helper()
	next := n.clock + ".next"
	text := fmt.Sprintf("%+d\n", int(offset.Seconds()))
	if err := errors.Join(os.WriteFile(next, []byte(text), 0o644), os.Rename(next, n.clock)); err != nil {
		n.t.Fatal(err)
	}
}

// start runs the node, perhaps after a kill: then it waits until nothing of the one before is left.
func (n *node) start(ctx context.Context) {
	n.t.Helper()
	if n.clock != "" {
		libraries, err := filepath.Glob(faketimeLibraries)
		if err != nil || len(libraries) == 0 {
			n.t.Fatalf("no %s (%v): install the package faketime", faketimeLibraries, err)
		}
		n.options.Env = []string{"LD_PRELOAD=" + libraries[0], "FAKETIME_TIMESTAMP_FILE=" + n.clock, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "FAKETIME_DISABLE_SHM=1"}
	}
	n.options.Settings = n.nodeSettings()
	server, err := n.install.StartChild(ctx, n.options)
	if err != nil {
		n.t.Fatal(err)
	}
	n.server = server
}

// processes are those that work in the data directory: the postmaster and all of its children.
func (n *node) processes() []int {
	cwds, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		n.t.Fatal(err)
	}
	var pids []int
	for _, cwd := range cwds {
		if at, err := os.Readlink(cwd); err == nil && at == n.options.Dir {
			if pid, err := strconv.Atoi(strings.Split(cwd, "/")[2]); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// kill ends all processes of the node as kill -9 does, and waits until they are gone.
func (n *node) kill() {
	for begin := time.Now(); ; {
		pids := n.processes()
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				n.t.Error(err)
			}
		}
		if time.Since(begin) > 20*time.Second {
			n.t.Errorf("processes %v of a server do not end", pids)
			return
		}
		waitFor(context.Background(), 2*time.Millisecond)
	}
}

func (n *node) query(ctx context.Context, sql string) string {
	n.t.Helper()
	out, err := n.server.Query(ctx, "postgres", "postgres", sql)
	if err != nil {
		n.t.Fatalf("%v\n%s", err, n.log())
	}
	return out
}

func (n *node) lsn(ctx context.Context, function string) pg.LSN {
	n.t.Helper()
	lsn, err := pg.ParseLSN(n.query(ctx, "select "+function))
	if err != nil {
		n.t.Fatal(err)
	}
	return lsn
}

func (n *node) log() string {
	content, err := os.ReadFile(n.options.Log)
	if err != nil {
		return err.Error()
	}
	return "--- postgres\n" + string(content[max(0, len(content)-4000):])
}

// tortureKeep is how much WAL the server keeps when nobody else wants it: who drops the slot for a moment makes no gap.
const tortureKeep = "1GB"

// alter changes a setting for good.
func (n *node) alter(ctx context.Context, setting, value string) {
	n.t.Helper()
	n.query(ctx, fmt.Sprintf("alter system set %s = '%s'", setting, value))
	n.query(ctx, "select pg_reload_conf()")
}

// standby makes a streaming standby of the node.
func (n *node) standby(ctx context.Context) *node {
	n.t.Helper()
	s := newNode(n.t, n.install, false)
	s.clock = n.clock
	n.query(ctx, "select pg_create_physical_replication_slot('standby', true)")
	out, err := n.install.Command(ctx, "pg_basebackup", "-D", s.options.Dir, "-R", "-X", "stream", "-c", "fast", "-S", "standby",
		"-d", fmt.Sprintf("host=127.0.0.1 port=%d user=postgres application_name=standby", n.options.Port)).CombinedOutput()
	if err != nil {
		n.t.Fatalf("pg_basebackup: %v: %s", err, out)
	}
	s.start(ctx)
	return s
}

// promote makes a standby the primary, and returns where its timeline begins.
func (n *node) promote(ctx context.Context) pg.LSN {
	n.t.Helper()
	n.query(ctx, "select pg_promote(true, 60)")
	content, err := os.ReadFile(filepath.Join(n.options.Dir, "pg_wal", "00000002.history"))
	if err != nil {
		n.t.Fatal(err)
	}
	history, err := pg.ParseHistory(2, content)
	if err != nil {
		n.t.Fatal(err)
	}
	return history[len(history)-1].Switch
}
