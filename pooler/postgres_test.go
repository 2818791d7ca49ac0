package pooler

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// postgres is a real server in a directory of its own, shared by the tests of this package.
type postgres struct {
	bin  string
	dir  string
	port int
	cmd  *exec.Cmd
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
	shared.Do(func() { shared.server, shared.err = startPostgres("-c", "max_connections=400") })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.server
}

func binaries() string {
	if dir := os.Getenv("PITR_PG_BIN"); dir != "" {
		return dir
	}
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		if dir := strings.TrimSpace(string(out)); exists(filepath.Join(dir, "initdb")) {
			return dir
		}
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(found) > 0 {
		return found[len(found)-1]
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

// asPostgres makes a command run as the user postgres when we are root, since initdb and postgres refuse to run as root.
func asPostgres(cmd *exec.Cmd, dir string) error {
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
	if os.Getuid() != 0 {
		return nil
	}
	who, err := user.Lookup("postgres")
	if err != nil {
		return err
	}
	uid, _ := strconv.Atoi(who.Uid)
	gid, _ := strconv.Atoi(who.Gid)
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return os.Chown(dir, uid, gid)
}

func startPostgres(options ...string) (*postgres, error) {
	dir, err := os.MkdirTemp("/tmp", "pooler-test-")
	if err != nil {
		return nil, err
	}
	p := &postgres{bin: binaries(), dir: dir}
	if p.port, err = freePort(); err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	initdb := exec.Command(filepath.Join(p.bin, "initdb"), "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync")
	if err := asPostgres(initdb, dir); err != nil {
		return nil, err
	}
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	args := append([]string{"-D", data, "-p", strconv.Itoa(p.port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
		"-c", "fsync=off"}, options...)
	p.cmd = exec.Command(filepath.Join(p.bin, "postgres"), args...)
	if err := asPostgres(p.cmd, dir); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	return p, p.waitUp()
}

func (p *postgres) waitUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		conn, err := pgconn.Connect(ctx, p.dsn(""))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-ctx.Done():
			return errors.Join(errors.New("postgres did not come up"), err)
		case <-ticker.C:
		}
	}
}

func (p *postgres) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGINT)
	_ = p.cmd.Wait()
	_ = os.RemoveAll(p.dir)
}
