package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pitr/internal/postmaster/postmastertest"
)

// bouncer is the program under PgBouncer's name, with a configuration of PgBouncer's.
type bouncer struct {
	*harness
	program, ini, pidFile, logFile string
	port                           int
}

func newBouncer(t *testing.T) *bouncer {
	t.Helper()
	b := &bouncer{harness: newHarness(t, ""), port: postmastertest.FreePort(t)}
	b.program, b.ini = filepath.Join(b.dir, "pgbouncer"), filepath.Join(b.dir, "pgbouncer.ini")
	b.pidFile, b.logFile = filepath.Join(b.dir, "pgbouncer.pid"), filepath.Join(b.dir, "pgbouncer.log")
	if err := errors.Join(os.Symlink(b.bin.raced, b.program), os.WriteFile(filepath.Join(b.dir, "userlist.txt"), []byte("\"postgres\" \"it's \"\"quoted\"\"\"\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	b.write("")
	return b
}

// write makes the configuration, with something more.
func (b *bouncer) write(more string) {
	b.t.Helper()
	text := fmt.Sprintf(`[databases]
postgres = host=127.0.0.1 port=%d user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = scram-sha-256
auth_file = %s
admin_users = postgres
pool_mode = transaction
so_reuseport = 1
logfile = %s
pidfile = %s
%s
`, b.server.Port, b.port, filepath.Join(b.dir, "userlist.txt"), b.logFile, b.pidFile, more)
	if err := os.WriteFile(b.ini, []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bouncer) run(ctx context.Context, args ...string) (string, error) {
	cmd := b.install.Command(ctx, b.program, args...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (b *bouncer) log() string {
	text, err := os.ReadFile(b.logFile)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

func (b *bouncer) pid() int {
	b.t.Helper()
	text, err := os.ReadFile(b.pidFile)
	if err != nil {
		b.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		b.t.Fatal(err)
	}
	return pid
}

func (b *bouncer) signal(s syscall.Signal) {
	b.t.Helper()
	if err := syscall.Kill(b.pid(), s); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bouncer) open(ctx context.Context, database string) *pgx.Conn {
	b.t.Helper()
	cfg, err := pgx.ParseConfig(fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=%s sslmode=disable", b.port, database))
	if err != nil {
		b.t.Fatal(err)
	}
	cfg.Password = `it's "quoted"`
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		b.t.Fatalf("%v\n%s", err, b.log())
	}
	b.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// poolSize asks the console.
func (b *bouncer) poolSize(ctx context.Context, conn *pgx.Conn) string {
	b.t.Helper()
	rows, err := conn.Query(ctx, "SHOW CONFIG")
	if err != nil {
		b.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			b.t.Fatal(err)
		}
		if values[0] == "default_pool_size" {
			return fmt.Sprint(values[1])
		}
	}
	b.t.Fatal("SHOW CONFIG has no default_pool_size")
	return ""
}

func TestUnderPgBouncersNameItsOptionsConfigurationAndSignalsWork(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	b := newBouncer(t)
	if out, err := b.run(ctx, "-d", b.ini); err != nil || out != "" {
		t.Fatalf("-d: %v\n%s", err, out)
	}
	pid := b.pid()
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	client, console := b.open(ctx, "postgres"), b.open(ctx, "pgbouncer")
	one := func() error {
		var n int
		return client.QueryRow(ctx, "select 1").Scan(&n)
	}
	if err := one(); err != nil {
		t.Fatal(err)
	}
	if text := b.log(); !strings.Contains(text, "pgbouncer.ini:11: so_reuseport: ") {
		t.Errorf("the log does not say what has no meaning here:\n%s", text)
	}
	if out, err := b.run(ctx, "-d", b.ini); err == nil || !strings.Contains(out, fmt.Sprintf("process %d runs already", pid)) {
		t.Errorf("a second one: %v\n%s", err, out)
	}

	b.write("default_pool_size = 7")
	moved := b.logFile + ".1"
	if err := os.Rename(b.logFile, moved); err != nil {
		t.Fatal(err)
	}
	b.signal(syscall.SIGHUP)
	b.eventually(ctx, "the change holds", func() bool { return b.poolSize(ctx, console) == "7" })
	b.eventually(ctx, "the log goes on in a new file", func() bool {
		text, err := os.ReadFile(b.logFile)
		return err == nil && strings.Contains(string(text), "configuration reloaded")
	})
	b.write("default_pool_size = 8\nno_such_setting = 1")
	b.signal(syscall.SIGHUP)
	b.eventually(ctx, "the mistake is told", func() bool { return strings.Contains(b.log(), "unknown parameter: pgbouncer/no_such_setting") })
	if got := b.poolSize(ctx, console); got != "7" {
		t.Errorf("after a mistake in the file default_pool_size is %s", got)
	}
	b.write("")

	b.signal(syscall.SIGUSR1)
	b.eventually(ctx, "it is paused", func() bool {
		var name string
		var paused any
		rows, err := console.Query(ctx, "SHOW DATABASES")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			values, err := rows.Values()
			if err != nil {
				t.Fatal(err)
			}
			for i, field := range rows.FieldDescriptions() {
				switch field.Name {
				case "name":
					name = fmt.Sprint(values[i])
				case "paused":
					paused = values[i]
				}
			}
			if name == "postgres" {
				return fmt.Sprint(paused) == "1"
			}
		}
		return false
	})
	answered := make(chan error, 1)
	go func() { answered <- one() }()
	b.signal(syscall.SIGUSR2)
	if err := <-answered; err != nil {
		t.Errorf("a client that waited while it was paused: %v", err)
	}

	b.signal(syscall.SIGTERM)
	b.eventually(ctx, "nobody can come in any more", func() bool {
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", b.port), time.Second)
		if err == nil {
			return conn.Close() != nil
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	if err := one(); err != nil {
		t.Errorf("a client that is in, after SIGTERM: %v", err)
	}
	if err := errors.Join(client.Close(ctx), console.Close(ctx)); err != nil {
		t.Error(err)
	}
	b.eventually(ctx, "it has ended", func() bool { _, err := os.Stat(b.pidFile); return errors.Is(err, os.ErrNotExist) })
}

func TestRebootTakesTheSocketsOverAndLosesNobody(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	b := newBouncer(t)
	if out, err := b.run(ctx, "-d", b.ini); err != nil {
		t.Fatalf("-d: %v\n%s", err, out)
	}
	first := b.pid()
	t.Cleanup(func() { _ = syscall.Kill(first, syscall.SIGKILL) })
	client := b.open(ctx, "postgres")
	one := func(conn *pgx.Conn) {
		t.Helper()
		var n int
		if err := conn.QueryRow(ctx, "select 1").Scan(&n); err != nil {
			t.Error(err)
		}
	}
	one(client)
	if out, err := b.run(ctx, "-d", "-R", b.ini); err != nil {
		t.Fatalf("-d -R: %v\n%s\n%s", err, out, b.log())
	}
	second := b.pid()
	t.Cleanup(func() { _ = syscall.Kill(second, syscall.SIGKILL) })
	if second == first {
		t.Fatal("the process is the same")
	}
	one(client) // of the first process
	other := b.open(ctx, "postgres")
	one(other)
	if err := client.Close(ctx); err != nil {
		t.Error(err)
	}
	b.eventually(ctx, "the first process has ended with its last client", func() bool { return syscall.Kill(first, 0) == syscall.ESRCH || zombie(first) })
	one(other)
	if got := b.pid(); got != second {
		t.Errorf("the pidfile names %d, not %d", got, second)
	}
}

func TestASecondSignalDoesNotWaitForTransactions(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	b := newBouncer(t)
	for _, first := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		if out, err := b.run(ctx, "-d", b.ini); err != nil {
			t.Fatalf("-d: %v\n%s", err, out)
		}
		pid := b.pid()
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
		client := b.open(ctx, "postgres")
		if _, err := client.Exec(ctx, "begin; select 1"); err != nil {
			t.Fatal(err)
		}
		b.signal(first)
		b.eventually(ctx, "nobody can come in any more", func() bool {
			conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", b.port), time.Second)
			if err == nil {
				return conn.Close() != nil
			}
			return errors.Is(err, syscall.ECONNREFUSED)
		})
		if _, err := client.Exec(ctx, "select 2"); err != nil {
			t.Errorf("%s: within its transaction: %v", first, err)
		}
		b.signal(first)
		b.eventually(ctx, "it has ended", func() bool { _, err := os.Stat(b.pidFile); return errors.Is(err, os.ErrNotExist) })
		if _, err := client.Exec(ctx, "commit"); err == nil {
			t.Errorf("%s twice: the transaction went on", first)
		}
	}
}

// zombie reports whether a process has ended and was not waited for: this machine's init takes its time.
func zombie(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, found := strings.Cut(string(text), ") ")
	return err == nil && found && strings.HasPrefix(rest, "Z")
}

func TestWhatPgBouncerRefusesToStartWithIsRefused(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b := newBouncer(t)
	refused := func(want string, args ...string) {
		t.Helper()
		out, err := b.run(ctx, args...)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() == 0 || !strings.Contains(out, want) {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	refused("accepts 1 arg", "-q")
	refused("no such file", "/nowhere.ini")
	b.write("pool_mode = sometimes")
	refused("pool_mode", b.ini)
	b.write("default_pool_size = many")
	refused("pgbouncer.ini:14: default_pool_size", b.ini)
	b.write("logfile =")
	refused("-d needs the settings pidfile and logfile", "-d", b.ini)
	b.write("")
	refused("only root can change to the user root", "-u", "root", b.ini)
	if os.Geteuid() == 0 {
		out, err := exec.CommandContext(ctx, b.program, b.ini).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "PgBouncer should not run as root") {
			t.Errorf("as root: %v\n%s", err, out)
		}
	}
	if out, err := b.run(ctx, "-V"); err != nil || !strings.Contains(out, "pitr ") {
		t.Errorf("-V: %v %s", err, out)
	}
}

func TestImportedConfigurationIsOneOfPitr(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b := newBouncer(t)
	cmd := b.install.Command(ctx, b.bin.plain, "config", "import", b.ini)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"  pool_mode: \"transaction\"\n", "# listen_addr and listen_port\n", "    type: \"scram-sha-256\" # auth_type\n", "so_reuseport: one process uses all cores"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	imported := filepath.Join(b.dir, "imported.yaml")
	if err := os.WriteFile(imported, out, 0o644); err != nil {
		t.Fatal(err)
	}
	cmd = b.install.Command(ctx, b.bin.plain, "-c", imported, "config", "show")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), strconv.Itoa(b.port)) {
		t.Errorf("%v\n%s", err, out)
	}
}
