package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
)

// pushScript is an archive_command in whose way everything comes: every fourth push is killed, and after every fourth one the command
// fails although the file was stored, so that Postgres pushes it again.
const pushScript = `#!/bin/sh
n=$(cat %[1]s/pushes 2>/dev/null || echo 0)
echo $((n + 1)) > %[1]s/pushes
case $((n %% 4)) in
1) %[2]s -c %[3]s wal push "$1" & sleep 0.03; kill -9 $!; wait $!; exit 1 ;;
3) %[2]s -c %[3]s wal push "$1" || exit $?; exit 1 ;;
esac
exec %[2]s -c %[3]s wal push "$1" 2>> %[1]s/push.log
`

// archive makes Postgres archive through the script.
func (h *harness) archive(ctx context.Context) {
	h.t.Helper()
	script := filepath.Join(h.dir, "archive.sh")
	text := fmt.Sprintf(pushScript, h.dir, h.bin.plain, h.config)
	if err := errors.Join(os.WriteFile(script, []byte(text), 0o755), h.install.Own(h.dir)); err != nil {
		h.t.Fatal(err)
	}
	h.psql(ctx, "alter system set archive_command = '"+script+" %p'")
	h.psql(ctx, "select pg_reload_conf()")
}

// pushed waits until Postgres has been told that a segment is archived.
func (h *harness) pushed(ctx context.Context, segment string) {
	h.t.Helper()
	h.eventually(ctx, segment+" is archived", func() bool {
		if h.psql(ctx, "select last_archived_wal >= '"+segment+"' from pg_stat_archiver") == "t" {
			return true
		}
		h.psql(ctx, "select pg_switch_wal()") // a new segment wakes Postgres's archiver, which waits for a minute after three failures
		return false
	})
}

func TestPostgresArchivesByPushing(t *testing.T) {
	for _, with := range []string{"without a socket", "through the socket of an archiver that is killed", "encrypted"} {
		t.Run(with, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
			defer cancel()
			h := newHarness(t, "", "archive_mode=on")
			reader := h.config
			archiver := false
			switch with {
			case "encrypted":
				reader = h.encrypt()
			case "through the socket of an archiver that is killed":
				archiver = true
				h.setPushSocket(filepath.Join(h.dir, "push.sock"))
				h.start(ctx, "archiver")
			}
			h.archive(ctx)
			h.psql(ctx, "create table t (i int); insert into t values (1)")
			h.mustPitr(ctx, "backup")
			segment := ""
			for i := range 6 {
				h.psql(ctx, fmt.Sprintf("insert into t values (%d)", 10+i))
				segment = h.psql(ctx, "select pg_walfile_name(pg_current_wal_insert_lsn())")
				h.psql(ctx, "select pg_switch_wal()")
				if archiver && i%2 == 0 {
					h.kill("archiver")
					h.start(ctx, "archiver")
				}
				if i == 3 {
					h.killPostgres(ctx)
				}
			}
			h.pushed(ctx, segment)
			h.config = reader
			if out := h.mustPitr(ctx, "verify", "--level", "checksum"); !strings.Contains(out, ": 0 defects") {
				t.Errorf("verify: %s", out)
			}
			if rows := h.restored(ctx, "restored", "select string_agg(i::text, ' ' order by i) from t"); rows != "1 10 11 12 13 14 15" {
				t.Errorf("rows %s came back", rows)
			}
			pushes, err := os.ReadFile(filepath.Join(h.dir, "pushes"))
			if n, _ := strconv.Atoi(strings.TrimSpace(string(pushes))); err != nil || n < 8 {
				t.Errorf("only %s pushes were tried, %v", pushes, err)
			}
			if log := h.logs(); archiver && !strings.Contains(log, "file pushed") {
				t.Errorf("nothing came through the socket:\n%s", log)
			}
		})
	}
}

func (h *harness) setPushSocket(path string) {
	h.t.Helper()
	text, err := os.ReadFile(h.config)
	if err != nil {
		h.t.Fatal(err)
	}
	changed := strings.Replace(string(text), "flush_interval: 200ms", "flush_interval: 200ms, push_socket: "+path, 1)
	if err := os.WriteFile(h.config, []byte(changed), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// killPostgres ends the server as a crash does, and starts it again.
func (h *harness) killPostgres(ctx context.Context) {
	h.t.Helper()
	if err := h.server.Kill(); err != nil {
		h.t.Fatal(err)
	}
	opt := postmaster.StartOptions{Dir: h.server.Dir, Port: h.server.Port, Log: h.server.Dir + ".log", Settings: []string{"fsync=off", "archive_mode=on", "wal_keep_size=4GB"}}
	var server *postmaster.Server
	h.eventually(ctx, "Postgres runs again", func() bool { // what it has left in shared memory goes when its last child does
		var err error
		server, err = h.install.StartChild(ctx, opt)
		return err == nil
	})
	h.server = server
	h.t.Cleanup(func() {
		if err := server.Stop(context.Background(), postmaster.Immediate); err != nil {
			h.t.Error(err)
		}
	})
}

func TestTimelineThatEndsIsPushedWithItsHistoryAndItsLastSegment(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	h := newHarness(t, "", "archive_mode=on")
	h.psql(ctx, fmt.Sprintf("alter system set archive_command = '%s -c %s wal push %%p 2>> %s/push.log'", h.bin.plain, h.config, h.dir))
	h.psql(ctx, fmt.Sprintf("alter system set restore_command = '%s -c %s wal fetch %%f %%p'", h.bin.plain, h.config))
	h.psql(ctx, "select pg_reload_conf()")
	h.psql(ctx, "create table t (i int); insert into t values (1)")
	h.mustPitr(ctx, "backup")
	h.psql(ctx, "insert into t values (2); select pg_switch_wal()")
	h.psql(ctx, "insert into t values (3)")
	last := h.psql(ctx, "select pg_walfile_name(pg_current_wal_insert_lsn())")
	signal := filepath.Join(h.server.Dir, "recovery.signal")
	if err := errors.Join(os.WriteFile(signal, nil, 0o600), h.install.Own(h.server.Dir)); err != nil {
		t.Fatal(err)
	}
	h.killPostgres(ctx)
	h.eventually(ctx, "recovery is over", func() bool { return h.psql(ctx, "select pg_is_in_recovery()") == "f" })
	h.psql(ctx, "insert into t values (4)")
	segment := h.psql(ctx, "select pg_walfile_name(pg_current_wal_insert_lsn())")
	h.psql(ctx, "select pg_switch_wal()")
	h.pushed(ctx, segment)
	log, err := os.ReadFile(filepath.Join(h.dir, "push.log"))
	if err != nil || !strings.HasPrefix(segment, "00000002") || !strings.Contains(string(log), last+".partial: stored up to ") {
		t.Errorf("%s was archived after %s; the pushes said %s, %v", segment, last, log, err)
	}
	if out := h.mustPitr(ctx, "verify", "--level", "checksum"); !strings.Contains(out, ": 0 defects") {
		t.Errorf("verify: %s", out)
	}
	into, port := filepath.Join(h.dir, "restored"), postmastertest.FreePort(t)
	h.mustPitr(ctx, "restore", "--to", "latest", "--into", into, "--start", "--port", strconv.Itoa(port))
	copied := h.install.Attach(into, port)
	rows, err := copied.Query(ctx, "postgres", "postgres", "select string_agg(i::text, ' ' order by i) from t")
	if err := errors.Join(err, copied.Stop(ctx, postmaster.Immediate)); err != nil {
		t.Fatal(err)
	}
	if rows != "1 2 3 4" {
		t.Errorf("rows %s came back", rows)
	}
}
