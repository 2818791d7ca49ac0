package pooler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pitr/config"
	"pitr/internal/postmaster"
)

// replicating is a server that lets whoever has the password stream from it, and a pooler in front of it.
func replicating(t *testing.T, change func(*config.Config)) (*postgres, *running) {
	t.Helper()
	pg, err := startPostgres("wal_level=logical", "fsync=off", "max_wal_senders=10")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.stop(); err != nil {
			t.Error(err)
		}
	})
	return pg, start(t, pg, func(cfg *config.Config) {
		cfg.Pooler.MaxReplicationConnections = 3
		if change != nil {
			change(cfg)
		}
	})
}

// tool runs one of Postgres's programs through the pooler.
func (r *running) tool(ctx context.Context, pg *postgres, name string, args ...string) *exec.Cmd {
	args = append(args, "-h", "127.0.0.1", "-p", fmt.Sprint(r.port), "-U", "postgres", "-w")
	return exec.CommandContext(ctx, filepath.Join(pg.bin, name), args...)
}

func TestToolsOfReplicationWorkThroughThePooler(t *testing.T) {
	pg, r := replicating(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	conn := connect(t, r.dsn(""))
	mustQuery(t, conn, "create table t as select generate_series(1, 1000) i")
	backup := filepath.Join(t.TempDir(), "backup")
	if out, err := r.tool(ctx, pg, "pg_basebackup", "-D", backup, "-X", "stream", "-c", "fast").CombinedOutput(); err != nil {
		t.Fatalf("pg_basebackup: %v\n%s", err, out)
	}
	if out, err := exec.CommandContext(ctx, filepath.Join(pg.bin, "pg_verifybackup"), backup).CombinedOutput(); err != nil {
		t.Errorf("pg_verifybackup: %v\n%s", err, out)
	}
	wal := t.TempDir()
	end := mustQuery(t, conn, "select pg_current_wal_lsn()")
	mustQuery(t, conn, "select pg_switch_wal()")
	if out, err := r.tool(ctx, pg, "pg_receivewal", "-D", wal, "-E", end, "--no-loop").CombinedOutput(); err != nil {
		t.Errorf("pg_receivewal: %v\n%s", err, out)
	}
	if files, err := os.ReadDir(wal); err != nil || len(files) == 0 {
		t.Errorf("pg_receivewal has received %d files, %v", len(files), err)
	}
	if out, err := r.tool(ctx, pg, "pg_recvlogical", "-d", "postgres", "--slot", "s", "--create-slot", "-P", "test_decoding").CombinedOutput(); err != nil {
		t.Fatalf("pg_recvlogical: %v\n%s", err, out)
	}
	mustQuery(t, conn, "insert into t values (4711)")
	end = mustQuery(t, conn, "select pg_current_wal_lsn()")
	out, err := r.tool(ctx, pg, "pg_recvlogical", "-d", "postgres", "--slot", "s", "--start", "-f", "-", "-E", end, "--no-loop").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "INSERT: i[integer]:4711") {
		t.Errorf("pg_recvlogical: %v\n%s", err, out)
	}
	eventually(t, "nothing is left", func() bool { return r.Stats().Replications == 0 })
	if got := mustQuery(t, conn, "select count(*) from t"); got != "1001" {
		t.Errorf("the pool has %s rows", got)
	}
}

func TestReplicationHasALimitAndEndsWithEitherSide(t *testing.T) {
	pg, r := replicating(t, func(cfg *config.Config) { cfg.Pooler.MaxReplicationConnections = 1 })
	conn := connect(t, r.dsn("replication=true"))
	results, err := conn.Exec(t.Context(), "IDENTIFY_SYSTEM").ReadAll()
	if err != nil || len(results) != 1 || len(results[0].Rows) != 1 {
		t.Fatalf("IDENTIFY_SYSTEM: %v, %v", results, err)
	}
	_, err = pgconn.Connect(t.Context(), r.dsn("replication=database"))
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != "53300" || !strings.Contains(refused.Message, "max_replication_connections") {
		t.Errorf("one more: %v", err)
	}
	direct := connect(t, pg.dsn(""))
	if got := mustQuery(t, direct, "select count(*) from pg_stat_activity where backend_type = 'walsender'"); got != "1" {
		t.Errorf("the server has %s walsenders", got)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Error(err)
	}
	eventually(t, "the server's side has ended too", func() bool {
		return mustQuery(t, direct, "select count(*) from pg_stat_activity where backend_type = 'walsender'") == "0" && r.Stats().Replications == 0
	})
	again := connect(t, r.dsn("replication=database"))
	if got := mustQuery(t, again, "select current_database()"); got != "postgres" {
		t.Errorf("for logical replication it is in %q", got)
	}
	mustQuery(t, direct, "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'walsender'")
	if _, err := query(again, "select 1"); err == nil {
		t.Error("the client's side goes on")
	}
	if hits := r.Stats().Limits.MaxReplicationConnections; hits != 1 {
		t.Errorf("the limit was hit %d times", hits)
	}
}

