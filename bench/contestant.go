package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// The names of the contestants, as they stand in tables and results.
const (
	direct    = "direct"
	pitr      = "pitr"
	pitrOther = "pitr (other)"
	pgbouncer = "pgbouncer"
	odyssey   = "odyssey"
)

const (
	poolSize              = 20
	clientsMax            = 15_000 // that the poolers let in
	preparedStatementsMax = 200
)

// contestant is a pooler, or Postgres without one.
type contestant struct {
	name    string
	binary  string // empty: direct
	version string
	absent  string // why it cannot take part
	// arrange writes its configuration as text and says with which arguments the program is started.
	arrange func(arrangement) (text string, args []string)
}

// arrangement is what a pooler's configuration is made from. All are given the same: transaction mode, the same pool, SCRAM on both
// sides, prepared statements, no line of log per connection, plain TCP to Postgres.
type arrangement struct {
	file      string // where the text will lie
	listen    address
	metrics   int // a free port
	server    address
	secret    string
	cert, key string
	workers   int
	pitr      string // workload.pitr
}

func arrangePitr(a arrangement) (string, []string) {
	var b strings.Builder
	fmt.Fprintf(&b, "postgres: {dsn: \"postgres://%s:%s@%s:%d/%s?sslmode=disable\"}\n", benchUser, benchPassword, a.server.host, a.server.port, benchDatabase)
	fmt.Fprintf(&b, "http: {pooler: \"%s:%d\"}\n", loopback, a.metrics)
	fmt.Fprintf(&b, "pooler:\n  listen: [\"%s:%d\"]\n  pool_mode: transaction\n", a.listen.host, a.listen.port)
	fmt.Fprintf(&b, "  default_pool_size: %d\n  max_client_conn: %d\n  max_prepared_statements: %d\n", poolSize, clientsMax, preparedStatementsMax)
	fmt.Fprintf(&b, "  auth: {type: scram-sha-256}\n  users: {%s: {password: \"%s\"}}\n", benchUser, a.secret)
	fmt.Fprintf(&b, "  databases: {%s: {password: \"%s\"}}\n", benchDatabase, benchPassword)
	if a.listen.tls {
		fmt.Fprintf(&b, "  client_tls_sslmode: require\n  client_tls_cert_file: %s\n  client_tls_key_file: %s\n", a.cert, a.key)
	}
	b.WriteString(a.pitr)
	return b.String(), []string{"pooler", "-c", a.file}
}

func arrangePgBouncer(a arrangement) (string, []string) {
	var b strings.Builder
	fmt.Fprintf(&b, "[databases]\n%s = host=%s port=%d\n[users]\n[pgbouncer]\n", benchDatabase, a.server.host, a.server.port)
	fmt.Fprintf(&b, "listen_addr = %s\nlisten_port = %d\nunix_socket_dir =\n", a.listen.host, a.listen.port)
	fmt.Fprintf(&b, "auth_type = scram-sha-256\nauth_file = %s.users\n", a.file)
	fmt.Fprintf(&b, "pool_mode = transaction\ndefault_pool_size = %d\nmax_client_conn = %d\nmax_prepared_statements = %d\n", poolSize, clientsMax, preparedStatementsMax)
	fmt.Fprintf(&b, "server_tls_sslmode = disable\nlog_connections = 0\nlog_disconnections = 0\n")
	if a.listen.tls {
		fmt.Fprintf(&b, "client_tls_sslmode = require\nclient_tls_cert_file = %s\nclient_tls_key_file = %s\n", a.cert, a.key)
	}
	return b.String(), []string{a.file}
}

func arrangeOdyssey(a arrangement) (string, []string) {
	var b strings.Builder
	fmt.Fprintf(&b, "daemonize no\nlog_format \"%%l (%%c) %%m\\n\"\nlog_to_stdout yes\nlog_session no\nlog_stats no\nlog_config no\n")
	fmt.Fprintf(&b, "workers %d\nresolvers 1\nclient_max %d\n", a.workers, clientsMax)
	fmt.Fprintf(&b, "listen {\n  host \"%s\"\n  port %d\n", a.listen.host, a.listen.port)
	if a.listen.tls {
		fmt.Fprintf(&b, "  tls \"require\"\n  tls_cert_file \"%s\"\n  tls_key_file \"%s\"\n", a.cert, a.key)
	}
	fmt.Fprintf(&b, "}\nstorage \"server\" {\n  type \"remote\"\n  host \"%s\"\n  port %d\n}\n", a.server.host, a.server.port)
	fmt.Fprintf(&b, "database \"%s\" {\n  user \"%s\" {\n    authentication \"scram-sha-256\"\n    password \"%s\"\n", benchDatabase, benchUser, a.secret)
	fmt.Fprintf(&b, "    storage \"server\"\n    storage_user \"%s\"\n    storage_password \"%s\"\n", benchUser, benchPassword)
	fmt.Fprintf(&b, "    client_max %d\n    pool \"transaction\"\n    pool_size %d\n    pool_timeout 0\n", clientsMax, poolSize)
	fmt.Fprintf(&b, "    pool_discard no\n    pool_reserve_prepared_statement yes\n  }\n}\n")
	return b.String(), []string{a.file}
}

// service is a contestant that takes clients.
type service struct {
	at      address
	process *process // nil: direct
}

