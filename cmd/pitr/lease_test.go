package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pitr/internal/postmaster/postmastertest"
)

// startBeside runs one more archiver of the same cluster, with a monitor of its own.
func (h *harness) startBeside(ctx context.Context, name string) *exec.Cmd {
	h.t.Helper()
	content, err := os.ReadFile(h.config)
	if err != nil {
		h.t.Fatal(err)
	}
	h.metrics[name] = postmastertest.FreePort(h.t)
	text := strings.Replace(string(content), fmt.Sprintf("archiver: 127.0.0.1:%d", h.metrics["archiver"]), fmt.Sprintf("archiver: 127.0.0.1:%d", h.metrics[name]), 1)
	text = strings.Replace(text, "flush_interval: 200ms", "flush_interval: 200ms, lease: 5s", 1)
	config := filepath.Join(h.dir, name+".yaml")
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(h.dir, name+".log"))
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	cmd := h.install.Command(context.Background(), h.bin.raced, "-c", config, "archiver")
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // "signal: killed" is what we want
		if content, err := os.ReadFile(log.Name()); err == nil && (h.t.Failed() || strings.Contains(string(content), "DATA RACE")) {
			h.t.Errorf("--- %s\n%s", name, content)
		}
	})
	h.waitReady(ctx, name)
	return cmd
}

// TestCommitsGoOnWhenTheArchiverThatTheyWaitForVanishes stops the one that works where it stands: its connections stay open, as those of a
// machine that has vanished do.
func TestCommitsGoOnWhenTheArchiverThatTheyWaitForVanishes(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	h := newHarness(t, "")
	first := h.startBeside(ctx, "first")
	h.psql(ctx, "create table ticks (i int)")
	second := h.startBeside(ctx, "second")
	h.psql(ctx, "alter system set synchronous_standby_names = 'pitr'")
	h.psql(ctx, "select pg_reload_conf()")

	var commits atomic.Int64
	var stop atomic.Bool
	committed := make(chan error, 1)
	go func() {
		conn, err := h.connect(ctx, h.server.Port)
		for i := 0; err == nil && !stop.Load(); i++ {
			_, err = conn.Exec(ctx, "insert into ticks values ($1)", i)
			if err == nil {
				commits.Add(1)
			}
		}
		committed <- err
	}()
	goOn := func(what string) time.Duration {
		begin, from := time.Now(), commits.Load()+1 // one may have been stored already
		h.eventually(ctx, what, func() bool { return commits.Load() > from })
		return time.Since(begin)
	}
	goOn("commits reach the first")
	pause := func(cmd *exec.Cmd, signal syscall.Signal) {
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
	}
	pause(first, syscall.SIGSTOP)
	t.Logf("commits went on %s after the first archiver had stopped", goOn("commits reach the second"))
	pause(first, syscall.SIGCONT)
	goOn("commits reach the second while the first is back")
	pause(second, syscall.SIGSTOP)
	t.Logf("commits went on %s after the second archiver had stopped", goOn("commits reach the first again"))
	pause(second, syscall.SIGCONT)
	goOn("commits go on")
	stop.Store(true)
	if err := <-committed; err != nil {
		t.Fatal(err)
	}
	if out := h.mustPitr(ctx, "verify", "--level", "checksum"); !strings.Contains(out, "WAL") {
		t.Errorf("verify says %s", out)
	}
}
