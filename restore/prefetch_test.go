package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// recovering is a directory that looks like one in which this process recovers a server.
func recovering(t testing.TB, dir string) {
	t.Helper()
	write(t, filepath.Join(dir, "postmaster.pid"), fmt.Sprintln(os.Getpid()))
	write(t, filepath.Join(dir, "recovery.signal"), "")
	write(t, filepath.Join(dir, "pg_wal/placeholder"), "")
}

// recovery asks for WAL as Postgres and `wal fetch` do.
type recovery struct {
	t           testing.TB
	repo        *repo.Repo
	dir         string
	destination string
	hits        int
}

func newRecovery(t testing.TB, r *repo.Repo) *recovery {
	t.Helper()
	dir := newDir(t)
	recovering(t, dir)
	return &recovery{t: t, repo: r, dir: dir, destination: filepath.Join(dir, "pg_wal/RECOVERYXLOG")}
}

func (c *recovery) spool() Spool {
	c.t.Helper()
	spool, ok := SpoolOf(c.destination)
	if !ok {
		c.t.Fatal("a recovery has no spool")
	}
	return spool
}

// ask returns what a fetch brings.
func (c *recovery) ask(name string) ([]byte, error) {
	c.t.Helper()
	spool := c.spool()
	if spool.Take(name, c.destination) {
		c.hits++
	} else {
		if err := FetchWAL(c.t.Context(), c.repo, name, c.destination, FetchOptions{}); err != nil {
			return nil, err
		}
		if err := spool.Want(name); err != nil {
			c.t.Fatal(err)
		}
	}
	content, err := os.ReadFile(c.destination)
	if err := errors.Join(err, os.Remove(c.destination)); err != nil {
		c.t.Fatal(err)
	}
	return content, nil
}

// prefetch runs a prefetcher until the function is called that it returns.
func (c *recovery) prefetch(r *repo.Repo, change func(*PrefetchOptions)) (stop func()) {
	c.t.Helper()
	opt := PrefetchOptions{Data: c.dir, Max: 4 << 20, Parallel: 3, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&opt)
	}
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan error, 1)
	go func() { done <- Prefetch(ctx, r, opt) }()
	c.until("the prefetcher serves", func() bool { return c.spool().Busy() })
	return func() {
		c.t.Helper()
		cancel()
		if err := <-done; err != nil {
			c.t.Error(err)
		}
		if left, err := filepath.Glob(filepath.Join(c.dir, spoolPrefix+"*")); err != nil || len(left) > 0 {
			c.t.Errorf("left are %q (%v)", left, err)
		}
	}
}

func (c *recovery) until(what string, holds func() bool) {
	c.t.Helper()
	deadline := time.After(30 * time.Second)
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for !holds() {
		select {
		case <-deadline:
			c.t.Fatalf("waited in vain until %s", what)
		case <-ticker.C:
		}
	}
}

// ready lists the whole segments in the spool.
func (c *recovery) ready() []string {
	c.t.Helper()
	entries, err := os.ReadDir(c.spool().dir)
	if err != nil {
		c.t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		if len(entry.Name()) == 24 {
			names = append(names, entry.Name())
		}
	}
	return names
}

// wholeSegments are the names of those of timeline 1, and what they hold.
func wholeSegments(t testing.TB, w *world) (names []string, content map[string][]byte) {
	t.Helper()
	inv, err := w.repo.Inventory(t.Context(), 1, w.size, 0)
	if err != nil {
		t.Fatal(err)
	}
	content = map[string][]byte{}
	for _, number := range inv.Segments {
		segment := pg.Segment{Timeline: 1, Number: number}
		name := segment.Name(w.size)
		names = append(names, name)
		if content[name], err = w.repo.ReadSegment(t.Context(), w.size, segment); err != nil {
			t.Fatal(err)
		}
	}
	if len(names) < 6 {
		t.Fatalf("%d segments: the test shows nothing", len(names))
	}
	return names, content
}

func TestTheNextSegmentLiesReadyAndIsWhatTheArchiveHas(t *testing.T) {
	w := theWorld(t)
	names, content := wholeSegments(t, w)
	c := newRecovery(t, w.repo)
	stop := c.prefetch(w.repo, nil)
	for i, name := range names {
		got, err := c.ask(name)
		if err != nil || !bytes.Equal(got, content[name]) {
			t.Fatalf("%s: %d bytes that differ (%v)", name, len(got), err)
		}
		if rest := names[i+1:]; len(rest) > 0 {
			c.until("what follows "+name+" is ready", func() bool { return len(c.ready()) == min(4, len(rest)) })
		}
	}
	if c.hits != len(names)-1 {
		t.Errorf("%d of %d segments lay ready", c.hits, len(names))
	}
	// Back to the beginning, as after a crash of the server; then behind the end; then on another timeline.
	if got, err := c.ask(names[1]); err != nil || !bytes.Equal(got, content[names[1]]) {
		t.Errorf("once more: %v", err)
	}
	c.until("the prefetcher has gone back", func() bool { ready := c.ready(); return len(ready) == 4 && ready[0] == names[2] })
	if _, err := c.ask("0000000100000000000000EE"); !errors.Is(err, ErrAbsent) {
		t.Errorf("behind the end: %v", err)
	}
	second := w.size.Segment(2, w.fork).Name(w.size)
	if _, err := c.ask(second); err != nil {
		t.Errorf("on the other timeline: %v", err)
	}
	c.until("it has left the first timeline", func() bool {
		ready := c.ready()
		return len(ready) == 0 || strings.HasPrefix(ready[0], "00000002")
	})
	stop()
}

