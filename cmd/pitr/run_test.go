package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pitr/internal/postmaster/postmastertest"
)

// runBench is `pitr run` on a data directory of its own, with an archiver beside it.
type runBench struct {
	*harness
	data       string
	repository string
	cmd        *exec.Cmd
}

func newRunBench(t *testing.T) *runBench {
	t.Helper()
	bin, err := buildBinaries()
	if err != nil {
		t.Fatal(err)
	}
	install := postmastertest.Find(t)
	h := &harness{t: t, bin: bin, install: install, procs: map[string]*exec.Cmd{}, pooler: postmastertest.FreePort(t), dir: postmastertest.TempDir(t, install)}
	h.metrics = map[string]int{"pooler": postmastertest.FreePort(t), "archiver": postmastertest.FreePort(t)}
	h.server = install.Attach(h.dir, postmastertest.FreePort(t)) // its socket lies there
	b := &runBench{harness: h, data: filepath.Join(h.dir, "data"), repository: filepath.Join(h.dir, "repository")}
	if err := os.Mkdir(b.repository, 0o755); err != nil {
		t.Fatal(err)
	}
	h.config = b.configure("pitr.yaml", "file://"+b.repository)
	t.Cleanup(h.killAll)
	t.Cleanup(func() {
		if b.cmd != nil {
			b.kill9()
		}
		if t.Failed() {
			t.Log(b.output())
		}
	})
	return b
}

// configure writes a configuration and gives everything to the user who runs Postgres.
func (b *runBench) configure(name, store string) string {
	b.t.Helper()
	config := filepath.Join(b.dir, name)
	text := fmt.Sprintf(strings.Replace(harnessConfig, "200ms", "200ms, store_retries: 1", 1), b.server.Port, b.pooler, store, b.metrics["pooler"], b.metrics["archiver"])
	if err := errors.Join(os.WriteFile(config, []byte(text), 0o644), b.install.Own(b.dir)); err != nil {
		b.t.Fatal(err)
	}
	return config
}

// run starts `pitr run` as ourselves: root, in a container.
func (b *runBench) run(config string) {
	b.t.Helper()
	log, err := os.OpenFile(filepath.Join(b.dir, "run.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		b.t.Fatal(err)
	}
	b.cmd = exec.Command(b.bin.raced, "-c", config, "run", "--", "postgres", "-D", b.data, "-p", fmt.Sprint(b.server.Port),
		"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="+b.dir, "-c", "fsync=off", "-c", "shared_buffers=32MB", "-c", "wal_sender_timeout=5s")
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	b.cmd.Stdout, b.cmd.Stderr = log, log
	if err := errors.Join(b.cmd.Start(), log.Close()); err != nil {
		b.t.Fatal(err)
	}
}

func (b *runBench) output() string {
	content, err := os.ReadFile(filepath.Join(b.dir, "run.log"))
	if err != nil {
		return err.Error()
	}
	return string(content)
}

// open waits until the server can be written to.
func (b *runBench) open(ctx context.Context) {
	b.t.Helper()
	b.eventually(ctx, "Postgres is open", func() bool {
		out, err := b.server.Query(ctx, "postgres", "postgres", "select not pg_is_in_recovery()")
		return err == nil && out == "t"
	})
}

// end waits for the end of `pitr run` and returns its exit code.
func (b *runBench) end() int {
	b.t.Helper()
	err := b.cmd.Wait()
	b.cmd = nil
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.t.Fatal(err)
	}
	if exit == nil {
		return 0
	}
	return exit.ExitCode()
}

func (b *runBench) signal(sig syscall.Signal) int {
	b.t.Helper()
	if err := b.cmd.Process.Signal(sig); err != nil {
		b.t.Fatal(err)
	}
	return b.end()
}

// kill9 ends `pitr run` as a power cut ends it, with the server if there is one: with a container all of its processes are gone before the
// next one starts.
func (b *runBench) kill9() {
	b.t.Helper()
	session := b.cmd.Process.Pid
	if err := b.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		b.t.Error(err)
	}
	b.end()
	b.eventually(b.t.Context(), "no process of the server is left", func() bool {
		processes, err := filepath.Glob("/proc/[0-9]*")
		if err != nil {
			b.t.Fatal(err)
		}
		left := slices.DeleteFunc(processes, func(process string) bool { return !b.owns(process, session) })
		for _, process := range left {
			pid, err := strconv.Atoi(filepath.Base(process))
			if err == nil {
				err = syscall.Kill(pid, syscall.SIGKILL)
			}
			if err != nil && err != syscall.ESRCH {
				b.t.Error(err)
			}
		}
		return len(left) == 0
	})
}

