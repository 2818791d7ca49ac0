// Package postmastertest gives tests a real, throw-away Postgres. Nothing but tests imports it.
package postmastertest

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pitr/internal/postmaster"
)

// Options says which server Start makes.
type Options struct {
	SegmentSizeMB int
	Password      string // of the superuser postgres; empty: trust
	Settings      []string
}

// Start makes a cluster in a temporary directory and runs it until the test ends. Its superuser is postgres.
func Start(t testing.TB, install *postmaster.Install, opt Options) *postmaster.Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	dir := filepath.Join(TempDir(t, install), "data")
	if err := install.InitDB(ctx, postmaster.InitOptions{Dir: dir, Superuser: "postgres", Password: opt.Password, SegmentSizeMB: opt.SegmentSizeMB}); err != nil {
		t.Fatal(err)
	}
	settings := append([]string{"fsync=off", "shared_buffers=32MB"}, opt.Settings...)
	server, err := install.StartChild(ctx, postmaster.StartOptions{Dir: dir, Port: FreePort(t), Log: dir + ".log", Settings: settings})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := server.Stop(ctx, postmaster.Immediate); err != nil {
			t.Error(err)
		}
	})
	return server
}

// Find is postmaster.Find; a machine without Postgres fails the test.
func Find(t testing.TB) *postmaster.Install {
	t.Helper()
	install, err := postmaster.Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return install
}

// TempDir is a temporary directory that the user who runs Postgres can enter and write; it is removed when the test ends.
// (t.TempDir lies below a directory that only its maker can enter.)
func TempDir(t testing.TB, install *postmaster.Install) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pitr-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := install.Own(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// FreePort is a loopback port that nobody listens on at this moment.
func FreePort(t testing.TB) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}
