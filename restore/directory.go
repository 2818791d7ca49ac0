package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Errors of CheckDirectory.
var (
	ErrNotEmpty = errors.New("the directory is not empty")
	ErrInUse    = errors.New("a server is using the directory")
)

// CheckDirectory refuses a directory that a restore must not touch. One that is absent or empty is fine, and so is the rest of an
// unfinished restore.
func CheckDirectory(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		parent := filepath.Dir(filepath.Clean(dir))
		if _, err := os.Stat(parent); err != nil {
			return fmt.Errorf("restore into %s: %w", dir, err)
		}
		return checkTablespaces(dir)
	}
	if err != nil {
		return fmt.Errorf("restore into %s: %w", dir, err)
	}
	if err := checkUnused(dir); err != nil {
		return err
	}
	switch {
	case Unfinished(dir):
		return nil
	case len(entries) == 0:
		return checkTablespaces(dir)
	case len(entries) == 1 && entries[0].Name() == "lost+found":
		return fmt.Errorf("restore into %s: %w: it is the root of a file system; restore into a directory below it", dir, ErrNotEmpty)
	}
	return fmt.Errorf("restore into %s: %w; restore into a new one", dir, ErrNotEmpty)
}

// checkUnused refuses a directory that a server is using. A postmaster.pid that a server has left behind names a process that is not there, or one
// that works elsewhere.
func checkUnused(dir string) error {
	if pid := ServerOf(dir); pid != 0 {
		return fmt.Errorf("restore into %s: %w (process %d); stop it, or restore into another directory", dir, ErrInUse, pid)
	}
	return nil
}

// alive reports whether a process is there, even if it is another user's.
func alive(pid int) bool { return syscall.Kill(pid, 0) != syscall.ESRCH }

// checkTablespaces refuses to put tablespaces where some are already: they may be those of a cluster that was moved away, whose links
// still lead here.
func checkTablespaces(dir string) error {
	dir, err := resolve(dir)
	if err != nil {
		return fmt.Errorf("restore into %s: %w", dir, err)
	}
	entries, err := os.ReadDir(tablespacesDir(dir))
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && len(entries) == 0:
		return nil
	case err != nil:
		return fmt.Errorf("restore into %s: %w", dir, err)
	}
	return fmt.Errorf("restore into %s: %w: %s holds tablespaces, maybe those of a cluster that is in use; remove it, or restore into another directory",
		dir, ErrNotEmpty, tablespacesDir(dir))
}

// resolve is the absolute name of a data directory, without symbolic links if it exists: trees are walked from there.
func resolve(dir string) (string, error) {
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return dir, err
	}
	real, err := filepath.EvalSymlinks(absolute)
	if errors.Is(err, fs.ErrNotExist) {
		return absolute, nil
	}
	return real, err
}

// Unfinished reports whether dir holds the rest of a restore that did not finish.
func Unfinished(dir string) bool {
	_, markErr := os.Stat(filepath.Join(dir, unfinishedMark))
	_, controlErr := os.Stat(filepath.Join(dir, controlFile))
	return markErr == nil && errors.Is(controlErr, fs.ErrNotExist)
}

// postmasterPID reads the first line of postmaster.pid: LOCK_FILE_LINE_PID of src/include/utils/pidfile.h.
func postmasterPID(dir string) int {
	content, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 0 {
		return 0
	}
	return pid
}

// checkSpace refuses a restore for which the file system has no room. The WAL that recovery fetches passes through one segment at a time.
func checkSpace(dir string, need int64) error {
	for {
		var st syscall.Statfs_t
		err := syscall.Statfs(dir, &st)
		if errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
			dir = filepath.Dir(dir)
			continue
		}
		if err != nil {
			return fmt.Errorf("free space of %s: %w", dir, err)
		}
		if free := int64(st.Bavail) * st.Bsize; free < need {
			return fmt.Errorf("%s has %d MiB free, the backup needs %d MiB", dir, free>>20, need>>20)
		}
		return nil
	}
}