func TestNothingBehindTheStopIsFetchedAhead(t *testing.T) {
	w := theWorld(t)
	names, _ := wholeSegments(t, w)
	c := newRecovery(t, w.repo)
	third, err := pg.ParseSegmentName(names[2], w.size)
	if err != nil {
		t.Fatal(err)
	}
	_, r, f := w.copyOf(t)
	stop := c.prefetch(r, func(opt *PrefetchOptions) { opt.Until = third.Start(w.size) + 1 })
	if _, err := c.ask(names[0]); err != nil {
		t.Fatal(err)
	}
	c.until("two are ready", func() bool { return len(c.ready()) == 2 })
	for range 2 {
		if name := c.ready()[0]; !c.spool().Take(name, c.destination) {
			t.Fatalf("%s was not to be taken", name)
		}
	}
	gets := f.count()
	if _, err := c.ask(names[3]); err != nil { // Postgres reads ahead
		t.Fatal(err)
	}
	c.until("the prefetcher knows", func() bool {
		want, err := c.spool().wanted()
		return err == nil && want == names[3]
	})
	stop()
	if now := f.count(); now != gets {
		t.Errorf("%d requests for what is not needed", now-gets)
	}
}

// TestAPrefetcherThatIsKilledAnywhereSpoilsNothing kills one again and again while recovery goes on.
func TestAPrefetcherThatIsKilledAnywhereSpoilsNothing(t *testing.T) {
	w := theWorld(t)
	names, content := wholeSegments(t, w)
	c := newRecovery(t, w.repo)
	for round := range 12 {
		cmd := exec.Command("/proc/self/exe", c.dir)
		cmd.Env = append(os.Environ(), prefetchEnv+"="+w.root)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		c.until("the prefetcher serves", func() bool { return c.spool().Busy() })
		for i, name := range names {
			if i == round%len(names) {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				_ = cmd.Wait() // "signal: killed" is what we want
			}
			if got, err := c.ask(name); err != nil || !bytes.Equal(got, content[name]) {
				t.Fatalf("round %d, %s: %d bytes that differ (%v)", round, name, len(got), err)
			}
		}
	}
	if c.hits == 0 {
		t.Error("nothing ever lay ready: the test shows nothing")
	}
	// What is left is used by the next, and goes with the recovery.
	stop := c.prefetch(w.repo, nil)
	if err := os.Remove(filepath.Join(c.dir, "recovery.signal")); err != nil {
		t.Fatal(err)
	}
	if _, ok := SpoolOf(c.destination); ok {
		t.Error("a server that does not recover has a spool")
	}
	c.until("the spool has gone with the recovery", func() bool {
		left, err := filepath.Glob(filepath.Join(c.dir, spoolPrefix+"*"))
		return err == nil && len(left) == 0
	})
	stop()
}

// TestTroubleWithTheStoreIsToldByTheFetchItself makes every answer bad: a spool must neither hold anything then, nor make it look absent.
func TestTroubleWithTheStoreIsToldByTheFetchItself(t *testing.T) {
	w := theWorld(t)
	names, content := wholeSegments(t, w)
	for fault, spoil := range faults {
		_, r, f := w.copyOf(t)
		c := newRecovery(t, r)
		stop := c.prefetch(r, nil)
		if _, err := c.ask(names[0]); err != nil {
			t.Fatal(err)
		}
		c.until("the spool is full", func() bool { return len(c.ready()) == 4 })
		f.onGet(func(_ int, _ string, body io.ReadCloser) (io.ReadCloser, error) { return spoil(body) })
		for _, name := range names[1:5] { // replay goes on with what is there
			if got, err := c.ask(name); err != nil || !bytes.Equal(got, content[name]) {
				t.Errorf("%s, %s: %v", fault, name, err)
			}
		}
		if got, err := c.ask(names[5]); err == nil || errors.Is(err, ErrAbsent) {
			t.Errorf("%s: a store that fails is told as %v (hits %d, same %t)", fault, err, c.hits, bytes.Equal(got, content[names[5]]))
		}
		if ready := c.ready(); len(ready) > 0 {
			t.Errorf("%s: %q lie ready", fault, ready)
		}
		f.onGet(nil)
		if got, err := c.ask(names[5]); err != nil || !bytes.Equal(got, content[names[5]]) {
			t.Errorf("%s, %s: %v", fault, names[5], err)
		}
		stop()
	}
}

