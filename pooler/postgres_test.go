package pooler

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"pitr/internal/postmaster"
)

// postgres is a real server in a directory of its own, shared by the tests of this package.
type postgres struct {
	bin    string
	dir    string
	port   int
	server *postmaster.Server
}

func (p *postgres) dsn(more string) string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres sslmode=disable %s", p.port, more)
}

var shared struct {
	sync.Once
	server *postgres
	err    error
}

// server returns the package's Postgres, started on first use and stopped by TestMain.
func server(t testing.TB) *postgres {
	t.Helper()
	shared.Do(func() { shared.server, shared.err = startPostgres("max_connections=400", "fsync=off") })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.server
}

func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

// startTimeout bounds making and starting the cluster, on a busy machine too.
const startTimeout = 2 * time.Minute

// startAttempts is how many ports are tried: between asking for a free one and using it anybody may take it.
const startAttempts = 3

func startPostgres(settings ...string) (*postgres, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	install, err := postmaster.Find(ctx)
	if err != nil {
		return nil, err
	}
	p := &postgres{bin: install.Bin}
	if p.dir, err = os.MkdirTemp("", "pooler-test-"); err != nil {
		return nil, err
	}
	data := filepath.Join(p.dir, "data")
	if err := errors.Join(install.Own(p.dir), install.InitDB(ctx, postmaster.InitOptions{Dir: data, Superuser: "postgres"})); err != nil {
		return nil, err
	}
	for range startAttempts {
		if p.port, err = freePort(); err != nil {
			return nil, err
		}
		options := postmaster.StartOptions{Dir: data, Port: p.port, Log: filepath.Join(p.dir, "log"), Settings: settings}
		if p.server, err = install.StartChild(ctx, options); err == nil {
			return p, nil
		}
	}
	return nil, err
}

func (p *postgres) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	return errors.Join(p.server.Stop(ctx, postmaster.Fast), os.RemoveAll(p.dir))
}
