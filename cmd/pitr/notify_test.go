package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// supervise listens where the poolers of a harness notify, and returns what was said, in order.
func (u *upgrading) supervise(name string) (next func() string) {
	u.t.Helper()
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		u.t.Fatal(err)
	}
	u.t.Cleanup(func() { socket.Close() })
	if !strings.HasPrefix(name, "@") {
		if err := os.Chmod(name, 0o777); err != nil {
			u.t.Fatal(err)
		}
	}
	u.t.Setenv("NOTIFY_SOCKET", name)
	return func() string {
		u.t.Helper()
		if err := socket.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			u.t.Fatal(err)
		}
		message := make([]byte, 1000)
		n, err := socket.Read(message)
		if err != nil {
			u.t.Fatalf("%v\n%s", err, u.logs())
		}
		return string(message[:n])
	}
}

// TestPoolerTellsItsSupervisor listens to what sd_notify would bring to systemd: over a start, a reload, a takeover and an end.
func TestPoolerTellsItsSupervisor(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for _, abstract := range []bool{false, true} {
		u := newUpgrading(t)
		name := filepath.Join(u.dir, "notify")
		if abstract {
			name = "@" + name
		}
		next := u.supervise(name)
		expect := func(want string) {
			t.Helper()
			if got := next(); got != want {
				t.Fatalf("the supervisor was told %q, not %q\n%s", got, want, u.logs())
			}
		}
		u.launch("pooler")
		expect("READY=1")
		if err := u.procs["pooler"].Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if got := next(); !strings.HasPrefix(got, "RELOADING=1\nMONOTONIC_USEC=") || strings.HasSuffix(got, "=0") {
			t.Errorf("a reload says %q", got)
		}
		expect("READY=1")
		_, ended := u.replacePooler(ctx)
		expect(fmt.Sprintf("MAINPID=%d", u.procs["pooler"].Process.Pid))
		expect("READY=1")
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := u.stop("pooler"); err != nil {
			t.Error(err)
		}
		expect("STOPPING=1")
	}
}

// TestASupervisorThatIsNotThereStopsNothing gives the pooler names that lead nowhere.
func TestASupervisorThatIsNotThereStopsNothing(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "nobody"), "vsock:2:1234"} {
		t.Setenv("NOTIFY_SOCKET", name)
		if err := notifySupervisor("READY=1"); err == nil || !strings.Contains(err.Error(), "NOTIFY_SOCKET") {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Setenv("NOTIFY_SOCKET", "")
	if err := notifySupervisor("READY=1"); err != nil {
		t.Error(err)
	}
}

// TestSignalsOfThePooler is what docs/OPERATIONS.md says: SIGTERM and SIGINT drain. An idle client is told to go, a transaction may end, and readiness is gone from the beginning.
func TestSignalsOfThePooler(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	h := newHarness(t, "")
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		h.start(ctx, "pooler")
		idle, err := h.connect(ctx, h.pooler)
		if err != nil {
			t.Fatal(err)
		}
		busy, err := h.connect(ctx, h.pooler)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := busy.Exec(ctx, "begin; select 1"); err != nil {
			t.Fatal(err)
		}
		cmd := h.procs["pooler"]
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		h.eventually(ctx, "the pooler is not ready", func() bool {
			status, err := h.status("readyz")
			if err != nil {
				t.Fatalf("/readyz while the pooler drains: %v\n%s", err, h.logs())
			}
			return status == http.StatusServiceUnavailable
		})
		if status, err := h.status("healthz"); err != nil || status != http.StatusOK {
			t.Errorf("/healthz while the pooler drains: %d, %v", status, err)
		}
		h.eventually(ctx, "the idle client is told to go", func() bool {
			_, err := idle.Exec(ctx, "select 1")
			return err != nil
		})
		if _, err := busy.Exec(ctx, "select 2; commit"); err != nil {
			t.Errorf("a transaction that was open at %s: %v", signal, err)
		}
		delete(h.procs, "pooler")
		if err := cmd.Wait(); err != nil {
			t.Errorf("after %s the pooler exited with %v", signal, err)
		}
	}
	if n := strings.Count(h.logs(), "clients_cut=0"); n != 2 {
		t.Errorf("clients were cut %d times\n%s", 2-n, h.logs())
	}
}

// status asks the pooler's HTTP server.
func (h *harness) status(path string) (int, error) {
	response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/%s", h.metrics["pooler"], path))
	if err != nil {
		return 0, err
	}
	return response.StatusCode, response.Body.Close()
}

// TestPoolerTakesTheSocketsOfSystemd starts it as systemd does for a socket unit: with listening sockets from descriptor 3 on.
func TestPoolerTakesTheSocketsOfSystemd(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	u := newUpgrading(t)
	path := fmt.Sprintf("%s/.s.PGSQL.%d", u.dir, u.pooler)
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: u.pooler})
	if err != nil {
		t.Fatal(err)
	}
	unix, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	unix.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	unwanted, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	for _, listener := range []interface{ File() (*os.File, error) }{tcp, unix, unwanted} {
		file, err := listener.File()
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	cmd := u.install.Command(ctx, "/bin/sh", "-c", `LISTEN_FDS=3 LISTEN_PID=$$ exec "$@"`, "sh", u.bin.raced, "-c", u.config, "pooler")
	cmd.ExtraFiles = files
	log, err := os.Create(filepath.Join(u.harness.dir, "pooler.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := errors.Join(cmd.Start(), log.Close()); err != nil {
		t.Fatal(err)
	}
	u.procs["pooler"] = cmd
	for _, one := range append([]io.Closer{tcp, unix, unwanted}, files[0], files[1], files[2]) {
		if err := one.Close(); err != nil {
			t.Error(err)
		}
	}
	u.waitReady(ctx, "pooler")
	u.eventually(ctx, "the address that nobody has named is closed", func() bool { return strings.Contains(u.logs(), "address closed") })
	for range 2 {
		for _, host := range []string{"127.0.0.1", u.dir} {
			client, err := pgx.Connect(ctx, fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres sslmode=disable", host, u.pooler))
			if err != nil {
				t.Fatalf("%v\n%s", err, u.logs())
			}
			if err := client.Close(ctx); err != nil {
				t.Error(err)
			}
		}
		_, ended := u.replacePooler(ctx)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		u.waitReady(ctx, "pooler")
	}
	if err := u.stop("pooler"); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the file of the supervisor's socket: %v", err)
	}
}
