package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"pitr/internal/postmaster/postmastertest"
	"pitr/internal/store/s3/s3test"
)

// scriptWorld is what the scripts of testdata/script start from: a running Postgres, and the repository of an archiver that has
// stopped. Each script works on a copy of the repository.
type scriptWorld struct {
	h    *harness
	vars map[string]string
}

// TestScripts runs what a user could type, and compares messages and exit codes.
func TestScripts(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	w := newScriptWorld(ctx, t)
	root := postmastertest.TempDir(t, w.h.install)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", WorkdirRoot: root, RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: w.setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"pitr": func(ts *testscript.TestScript, neg bool, args []string) { w.run(ts, neg, args) },
			"flip": flipBytes,
		},
	})
}

func newScriptWorld(ctx context.Context, t *testing.T) *scriptWorld {
	h := newHarness(t, "")
	w := &scriptWorld{h: h, vars: map[string]string{}}
	clock := func(name string) {
		w.vars[name] = h.psql(ctx, "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || 'Z'")
	}
	segment := func() string { return h.psql(ctx, "select pg_walfile_name(pg_current_wal_insert_lsn())") }
	h.start(ctx, "archiver")
	clock("EARLY")
	h.psql(ctx, "create table t (i int); create table doomed (i int); insert into t values (1)")
	h.mustPitr(ctx, "backup")
	h.psql(ctx, "insert into t values (2)")
	clock("INSTANT")
	h.psql(ctx, "insert into t values (3)")
	h.psql(ctx, "select pg_create_restore_point('marker')")
	for i := range 4 {
		w.vars["SEGMENT"+strconv.Itoa(i)] = segment()
		h.psql(ctx, fmt.Sprintf("insert into t values (%d); select pg_switch_wal()", 10+i))
	}
	h.psql(ctx, "insert into t values (20)")
	clock("AFTERGAP")
	h.psql(ctx, "insert into t values (21)")
	h.eventually(ctx, "the archive knows the table's name", func() bool {
		_, err := h.pitr(ctx, "log", "--rel", "public.doomed")
		return err == nil
	})
	w.vars["DROPPER"] = h.psql(ctx, "begin; drop table doomed; select pg_current_xact_id(); commit")
	h.archived(ctx)
	if err := h.stop("archiver"); err != nil {
		t.Fatalf("the archiver did not stop in order: %v\n%s", err, h.logs())
	}
	s3 := s3test.Start(t)
	w.vars["S3"] = s3.Endpoint
	w.vars["RUNNING"] = h.server.Dir
	w.vars["PORT"] = strconv.Itoa(h.server.Port)
	w.vars["CLOSED"] = strconv.Itoa(postmastertest.FreePort(t))
	return w
}

// setup gives a script its copy of the repository and a configuration for it.
func (w *scriptWorld) setup(env *testscript.Env) error {
	repository := filepath.Join(env.WorkDir, "repository")
	if err := os.CopyFS(repository, os.DirFS(filepath.Join(w.h.dir, "repository"))); err != nil {
		return err
	}
	config := fmt.Sprintf("cluster: test\npostgres: {dsn: \"postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable\"}\narchive: {store: \"file://%s\", store_retries: 0}\nbackup: {wal_wait: 2s}\n",
		w.h.server.Port, repository)
	if err := os.WriteFile(filepath.Join(env.WorkDir, "pitr.yaml"), []byte(config), 0o644); err != nil {
		return err
	}
	for name, value := range w.vars {
		env.Setenv(name, value)
	}
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PITR_PG_BIN"} {
		env.Setenv(name, os.Getenv(name))
	}
	env.Setenv("FUTURE", time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	if err := os.Chmod(env.WorkDir, 0o755); err != nil {
		return err
	}
	return w.h.install.Own(env.WorkDir)
}

// run is the script command `pitr CODE ARGUMENT...`: it runs the real binary and compares the exit code.
func (w *scriptWorld) run(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: pitr EXITCODE ARGUMENT...")
	}
	err := ts.Exec(w.h.bin.plain, args[1:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// flipBytes is the script command `flip FILE`: it changes 16 bytes in the middle.
func flipBytes(ts *testscript.TestScript, _ bool, args []string) {
	matches, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(matches) == 0 {
		ts.Fatalf("no file matches %s", args[0])
	}
	content, err := os.ReadFile(matches[0])
	ts.Check(err)
	for i := range 16 {
		content[len(content)/2+i] ^= 0x40
	}
	ts.Check(os.WriteFile(matches[0], content, 0o644))
	ts.Logf("flipped bytes of %s", strings.TrimPrefix(matches[0], ts.MkAbs(".")))
}
