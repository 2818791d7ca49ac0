package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Everybody is this user of this database; the password is nobody's secret.
const (
	benchUser     = "bench"
	benchDatabase = "bench"
	benchPassword = "bench-password"
	loopback      = "127.0.0.1"
)

const (
	serverConnectionsMax = 200
	postgresStart        = 30 * time.Second
	poolerStart          = 10 * time.Second
)

// environment is the ground on which all contestants run: a directory, a Postgres, a certificate.
type environment struct {
	dir      string // removed by close
	bin      string // Postgres's programs
	as       *syscall.Credential
	secret   string // SCRAM secret of benchUser, the same in Postgres and in every pooler
	server   address
	durable  bool     // Postgres keeps what it is told
	sockets  bool     // Postgres listens on a socket in dir too
	more     []string // settings of Postgres
	postgres *process
	progress func(format string, args ...any)
}

// open makes the directory and starts a Postgres with the tables that the workloads need.
func (e *environment) open(ctx context.Context, scale int) (err error) {
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	if e.as, err = unprivileged(); err != nil {
		return err
	}
	if e.secret, err = scramSecret(); err != nil {
		return err
	}
	if e.dir, err = os.MkdirTemp("", "pitr-bench-"); err != nil {
		return err
	}
	if err := e.own(e.dir, 0o755); err != nil {
		return err
	}
	if err := e.writeCertificate(); err != nil {
		return err
	}
	if err := e.startPostgres(ctx); err != nil {
		return err
	}
	e.progress("filling pgbench's tables, scale %d", scale)
	_, err = run(ctx, launch{name: "pgbench -i", dir: e.dir, env: e.server.env(), args: []string{e.program("pgbench"), "-i", "-q",
		"-s", strconv.Itoa(scale), "-h", e.server.host, "-p", strconv.Itoa(e.server.port), "-U", benchUser, benchDatabase}})
	return err
}

func (e *environment) close() {
	if e.postgres != nil {
		e.postgres.stop(syscall.SIGQUIT) // immediate shutdown: the data is thrown away
	}
	if e.dir != "" {
		if err := os.RemoveAll(e.dir); err != nil {
			e.progress("remove %s: %v", e.dir, err)
		}
	}
}

// own gives a file to those as whom servers run.
func (e *environment) own(name string, mode os.FileMode) error {
	if err := os.Chmod(name, mode); err != nil {
		return err
	}
	if e.as == nil {
		return nil
	}
	return os.Chown(name, int(e.as.Uid), int(e.as.Gid))
}

func (e *environment) write(name, text string) error {
	path := filepath.Join(e.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	return e.own(path, 0o600)
}

func (e *environment) program(name string) string { return filepath.Join(e.bin, name) }

// serverSettings are those of Postgres: what would make its own disk and its housekeeping part of the comparison is off, but for the
// former where it is durable.
func (e *environment) serverSettings() []string {
	durability := []string{"fsync=off", "full_page_writes=off", "synchronous_commit=off"}
	if e.durable {
		durability = nil
	}
	sockets := ""
	if e.sockets {
		sockets = e.dir
	}
	return append(append(durability, e.more...),
		"listen_addresses="+loopback, "unix_socket_directories="+sockets, "max_connections="+strconv.Itoa(serverConnectionsMax),
		"shared_buffers=512MB", "work_mem=64MB", "max_wal_size=8GB", "checkpoint_timeout=1h", "autovacuum=off", "jit=off", "password_encryption=scram-sha-256",
		"ssl=on", "ssl_cert_file="+e.certificate(), "ssl_key_file="+e.key(), "ssl_min_protocol_version=TLSv1.3",
	)
}

func (e *environment) startPostgres(ctx context.Context) error {
	data := filepath.Join(e.dir, "data")
	if err := e.write("password", benchPassword+"\n"); err != nil {
		return err
	}
	_, err := run(ctx, launch{name: "initdb", dir: e.dir, as: e.as, args: []string{e.program("initdb"), "-D", data, "-U", benchUser, "-E", "UTF8",
		"--locale=C", "--no-sync", "--auth=scram-sha-256", "--pwfile=" + filepath.Join(e.dir, "password")}})
	if err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	e.server = address{host: loopback, port: port}
	args := []string{e.program("postgres"), "-D", data, "-p", strconv.Itoa(port)}
	for _, setting := range e.serverSettings() {
		args = append(args, "-c", setting)
	}
	if e.postgres, err = start(launch{name: "postgres", args: args, dir: e.dir, as: e.as}); err != nil {
		return err
	}
	// Until benchDatabase is made, only the databases of initdb can be asked.
	return e.createDatabase(ctx)
}

// createDatabase waits until the server answers, and makes the secret of Postgres the one that the poolers know.
func (e *environment) createDatabase(ctx context.Context) error {
	psql := func(command string) error {
		_, err := run(ctx, launch{name: "psql", dir: e.dir, env: e.server.env(), args: []string{e.program("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1",
			"-h", e.server.host, "-p", strconv.Itoa(e.server.port), "-U", benchUser, "-d", "postgres", "-c", command}})
		return err
	}
	err := e.until(ctx, postgresStart, e.postgres, func() error { return psql("select 1") })
	if err != nil {
		return err
	}
	return errors.Join(psql("create database "+benchDatabase), psql(fmt.Sprintf("alter role %s password '%s'", benchUser, e.secret)))
}

// until tries until there is no error. It gives up when the process has ended or the time is over.
func (e *environment) until(ctx context.Context, limit time.Duration, p *process, try func() error) error {
	deadline := time.Now().Add(limit)
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		if gone := p.ended(); gone != nil {
			return gone
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not ready after %s: %w", p.name, limit, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// prepare runs statements on the server itself, not through a pooler.
func (e *environment) prepare(ctx context.Context, statements ...string) error {
	c, err := dial(ctx, e.server, 4<<10)
	if err != nil {
		return err
	}
	defer c.close()
	for _, statement := range statements {
		if _, err := c.exec(statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// freePort finds a port below those from which the kernel serves clients, so that none of them takes it meanwhile.
func freePort() (int, error) {
	var err error
	for range 100 {
		port := 20_000 + rand.IntN(10_000)
		var listener net.Listener
		if listener, err = net.Listen("tcp", net.JoinHostPort(loopback, strconv.Itoa(port))); err == nil {
			return port, listener.Close()
		}
	}
	return 0, fmt.Errorf("find a free port: %w", err)
}

// findPostgres is the directory of Postgres's programs: as told, else the newest that scripts/pg.sh provides, else the newest
// of the system.
func findPostgres(root, told string) (string, error) {
	if told != "" {
		return told, nil
	}
	if out, err := script(root, "scripts/pg.sh", newestPostgres); err == nil {
		return out, nil
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/pgbench")
	if err != nil || len(found) == 0 {
		return "", errors.New("no Postgres is installed: name its programs by --pg-bin")
	}
	major := func(name string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(name)))) // zero for what is no number
		return n
	}
	return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return major(a) - major(b) })), nil
}

// newestPostgres is the newest major that scripts/pg.sh knows.
const newestPostgres = "18"

// script runs a script of the checkout whose last line of output is its result.
func script(root, name string, args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(root, name), args...)
	var trouble output
	cmd.Stderr = &trouble
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w%s", name, err, said(trouble.String()))
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1], nil
}
