package restore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
	"pitr/internal/repo"
)

// deltaInto are the options of a delta restore.
func deltaInto(dir string) Options {
	opt := into(dir)
	opt.Delta = true
	return opt
}

// tree is what a directory holds: contents of files, targets of links. Tablespaces are followed.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	var walk func(dir, below string)
	walk = func(dir, below string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			name, path := below+entry.Name(), filepath.Join(dir, entry.Name())
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if info.IsDir() {
				found[name] = "directory"
				walk(path, name+"/")
				continue
			}
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			found[name] = string(content)
		}
	}
	walk(dir, "")
	return found
}

func sameTree(t testing.TB, what string, got, want map[string]string) {
	t.Helper()
	for name, content := range want {
		if there, found := got[name]; !found || there != content {
			t.Errorf("%s: %s differs or is missing (%d bytes, want %d)", what, name, len(there), len(content))
		}
	}
	for name := range got {
		if _, found := want[name]; !found {
			t.Errorf("%s: %s is left over", what, name)
		}
	}
}

// spoil makes a restored directory of smallFiles what a cluster may have become.
func spoilDirectory(t testing.TB, dir string) {
	t.Helper()
	relation := filepath.Join(dir, "base/1/1259")
	content := []byte(read(t, relation))
	content[repo.ExtentSize+5] ^= 1
	check := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	check(os.WriteFile(relation, append(content, "longer"...), 0o600), os.Remove(filepath.Join(dir, "PG_VERSION")), os.Remove(filepath.Join(dir, "recovery.signal")))
	write(t, filepath.Join(dir, "PG_VERSION"), "14\n")
	write(t, filepath.Join(dir, "base/5/16384"), "a table that is newer than the backup")
	write(t, filepath.Join(dir, "pg_wal/000000020000000000000009"), "WAL of another future")
	write(t, filepath.Join(dir, "postmaster.pid"), "999999999\n/old\n")
	write(t, filepath.Join(dir, "standby.signal"), "")
	check(os.RemoveAll(filepath.Join(dir, "base/1/empty")), os.Mkdir(filepath.Join(dir, "base/1/empty"), 0o700))
	write(t, filepath.Join(dir, "base/1/empty/file"), "where a file was")
	outside := filepath.Join(filepath.Dir(dir), "outside")
	write(t, filepath.Join(outside, "precious"), "not ours")
	check(os.Symlink(outside, filepath.Join(dir, "base/link")))
	write(t, filepath.Join(dir, "pg_tblspc/16400/PG_15/1/9"), "newer too")
}

func TestADeltaRestoreMakesOfAnOldDirectoryWhatANewOneWouldBe(t *testing.T) {
	r, _, plan := smallBackup(t)
	fresh, old := newDir(t), newDir(t)
	whole, err := CarryOut(t.Context(), r, plan, into(fresh))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CarryOut(t.Context(), r, plan, into(old)); err != nil {
		t.Fatal(err)
	}
	spoilDirectory(t, old)
	if _, err := CarryOut(t.Context(), r, plan, into(old)); !errors.Is(err, ErrNotEmpty) {
		t.Fatalf("without --delta: %v", err)
	}
	result, err := CarryOut(t.Context(), r, plan, deltaInto(old))
	if err != nil {
		t.Fatal(err)
	}
	sameTree(t, "spoilt", tree(t, old), tree(t, fresh))
	if err := isWhole(old); err != nil {
		t.Error(err)
	}
	if result.Fetched == 0 || result.Fetched >= whole.Fetched {
		t.Errorf("%d bytes were fetched, a new directory takes %d", result.Fetched, whole.Fetched)
	}
	if got := read(t, filepath.Join(filepath.Dir(old), "outside/precious")); got != "not ours" {
		t.Errorf("what a link led to holds %q", got)
	}
	// Nothing but pg_control is fetched when nothing differs.
	again, err := CarryOut(t.Context(), r, plan, deltaInto(old))
	if err != nil || again.Fetched == 0 || again.Fetched >= result.Fetched {
		t.Errorf("%d bytes were fetched for nothing (%v)", again.Fetched, err)
	}
	sameTree(t, "the same", tree(t, old), tree(t, fresh))
	// An empty directory and one that is absent are as good.
	empty := newDir(t)
	if _, err := CarryOut(t.Context(), r, plan, deltaInto(empty)); err != nil {
		t.Fatal(err)
	}
	sameTree(t, "absent", tree(t, empty), tree(t, fresh))
}