func TestReplicationTakesTheSecretThatTheClientHasShown(t *testing.T) {
	pg, r := replicating(t, func(cfg *config.Config) {
		cfg.Pooler.Auth.Type = "scram-sha-256"
		cfg.Pooler.Users = map[string]config.User{"streamer": {Password: "swordfish"}}
	})
	direct := connect(t, pg.dsn(""))
	mustQuery(t, direct, "create role streamer login replication password 'swordfish'")
	demandSCRAM(t, pg, direct, "streamer")
	dsn := strings.Replace(r.dsn("replication=true"), "user=postgres", "user=streamer password=", 1)
	conn := connect(t, strings.Replace(dsn, "password=", "password=swordfish", 1))
	if _, err := conn.Exec(t.Context(), "IDENTIFY_SYSTEM").ReadAll(); err != nil {
		t.Error(err)
	}
	if _, err := pgconn.Connect(t.Context(), strings.Replace(dsn, "password=", "password=trout", 1)); err == nil || !strings.Contains(err.Error(), "28P01") {
		t.Errorf("a wrong password: %v", err)
	}
	if err := pg.server.Stop(t.Context(), postmaster.Immediate); err != nil {
		t.Fatal(err)
	}
	if _, err := pgconn.Connect(t.Context(), strings.Replace(dsn, "password=", "password=swordfish", 1)); err == nil || !strings.Contains(err.Error(), "08001") {
		t.Errorf("without a server: %v", err)
	}
}

func TestWhatAServerHasSentLastReachesTheClient(t *testing.T) {
	clientSide, client := pipe(t)
	serverSide, server := pipe(t)
	done := make(chan error, 1)
	go func() { done <- exchange(clientSide, bytes.NewReader([]byte("early")), serverSide) }()
	got := make([]byte, 5)
	if _, err := server.Read(got); err != nil || string(got) != "early" {
		t.Errorf("the server got %q, %v", got, err)
	}
	if _, err := server.Write([]byte("the last words")); err != nil || server.Close() != nil {
		t.Fatal(err)
	}
	words := make([]byte, 64)
	if n, err := client.Read(words); err != nil || string(words[:n]) != "the last words" {
		t.Errorf("the client got %q, %v", words[:n], err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// pipe is both ends of a TCP connection.
func pipe(t *testing.T) (one, other net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if one, err = net.Dial("tcp", listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if other, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { one.Close(); other.Close() })
	return one, other
}

// demandSCRAM has the server let a user in by its password alone.
func demandSCRAM(t *testing.T, pg *postgres, direct *pgconn.PgConn, user string) {
	t.Helper()
	hba := filepath.Join(pg.dir, "data", "pg_hba.conf")
	rules, err := os.ReadFile(hba)
	if err != nil {
		t.Fatal(err)
	}
	demanding := append(fmt.Appendf(nil, "host all %[1]s 127.0.0.1/32 scram-sha-256\nhost replication %[1]s 127.0.0.1/32 scram-sha-256\n", user), rules...)
	if err := os.WriteFile(hba, demanding, 0o600); err != nil {
		t.Fatal(err)
	}
	mustQuery(t, direct, "select pg_reload_conf()")
	eventually(t, "the server wants the password", func() bool {
		_, err := pgconn.Connect(t.Context(), strings.Replace(pg.dsn(""), "user=postgres", "user="+user+" password=wrong", 1))
		return err != nil
	})
}

func TestReplicationGoesToAHostThatFits(t *testing.T) {
	_, r := replicating(t, func(cfg *config.Config) {
		cfg.Pooler.QueryWaitTimeout = seconds(5)
		cfg.Pooler.Databases = map[string]config.Database{"postgres": {TargetSessionAttrs: "primary"}, "elsewhere": {TargetSessionAttrs: "standby", DBName: "postgres"}}
	})
	conn := connect(t, r.dsn("replication=true"))
	if _, err := conn.Exec(t.Context(), "IDENTIFY_SYSTEM").ReadAll(); err != nil {
		t.Error(err)
	}
	_, err := pgconn.Connect(t.Context(), strings.Replace(r.dsn("replication=true"), "dbname=postgres", "dbname=elsewhere", 1))
	if err == nil || !strings.Contains(err.Error(), "target_session_attrs=standby") {
		t.Errorf("there is no standby: %v", err)
	}
}
