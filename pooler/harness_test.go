package pooler

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/goleak"

	"pitr/config"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.server != nil {
		if err := shared.server.stop(); err != nil {
			_, _ = io.WriteString(os.Stderr, err.Error()+"\n")
			code = 1
		}
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			_, _ = io.WriteString(os.Stderr, "goroutines left: "+err.Error()+"\n")
			code = 1
		}
	}
	os.Exit(code)
}

// settings are the defaults of config/settings.go, with a small pool.
func settings(pg *postgres) config.Config {
	second := config.Duration(time.Second)
	return config.Config{
		Postgres: config.Postgres{DSN: config.DSN(pg.dsn(""))},
		Pooler: config.Pooler{
			Listen: []string{"127.0.0.1:0"}, PoolMode: "transaction", DefaultPoolSize: 5, MaxClientConn: 1000, MaxPreparedStatements: 200,
			QueryWaitTimeout: 30 * second, ClientLoginTimeout: 10 * second, ServerConnectTimeout: 10 * second, ServerLoginRetry: second,
			ServerIdleTimeout: 600 * second, ServerLifetime: 3600 * second, DrainTimeout: 5 * second, ServerResetTimeout: 10 * second,
			ClientWriteTimeout: 60 * second, PktBuf: 4 << 10, LazyBegin: "on", SessionObjects: "pin", Workers: 2, ReplaySizeMax: 16 << 10, MaxClientNotifications: 1000, MaxLoginConn: 1000, MaxPools: 100, MaxCancelRequests: 100,
			MaxParameterSets: 100, MaxPipelineMessages: 10000, MaxClientPreparedStatements: 10000, PreparedStatementSizeMax: 1 << 20,
			MaxClientSettingsSize: 16 << 10,
			Auth:                  config.Auth{Type: "trust"},
		},
	}
}

// running is a pooler in front of the package's Postgres.
type running struct {
	*Pooler
	port int
	stop func() // cancels and waits; may be called more than once
}

func start(t testing.TB, pg *postgres, change func(*config.Config)) *running {
	t.Helper()
	return startLogging(t, pg, change, slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})))
}

func startLogging(t testing.TB, pg *postgres, change func(*config.Config), log *slog.Logger) *running {
	t.Helper()
	cfg := settings(pg)
	if change != nil {
		change(&cfg)
	}
	p, err := New(cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx); close(done) }()
	stop := func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return &running{Pooler: p, port: p.Addr().(*net.TCPAddr).Port, stop: stop}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func (r *running) dsn(more string) string {
	return "host=127.0.0.1 port=" + strconv.Itoa(r.port) + " user=postgres dbname=postgres sslmode=disable " + more
}

func connect(t testing.TB, dsn string) *pgconn.PgConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgconn.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	})
	return conn
}

// query returns the first column of the rows of a simple query, joined by commas.
func query(conn *pgconn.PgConn, sql string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	results, err := conn.Exec(ctx, sql).ReadAll()
	var values []string
	for _, result := range results {
		for _, row := range result.Rows {
			values = append(values, string(row[0]))
		}
	}
	return strings.Join(values, ","), err
}

func mustQuery(t testing.TB, conn *pgconn.PgConn, sql string) string {
	t.Helper()
	value, err := query(conn, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}

// eventually waits for a condition that other goroutines bring about.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	timeout := time.NewTimer(20 * time.Second)
	defer timeout.Stop()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-timeout.C:
			t.Fatalf("never: %s", what)
		case <-ticker.C:
		}
	}
}

// run runs a client program of Postgres against the pooler.
func (r *running) run(t testing.TB, pg *postgres, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, pg.bin+"/"+program, args...)
	cmd.Env = append(os.Environ(), "PGHOST=127.0.0.1", "PGPORT="+strconv.Itoa(r.port), "PGUSER=postgres", "PGDATABASE=postgres",
		"PGSSLMODE=prefer", "PGAPPNAME="+program)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
	return string(out)
}
