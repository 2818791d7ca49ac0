package restore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestARestoreOnlyGoesWhereNothingIs(t *testing.T) {
	check := func(what string, want error, prepare func(dir string)) {
		t.Helper()
		dir := newDir(t)
		prepare(dir)
		if err := CheckDirectory(dir); !errors.Is(err, want) {
			t.Errorf("%s: CheckDirectory says %v, want %v", what, err, want)
		}
	}
	check("an absent directory", nil, func(string) {})
	check("an empty directory", nil, func(dir string) { mkdir(t, dir) })
	check("an absent directory in an absent one", os.ErrNotExist, func(dir string) { remove(t, filepath.Dir(dir)) })
	check("a file", ErrNotEmpty, func(dir string) { write(t, filepath.Join(dir, "x"), "") })
	check("a cluster", ErrNotEmpty, func(dir string) { write(t, filepath.Join(dir, controlFile), "") })
	check("the rest of an unfinished restore", nil, func(dir string) {
		write(t, filepath.Join(dir, unfinishedMark), "")
		write(t, filepath.Join(dir, controlFileTemp), "")
	})
	check("a restore that was killed just before its mark was removed", ErrNotEmpty, func(dir string) {
		write(t, filepath.Join(dir, unfinishedMark), "")
		write(t, filepath.Join(dir, controlFile), "")
	})
	check("a cluster with a server", ErrInUse, func(dir string) {
		mkdir(t, dir)
		serve(t, dir)
	})
	check("a cluster whose server's number is another's by now", ErrNotEmpty, func(dir string) {
		write(t, filepath.Join(dir, "postmaster.pid"), fmt.Sprintf("%d\n%s\n", os.Getpid(), dir))
	})
	check("a cluster whose server has died", ErrNotEmpty, func(dir string) {
		write(t, filepath.Join(dir, "postmaster.pid"), fmt.Sprintf("%d\n%s\n", deadProcess(t), dir))
	})
	check("the root of a file system", ErrNotEmpty, func(dir string) { mkdir(t, filepath.Join(dir, "lost+found")) })
	check("a directory beside tablespaces that may be in use", ErrNotEmpty, func(dir string) {
		write(t, filepath.Join(tablespacesDir(dir), "16400", "PG_15", "1"), "")
	})
}

func TestTheRootOfAFileSystemIsExplained(t *testing.T) {
	dir := newDir(t)
	mkdir(t, filepath.Join(dir, "lost+found"))
	if err := CheckDirectory(dir); err == nil || !strings.Contains(err.Error(), "it is the root of a file system; restore into a directory below it") {
		t.Error(err)
	}
}

func mkdir(t testing.TB, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
}

// deadProcess is the id of a process that has ended.
func deadProcess(t testing.TB) int {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func TestARestoreThroughALinkIsWholeAndItsOwnersAreSet(t *testing.T) {
	r, _, plan := smallBackup(t)
	real := newDir(t)
	mkdir(t, real)
	link := newDir(t)
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	opt := into(link)
	owned := map[string]bool{}
	opt.Own = func(path string) error {
		owned[path] = true
		return nil
	}
	if _, err := CarryOut(t.Context(), r, plan, opt); err != nil {
		t.Fatal(err)
	}
	if err := isWhole(link); err != nil {
		t.Error(err)
	}
	// A walk does not follow a link that it starts from.
	if !owned[real] || owned[link] {
		t.Errorf("owners were set below %v, want below %s", owned, real)
	}
}

func TestTablespacesLieBesideTheDirectoryHoweverItIsWritten(t *testing.T) {
	r, _, plan := smallBackup(t)
	parent := filepath.Dir(newDir(t))
	t.Chdir(parent)
	for _, name := range []string{"relative", "slash/", filepath.Join(parent, "absolute")} {
		if _, err := CarryOut(t.Context(), r, plan, into(name)); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(parent, filepath.Base(name))
		if err := isWhole(dir); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		target, err := os.Readlink(filepath.Join(dir, "pg_tblspc", "16400"))
		if want := dir + ".tablespaces/16400"; err != nil || target != want {
			t.Errorf("%s: the link leads to %q (%v), want %q", name, target, err, want)
		}
	}
}

func TestTablespacesThatAClusterUsesAreNeverRemoved(t *testing.T) {
	r, _, plan := smallBackup(t)
	dir := newDir(t)
	if _, err := CarryOut(t.Context(), r, plan, into(dir)); err != nil {
		t.Fatal(err)
	}
	// The operator moves the cluster; its links still lead to where the tablespaces are.
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := CarryOut(t.Context(), r, plan, into(dir)); !errors.Is(err, ErrNotEmpty) {
			t.Errorf("the second restore says %v, want ErrNotEmpty", err)
		}
		if err := isWhole(dir + ".old"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTwoRestoresNeverShareADirectory(t *testing.T) {
	r, f, plan := smallBackup(t)
	dir := newDir(t)
	second := errors.New("not tried")
	f.onGet(func(_ int, key string, body io.ReadCloser) (io.ReadCloser, error) {
		if strings.HasPrefix(key, "main/packs/") && second != nil && second.Error() == "not tried" {
			second = nil
			f.onGet(nil)
			_, second = CarryOut(t.Context(), r, plan, into(dir))
		}
		return body, nil
	})
	opt := into(dir)
	opt.Parallel = 1
	if _, err := CarryOut(t.Context(), r, plan, opt); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(second, ErrBusy) {
		t.Errorf("a restore into a directory that is being filled says %v, want ErrBusy", second)
	}
	if err := isWhole(dir); err != nil {
		t.Error(err)
	}
}

func TestABackupThatHoldsAMarkCanBeRestored(t *testing.T) {
	files := smallFiles()
	files[unfinishedMark] = "left by a kill"
	r, _, plan := backupOf(t, files)
	dir := newDir(t)
	if _, err := CarryOut(t.Context(), r, plan, into(dir)); err != nil {
		t.Fatal(err)
	}
	if err := isWhole(dir); err != nil {
		t.Error(err)
	}
}

func TestAClusterThatIsNotInitialisedToItsEndCannotStart(t *testing.T) {
	dir := newDir(t)
	own := func(string) error { return nil }
	killed := errors.New("killed")
	err := Initialise(dir, own, func(inner string) error {
		write(t, filepath.Join(inner, controlFile), "control") // as initdb does, long before its end
		write(t, filepath.Join(inner, "PG_VERSION"), "15")
		return killed
	})
	if !errors.Is(err, killed) || exists(filepath.Join(dir, controlFile)) || !Unfinished(dir) {
		t.Fatalf("after %v the directory is unfinished: %t", err, Unfinished(dir))
	}
	if err := Initialise(dir, own, func(inner string) error {
		write(t, filepath.Join(inner, controlFile), "control")
		write(t, filepath.Join(inner, "base/1/1"), "x")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{controlFile: true, "base/1/1": true, "PG_VERSION": false, unfinishedMark: false, initialiseIn: false} {
		if got := exists(filepath.Join(dir, name)); got != want {
			t.Errorf("%s is there: %t, want %t", name, got, want)
		}
	}
}