// owns tells the processes of the server: the postmaster by its session, which is that of `pitr run` even while it is executed and has neither
// arguments nor a directory; its children, which have sessions of their own, by their directory.
func (b *runBench) owns(process string, session int) bool {
	stat, err := os.ReadFile(process + "/stat")
	if err != nil {
		return false // it has ended, and init has taken note: until then Postgres takes the process of a postmaster.pid for one that runs
	}
	// proc(5): the name is in parentheses, behind it are the state, the parent, the group and the session.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	at, _ := os.Readlink(process + "/cwd") // of one that has ended there is none
	return fields[3] == strconv.Itoa(session) || at == b.data
}

func (b *runBench) has(name string) bool {
	b.t.Helper()
	_, err := os.Lstat(filepath.Join(b.data, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		b.t.Fatal(err)
	}
	return err == nil
}

func (b *runBench) empty() {
	b.t.Helper()
	if err := os.RemoveAll(b.data); err != nil {
		b.t.Fatal(err)
	}
}

// recoveryEnded waits until no trace of the restore is left in the settings.
func (b *runBench) recoveryEnded(ctx context.Context) {
	b.t.Helper()
	b.eventually(ctx, "the recovery settings are gone", func() bool {
		content, err := os.ReadFile(filepath.Join(b.data, "postgresql.auto.conf"))
		return err == nil && !strings.Contains(string(content), "recovery_target") && !strings.Contains(string(content), "restore_command")
	})
}

func (b *runBench) equal(what, got, want string) {
	b.t.Helper()
	if got != want {
		b.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func (b *runBench) exits(what string, code, want int) {
	b.t.Helper()
	if code != want {
		b.t.Errorf("%s: exit code %d, want %d", what, code, want)
	}
}

// TestRunBringsTheDataBackWhenItsDirectoryIsLost is the life of a database in a container whose volume is lost, again and again.
func TestRunBringsTheDataBackWhenItsDirectoryIsLost(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	b := newRunBench(t)

	// Nothing anywhere: a new cluster.
	b.run(b.config)
	b.open(ctx)
	b.start(ctx, "archiver")
	b.psql(ctx, "create table t (i int); insert into t values (1)")
	b.mustPitr(ctx, "backup")
	b.psql(ctx, "insert into t values (2)")
	b.archived(ctx)
	b.exits("SIGINT", b.signal(syscall.SIGINT), 0)

	// The directory is lost: the latest state comes back on a new timeline, and the archiver follows.
	b.empty()
	b.run(b.config)
	b.open(ctx)
	b.equal("the rows", b.psql(ctx, "select string_agg(i::text, ',' order by i) from t"), "1,2")
	b.recoveryEnded(ctx)
	b.equal("the timeline", b.psql(ctx, "select substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"), "00000002")
	b.psql(ctx, "insert into t values (3)")
	b.archived(ctx)
	if _, err := os.Stat(filepath.Join(b.repository, "test/wal/00000002")); err != nil {
		t.Errorf("the archiver does not follow: %v", err)
	}

	// A cluster that is there starts at once, without the repository.
	unreachable := b.configure("unreachable.yaml", fmt.Sprintf("s3://bucket/x?endpoint=http://127.0.0.1:%d&region=us-east-1&path_style=true", postmastertest.FreePort(t)))
	b.exits("SIGINT on timeline 2", b.signal(syscall.SIGINT), 0)
	b.run(unreachable)
	b.open(ctx)
	b.equal("the rows", b.psql(ctx, "select count(*) from t"), "3")
	b.psql(ctx, "insert into t values (4)")
	b.archived(ctx)
	b.kill("archiver") // a smart shutdown waits for nobody but clients
	b.exits("SIGTERM", b.signal(syscall.SIGTERM), 0)

	b.refusesRivals(ctx)

	// Nothing is made when the store does not answer.
	b.empty()
	t.Setenv("AWS_ACCESS_KEY_ID", "x")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "x")
	b.run(unreachable)
	b.exits("with an unreachable store", b.end(), 1)
	if b.has("") {
		t.Error("a directory was made although the store cannot be reached")
	}

	b.killedWhileItRestores(ctx)
	b.killedWhileItRecovers(ctx)
}

// killedWhileItRestores makes a restore wait for a pack that does not come, and ends it there.
func (b *runBench) killedWhileItRestores(ctx context.Context) {
	b.t.Helper()
	packs, err := filepath.Glob(filepath.Join(b.repository, "test/packs/*/*"))
	if err != nil || len(packs) == 0 {
		b.t.Fatalf("no packs: %v", err)
	}
	if err := errors.Join(os.Rename(packs[0], b.dir+"/aside"), syscall.Mkfifo(packs[0], 0o644), b.install.Own(packs[0])); err != nil {
		b.t.Fatal(err)
	}
	b.run(b.config)
	b.eventually(ctx, "the restore has begun", func() bool { return b.has("") && b.has("global") && b.has("global/pg_control.pitr") })
	b.kill9()
	if b.has("global/pg_control") {
		b.t.Error("a restore that was killed left a directory that starts")
	}
	if err := errors.Join(os.Remove(packs[0]), os.Rename(b.dir+"/aside", packs[0])); err != nil {
		b.t.Fatal(err)
	}
	b.run(b.config)
	b.open(ctx)
	b.equal("the rows after a restore that was killed", b.psql(ctx, "select string_agg(i::text, ',' order by i) from t"), "1,2,3,4")
	b.recoveryEnded(ctx)
	b.exits("SIGINT after a restore that was killed", b.signal(syscall.SIGINT), 0)
}

// killedWhileItRecovers ends run and server before the recovery settings are removed: the next run does it.
func (b *runBench) killedWhileItRecovers(ctx context.Context) {
	b.t.Helper()
	b.empty()
	b.run(b.config)
	b.eventually(ctx, "the restore has ended", func() bool { return b.has("") && b.has("global") && b.has("global/pg_control") })
	b.kill9()
	content, err := os.ReadFile(filepath.Join(b.data, "postgresql.auto.conf"))
	if err != nil || !strings.Contains(string(content), "recovery_target_lsn") {
		b.t.Fatalf("the recovery settings are gone already (%v): the test shows nothing", err)
	}
	b.run(b.config)
	b.open(ctx)
	b.recoveryEnded(ctx)
	b.equal("the rows after a recovery that was killed", b.psql(ctx, "select count(*) from t"), "4")
	b.exits("SIGINT after a recovery that was killed", b.signal(syscall.SIGINT), 0)
}

// refusesRivals keeps the cluster of a moment ago, lets the repository go on without it, and starts others beside the server that writes.
func (b *runBench) refusesRivals(ctx context.Context) {
	b.t.Helper()
	old := b.data + ".old"
	if out, err := exec.Command("cp", "-a", b.data, old).CombinedOutput(); err != nil {
		b.t.Fatalf("%v: %s", err, out)
	}
	b.empty()
	b.run(b.config)
	b.open(ctx)
	b.recoveryEnded(ctx)
	b.start(ctx, "archiver")
	b.psql(ctx, "create table activity (i int)")
	b.archived(ctx)

	// The one that was replaced must not start.
	rival := func(dir, why string) {
		b.t.Helper()
		writing, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() {
			for writing.Err() == nil {
				if _, err := b.server.Query(writing, "postgres", "postgres", "insert into activity select 1 from pg_sleep(0.2)"); err != nil && writing.Err() == nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
		out, err := exec.CommandContext(ctx, b.bin.plain, "-c", b.config, "run", "--", "postgres", "-D", dir, "-p", strconv.Itoa(postmastertest.FreePort(b.t))).CombinedOutput()
		stop()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), why) {
			b.t.Errorf("%s: %v\n%s", dir, err, out)
		}
		if err := <-done; err != nil {
			b.t.Error(err)
		}
	}
	rival(old, "another server writes to the repository: the cluster is on timeline 2, which timeline 3 has left at ")
	rival(b.data, "a server is using the directory (process ")
	fresh := b.data + ".fresh"
	rival(fresh, "another server writes to the repository: WAL of timeline 3 has grown from ")
	if _, err := os.Stat(filepath.Join(fresh, "global/pg_control")); err == nil {
		b.t.Error("a rival that was refused can be started")
	}
	b.kill("archiver")
	b.exits("SIGINT with rivals", b.signal(syscall.SIGINT), 0)

	// A postmaster.pid that names a process which is no server does not keep it from starting.
	if err := os.WriteFile(filepath.Join(b.data, "postmaster.pid"), fmt.Appendf(nil, "%d\n%s\n0\n5432\n\n\n\n", os.Getpid(), b.data), 0o600); err != nil {
		b.t.Fatal(err)
	}
	if err := b.install.Own(filepath.Join(b.data, "postmaster.pid")); err != nil {
		b.t.Fatal(err)
	}
	b.run(b.config)
	b.open(ctx)
	b.exits("SIGINT after a stale file", b.signal(syscall.SIGINT), 0)
	if err := errors.Join(os.RemoveAll(old), os.RemoveAll(fresh)); err != nil {
		b.t.Fatal(err)
	}
}