func TestADeltaRestoreRefusesWhatItMustNotTouch(t *testing.T) {
	r, _, plan := smallBackup(t)
	dir := newDir(t)
	write(t, filepath.Join(dir, "thesis.txt"), "not a cluster")
	if _, err := CarryOut(t.Context(), r, plan, deltaInto(dir)); !errors.Is(err, ErrNoCluster) {
		t.Errorf("a directory of something else: %v", err)
	}
	database := newDir(t)
	write(t, filepath.Join(database, "PG_VERSION"), "15\n")
	write(t, filepath.Join(database, "1259"), "a table of a cluster, whose directory of a database this is")
	if _, err := CarryOut(t.Context(), r, plan, deltaInto(database)); !errors.Is(err, ErrNoCluster) {
		t.Errorf("the directory of a database: %v", err)
	}
	other := newDir(t)
	if _, err := CarryOut(t.Context(), r, plan, into(other)); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(other, controlFile), string(binary.NativeEndian.AppendUint64(nil, 8))+"control")
	whole := tree(t, other)
	if _, err := CarryOut(t.Context(), r, plan, deltaInto(other)); !errors.Is(err, ErrOtherCluster) {
		t.Errorf("another cluster: %v", err)
	}
	sameTree(t, "another cluster", tree(t, other), whole)
	running := newDir(t)
	if _, err := CarryOut(t.Context(), r, plan, into(running)); err != nil {
		t.Fatal(err)
	}
	serve(t, running)
	before := tree(t, running)
	if _, err := CarryOut(t.Context(), r, plan, deltaInto(running)); !errors.Is(err, ErrInUse) {
		t.Errorf("a running server: %v", err)
	}
	sameTree(t, "a running server's directory", tree(t, running), before)
}

// TestADeltaRestoreSeesAServerThatStartsAtThisMoment has the server appear between the two looks.
func TestADeltaRestoreSeesAServerThatStartsAtThisMoment(t *testing.T) {
	dir := newDir(t)
	write(t, filepath.Join(dir, controlFile), "control")
	write(t, filepath.Join(dir, unfinishedMark), "")
	mark, err := os.Open(filepath.Join(dir, unfinishedMark))
	if err != nil {
		t.Fatal(err)
	}
	defer mark.Close()
	c := &claim{dir: dir, mark: mark}
	looks := 0
	err = c.disarm(func(string) int { looks++; return 47 * (looks - 1) })
	if !errors.Is(err, ErrInUse) || looks != 2 || read(t, filepath.Join(dir, controlFile)) != "control" {
		t.Errorf("after %d looks: %v", looks, err)
	}
	if err := c.disarm(func(string) int { return 0 }); err != nil || exists(filepath.Join(dir, controlFile)) {
		t.Errorf("without a server: %v", err)
	}
}

// serve has a process work in a directory, which says in its postmaster.pid that it is its server.
func serve(t testing.TB, dir string) {
	t.Helper()
	cmd := exec.Command("tail", "-f", "/dev/null")
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // "signal: killed" is what we want
	})
	write(t, filepath.Join(dir, "postmaster.pid"), fmt.Sprintln(cmd.Process.Pid))
}

// TestAServerIsToldFromAProcessThatHasItsNumber uses this process, which is no server.
func TestAServerIsToldFromAProcessThatHasItsNumber(t *testing.T) {
	dir := newDir(t)
	write(t, filepath.Join(dir, "postmaster.pid"), fmt.Sprintln(os.Getpid()))
	if pid := ServerOf(dir); pid != 0 {
		t.Errorf("%d is taken for a server", pid)
	}
	if removed, err := ClearStalePID(dir); err != nil || !removed || exists(filepath.Join(dir, "postmaster.pid")) {
		t.Errorf("the stale file was removed: %t (%v)", removed, err)
	}
	write(t, filepath.Join(dir, "postmaster.pid"), "999999999\n")
	if removed, err := ClearStalePID(dir); err != nil || removed || ServerOf(dir) != 0 {
		t.Errorf("that of a process that is gone is Postgres's business (%v)", err)
	}
	serve(t, dir)
	if removed, err := ClearStalePID(dir); err != nil || removed || ServerOf(dir) == 0 {
		t.Errorf("a server's own file was removed: %t (%v)", removed, err)
	}
}

// TestAServerOfAnotherContainerIsSeen lets a real server's postmaster.pid name numbers that are others' here, as in another namespace.
func TestAServerOfAnotherContainerIsSeen(t *testing.T) {
	w := theWorld(t)
	dir := filepath.Join(postmastertest.TempDir(t, w.install), "data")
	if err := w.install.InitDB(t.Context(), postmaster.InitOptions{Dir: dir, Superuser: "postgres"}); err != nil {
		t.Fatal(err)
	}
	server, err := w.install.StartChild(t.Context(), postmaster.StartOptions{Dir: dir, Port: postmastertest.FreePort(t), Log: dir + ".log", Settings: []string{"shared_buffers=16MB"}})
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "postmaster.pid")
	own := read(t, name)
	_, rest, _ := strings.Cut(own, "\n")
	for _, pid := range []int{1, os.Getpid(), 999999999} {
		write(t, name, fmt.Sprintf("%d\n%s", pid, rest))
		if removed, err := ClearStalePID(dir); ServerOf(dir) == 0 || err != nil || removed {
			t.Errorf("the server is not seen when its file says %d (%t, %v)", pid, removed, err)
		}
	}
	write(t, name, own)
	if err := server.Stop(t.Context(), postmaster.Immediate); err != nil {
		t.Fatal(err)
	}
	if pid := ServerOf(dir); pid != 0 {
		t.Errorf("process %d is left", pid)
	}
}