// start begins the contestant for one run and waits until it answers. An error means that it is absent.
func (c *contestant) start(ctx context.Context, e *environment, w workload) (*service, error) {
	if c.binary == "" {
		at := e.server
		at.tls = w.tls
		return &service{at: at}, nil
	}
	var ports [2]int
	for i := range ports {
		var err error
		if ports[i], err = freePort(); err != nil {
			return nil, err
		}
	}
	name := strings.Map(func(r rune) rune {
		if r < 'a' || r > 'z' {
			return '-'
		}
		return r
	}, c.name) + ".conf"
	a := arrangement{
		file: filepath.Join(e.dir, name), listen: address{host: loopback, port: ports[0], tls: w.tls}, metrics: ports[1],
		server: e.server, secret: e.secret, cert: e.certificate(), key: e.key(), workers: odysseyWorkers, pitr: w.pitr,
	}
	text, args := c.arrange(a)
	if err := e.write(name, text); err != nil {
		return nil, err
	}
	if err := e.write(name+".users", fmt.Sprintf("\"%s\" \"%s\"\n", benchUser, e.secret)); err != nil { // PgBouncer's; nobody else looks
		return nil, err
	}
	p, err := start(launch{name: c.name, args: append([]string{c.binary}, args...), dir: e.dir, as: e.as})
	if err != nil {
		return nil, err
	}
	s := &service{at: a.listen, process: p}
	if err := e.until(ctx, poolerStart, p, func() error { return s.probe(ctx) }); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

const odysseyWorkers = 2

// probe logs in and asks something.
func (s *service) probe(ctx context.Context) error {
	c, err := dial(ctx, s.at, 4<<10)
	if err != nil {
		return err
	}
	defer c.close()
	_, err = c.ask()
	return err
}

func (s *service) stop() {
	if s.process != nil {
		s.process.stop(syscall.SIGTERM)
	}
}

// pids are the processes of the pooler; none for Postgres itself, whose cost is not the question.
func (s *service) pids() []int {
	if s.process == nil {
		return nil
	}
	return tree(s.process.cmd.Process.Pid)
}

// binaries says where the contestants' programs are; empty: bench finds or builds them.
type binaries struct{ pitr, pitrOther, pgbouncer, odyssey string }

// contestants lists all of them, those that cannot take part with the reason.
func (e *environment) contestants(ctx context.Context, root string, b binaries) []*contestant {
	all := []*contestant{
		{name: direct},
		{name: pitr, binary: b.pitr, arrange: arrangePitr},
		{name: pitrOther, binary: b.pitrOther, arrange: arrangePitr},
		{name: pgbouncer, binary: b.pgbouncer, arrange: arrangePgBouncer},
		{name: odyssey, binary: b.odyssey, arrange: arrangeOdyssey},
	}
	var found []*contestant
	for _, c := range all {
		if c.name == pitrOther && c.binary == "" {
			continue
		}
		if c.name != direct {
			if err := c.provide(ctx, root, e); err != nil {
				c.absent = err.Error()
			}
		}
		found = append(found, c)
	}
	return found
}

// provide finds the program and asks for its version. pitr is copied, since those as whom it runs may not see the checkout.
func (c *contestant) provide(ctx context.Context, root string, e *environment) (err error) {
	switch {
	case c.binary != "":
	case c.name == pitr:
		c.binary = filepath.Join(root, "bin", "pitr")
		if out, err := exec.Command("make", "-C", root, "build").CombinedOutput(); err != nil {
			return fmt.Errorf("make build: %w%s", err, said(string(out)))
		}
	default:
		if c.binary, err = script(root, "scripts/peers.sh", c.name); err != nil {
			return err
		}
	}
	if c.binary, err = filepath.Abs(c.binary); err != nil { // it is started from another directory
		return err
	}
	if c.name == pitr || c.name == pitrOther {
		copied := filepath.Join(e.dir, strings.Trim(strings.ReplaceAll(c.name, " (", "-"), ")"))
		if err := copyProgram(c.binary, copied); err != nil {
			return err
		}
		c.binary = copied
		c.version, err = c.announcedVersion(ctx, e)
		return err
	}
	out, err := exec.Command(c.binary, "--version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s --version: %w%s", c.name, err, said(string(out)))
	}
	c.version = versionIn(string(out))
	return nil
}

var versionPattern = regexp.MustCompile(`(?i)^(?:pitr|pgbouncer|odyssey)?\s*(?:version\s+)?(\S+)`)

// versionIn is the first word of --version behind the program's name.
func versionIn(out string) string {
	match := versionPattern.FindStringSubmatch(strings.TrimSpace(out))
	if match == nil {
		return ""
	}
	return match[1]
}

// announcedVersion starts a pitr and reads what it says of itself in its first line of log; other programs have --version.
func (c *contestant) announcedVersion(ctx context.Context, e *environment) (string, error) {
	s, err := c.start(ctx, e, workload{})
	if err != nil {
		return "", err
	}
	defer s.stop()
	if match := announcedPattern.FindStringSubmatch(s.process.output.String()); match != nil {
		return match[1], nil
	}
	return "of an unknown commit", nil
}

var announcedPattern = regexp.MustCompile(`(?m)\bversion=(\S+)`)

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