func TestTwoRecoveriesDoNotMeet(t *testing.T) {
	w := theWorld(t)
	names, content := wholeSegments(t, w)
	a, b := newRecovery(t, w.repo), newRecovery(t, w.repo)
	stopA, stopB := a.prefetch(w.repo, nil), b.prefetch(w.repo, nil)
	// A second prefetcher in one place steps back at once.
	if err := Prefetch(t.Context(), w.repo, PrefetchOptions{Data: a.dir, Max: 4 << 20, Parallel: 3, Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Error(err)
	}
	half := len(names) / 2
	for i := range half { // one is half the archive behind the other
		for c, name := range map[*recovery]string{a: names[i], b: names[half+i]} {
			if got, err := c.ask(name); err != nil || !bytes.Equal(got, content[name]) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	stopA()
	stopB()
}

// TestADiskThatIsFullLeavesNothingHalfInTheSpool uses a small file system.
func TestADiskThatIsFullLeavesNothingHalfInTheSpool(t *testing.T) {
	w := theWorld(t)
	names, content := wholeSegments(t, w)
	dir := smallDisk(t, 5<<19) // 2.5 MiB: two segments and a half
	recovering(t, dir)
	c := &recovery{t: t, repo: w.repo, dir: dir, destination: filepath.Join(dir, "pg_wal/RECOVERYXLOG")}
	stop := c.prefetch(w.repo, nil)
	for _, name := range names { // without room for a reserve nothing is fetched ahead
		if got, err := c.ask(name); err != nil || !bytes.Equal(got, content[name]) {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if c.hits > 0 {
		t.Errorf("%d segments were fetched ahead on a disk that is full", c.hits)
	}
	spool := c.spool()
	for i, name := range names[:4] {
		err := spool.put(t.Context(), name, func(context.Context) ([]byte, error) { return content[name], nil })
		if full := errors.Is(err, syscall.ENOSPC); full != (i >= 2) {
			t.Errorf("segment %d: %v", i, err)
		}
	}
	if entries, err := filepath.Glob(filepath.Join(spool.dir, "*"+spoolPartial)); err != nil || len(entries) > 0 || len(c.ready()) != 2 {
		t.Errorf("%q lie ready, %q are half there (%v)", c.ready(), entries, err)
	}
	stop()
}

// smallDisk is a file system of its own with so many bytes.
func smallDisk(t testing.TB, size int) string {
	t.Helper()
	dir := filepath.Join(newDir(t) + "-disk")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatalf("mount a small file system, which takes root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestShellTakesWhatLiesInTheSpoolOfThisBootAlone(t *testing.T) {
	dir := t.TempDir()
	boot, err := os.ReadFile(bootFile)
	if err != nil {
		t.Fatal(err)
	}
	id, _, _ := strings.Cut(string(boot), "-")
	const segment, other = "000000010000000000000007", "000000010000000000000008"
	for name, content := range map[string]string{
		filepath.Join(spoolPrefix+id, segment):                  "whole",
		filepath.Join(spoolPrefix+id, other+spoolPartial):       "on its way",
		filepath.Join(spoolPrefix+"0badb007", other):            "of another boot",
		filepath.Join(spoolPrefix+id, "00000002.history"+"x"):   "of another name",
		filepath.Join("pg_wal", "archive_status", "irrelevant"): "",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700), os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	take := func(name string) (exit int, got string) {
		t.Helper()
		// As BuildRestoreCommand of src/common/archive.c fills it in.
		command := strings.NewReplacer("%f", name, "%p", "pg_wal/RECOVERYXLOG", "%%", "%").Replace(ShellTake + " || exec sh -c 'exit 42'")
		cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if len(out) > 0 {
			t.Errorf("%s: it says %q", name, out)
		}
		var failed *exec.ExitError
		if err != nil && !errors.As(err, &failed) {
			t.Fatal(err)
		}
		content, err := os.ReadFile(filepath.Join(dir, "pg_wal", "RECOVERYXLOG"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), string(content)
	}
	if exit, got := take(other); exit != 42 || got != "" {
		t.Errorf("a segment that is on its way, and in another boot's spool: exit code %d, %q", exit, got)
	}
	if exit, got := take("00000002.history"); exit != 42 || got != "" {
		t.Errorf("a history file: exit code %d, %q", exit, got)
	}
	if exit, got := take(segment); exit != 0 || got != "whole" {
		t.Errorf("exit code %d, %q", exit, got)
	}
	if exit, _ := take(segment); exit != 42 {
		t.Errorf("a segment that was taken is there again: exit code %d", exit)
	}
}