// TestADeltaRestoreThatIsInterruptedCannotStart makes each answer bad in turn, and interrupts at each.
func TestADeltaRestoreThatIsInterruptedCannotStart(t *testing.T) {
	r, f, plan := smallBackup(t)
	fresh := newDir(t)
	if _, err := CarryOut(t.Context(), r, plan, into(fresh)); err != nil {
		t.Fatal(err)
	}
	want := tree(t, fresh)
	failed := 0
	for n := 1; ; n++ {
		dir := newDir(t)
		f.onGet(nil)
		if _, err := CarryOut(t.Context(), r, plan, into(dir)); err != nil {
			t.Fatal(err)
		}
		spoilDirectory(t, dir)
		before := tree(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		f.onGet(func(i int, _ string, body io.ReadCloser) (io.ReadCloser, error) {
			if i < n {
				return body, nil
			}
			if n%2 == 0 {
				cancel()
				return body, nil
			}
			return faults["refused"](body)
		})
		_, err := CarryOut(ctx, r, plan, deltaInto(dir))
		cancel()
		f.onGet(nil)
		if err == nil {
			break
		}
		failed++
		if _, err := os.Stat(filepath.Join(dir, unfinishedMark)); errors.Is(err, fs.ErrNotExist) {
			sameTree(t, "not begun", tree(t, dir), before) // the manifest could not be read: nothing has happened
		} else {
			notStartable(t, fmt.Sprintf("request %d", n), dir)
		}
		opt := deltaInto(dir)
		opt.Delta = n%3 > 0 || !exists(filepath.Join(dir, unfinishedMark)) // a restore without it begins anew
		if _, err := CarryOut(t.Context(), r, plan, opt); err != nil {
			t.Fatalf("request %d: the restore that follows fails: %v", n, err)
		}
		sameTree(t, fmt.Sprintf("after request %d", n), tree(t, dir), want)
	}
	if failed < 4 {
		t.Errorf("%d restores failed: the test shows nothing", failed)
	}
}

func TestTablespacesGoWhereTheyAreMapped(t *testing.T) {
	r, _, plan := smallBackup(t)
	for _, key := range []string{"16400", "/elsewhere"} {
		dir, space := newDir(t), newDir(t)+"-space"
		opt := into(dir)
		opt.Tablespaces = map[string]string{key: space}
		if _, err := CarryOut(t.Context(), r, plan, opt); err != nil {
			t.Fatal(err)
		}
		if err := isWhole(dir); err != nil {
			t.Error(err)
		}
		if got := read(t, filepath.Join(space, "PG_15/1/2")); got != "in a tablespace" || exists(tablespacesDir(dir)) || exists(filepath.Join(space, tablespaceMark)) {
			t.Errorf("%s: the tablespace holds %q", key, got)
		}
		// A delta restore finds it by the link.
		write(t, filepath.Join(space, "PG_15/1/2"), "in another table")
		if _, err := CarryOut(t.Context(), r, plan, deltaInto(dir)); err != nil {
			t.Fatal(err)
		}
		if got := read(t, filepath.Join(space, "PG_15/1/2")); got != "in a tablespace" || exists(tablespacesDir(dir)) {
			t.Errorf("%s: after a delta restore the tablespace holds %q", key, got)
		}
	}
	refused := func(what, key, target, want string) {
		t.Helper()
		dir := newDir(t)
		opt := into(dir)
		opt.Tablespaces = map[string]string{key: strings.ReplaceAll(target, "DATA", dir)}
		if _, err := CarryOut(t.Context(), r, plan, opt); err == nil || !strings.Contains(err.Error(), want) || exists(dir) {
			t.Errorf("%s: %v", what, err)
		}
	}
	full := newDir(t)
	write(t, filepath.Join(full, "precious"), "")
	// So does a delta restore, before it touches anything: what a link does not lead to is not the cluster's.
	old := newDir(t)
	if _, err := CarryOut(t.Context(), r, plan, into(old)); err != nil {
		t.Fatal(err)
	}
	before := tree(t, old)
	opt := deltaInto(old)
	opt.Tablespaces = map[string]string{"16400": full}
	if _, err := CarryOut(t.Context(), r, plan, opt); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("a delta restore into a directory that holds something: %v", err)
	}
	sameTree(t, "what was to be replaced", tree(t, old), before)
	// A copy that has followed its links gets links again.
	link := filepath.Join(old, "pg_tblspc/16400")
	if err := errors.Join(os.Remove(link), os.RemoveAll(tablespacesDir(old))); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(link, "PG_15/1/2"), "in a copy")
	if _, err := CarryOut(t.Context(), r, plan, deltaInto(old)); err != nil {
		t.Fatal(err)
	}
	sameTree(t, "a copy that has followed its links", tree(t, old), before)
	refused("a directory that holds something", "16400", full, "not empty")
	refused("a tablespace that is not there", "16999", "/tmp/x", `no tablespace "16999"`)
	refused("a relative path", "16400", "x/y", "no absolute path")
	refused("what the data directory lies in", "16400", "DATA/..", "the data directory lies in")
	refused("the data directory itself", "16400", "DATA/pg_tblspc/x", "lies in the data directory")
}
