// Package postmaster owns the Postgres processes that pitr starts on this machine: it finds the installed binaries, makes clusters,
// starts and stops servers. It never speaks the wire protocol itself and never touches a server that it was not told to start.
// Postgres refuses to run as root; under root everything here runs as the user postgres.
package postmaster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// BinEnv names the variable that says in which directory the binaries are.
const BinEnv = "PITR_PG_BIN"

// serverUser is whom Postgres runs as when we are root.
const serverUser = "postgres"

// Install is one installed version of Postgres and the user that runs it.
type Install struct {
	Bin   string // directory of initdb, postgres, pg_ctl …
	Major int

	credential *syscall.Credential // nil: as ourselves
	home       string
}

// Find looks in $PITR_PG_BIN, asks pg_config --bindir, and then takes the newest of the usual places. It fails when no server
// binaries are there, or when we are root and there is no user postgres.
func Find(ctx context.Context) (*Install, error) {
	bin, err := findBin(ctx)
	if err != nil {
		return nil, err
	}
	install := &Install{Bin: bin}
	if install.Major, err = majorVersion(ctx, filepath.Join(bin, "postgres")); err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 {
		if err := install.dropRoot(); err != nil {
			return nil, err
		}
	}
	return install, nil
}

func findBin(ctx context.Context) (string, error) {
	if bin := os.Getenv(BinEnv); bin != "" {
		if !hasServer(bin) {
			return "", fmt.Errorf("find Postgres: %s=%s holds no postgres and initdb", BinEnv, bin)
		}
		return bin, nil
	}
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		if bin := strings.TrimSpace(string(out)); hasServer(bin) {
			return bin, nil
		}
	}
	var found []string
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin", "/opt/homebrew/opt/postgresql@*/bin"} {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			return "", fmt.Errorf("find Postgres: %w", err)
		}
		found = append(found, matches...)
	}
	sort.SliceStable(found, func(i, j int) bool { return versionInPath(found[i]) > versionInPath(found[j]) })
	for _, bin := range found {
		if hasServer(bin) {
			return bin, nil
		}
	}
	return "", fmt.Errorf("find Postgres: no server binaries; install the package postgresql or set %s", BinEnv)
}

func hasServer(bin string) bool {
	for _, name := range []string{"postgres", "initdb", "pg_ctl"} {
		if info, err := os.Stat(filepath.Join(bin, name)); err != nil || info.IsDir() {
			return false
		}
	}
	return true
}

var digits = regexp.MustCompile(`[0-9]+`)

func versionInPath(path string) int {
	n, err := strconv.Atoi(digits.FindString(path))
	if err != nil {
		return 0
	}
	return n
}

func majorVersion(ctx context.Context, postgres string) (int, error) {
	out, err := exec.CommandContext(ctx, postgres, "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("find Postgres: run %s --version: %w", postgres, err)
	}
	major := versionInPath(string(out))
	if major == 0 {
		return 0, fmt.Errorf("find Postgres: %s --version says %q", postgres, out)
	}
	return major, nil
}

func (i *Install) dropRoot() error {
	account, err := user.Lookup(serverUser)
	if err != nil {
		return fmt.Errorf("find Postgres: it refuses to run as root, and there is no user %s: %w", serverUser, err)
	}
	uid, err1 := strconv.ParseUint(account.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(account.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("find Postgres: user %s: %w", serverUser, err)
	}
	i.credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	i.home = account.HomeDir
	return nil
}

// Own gives path, and all below it, to the user that runs Postgres.
func (i *Install) Own(path string) error {
	if i.credential == nil {
		return nil
	}
	return filepath.WalkDir(path, func(name string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(name, int(i.credential.Uid), int(i.credential.Gid))
	})
}

// Owner is the user and group id of the user that runs Postgres.
func (i *Install) Owner() (uid, gid int) {
	if i.credential == nil {
		return os.Geteuid(), os.Getegid()
	}
	return int(i.credential.Uid), int(i.credential.Gid)
}

// Path is the full name of one of the binaries.
func (i *Install) Path(name string) string { return filepath.Join(i.Bin, name) }

// termGrace is how long a command may take to end itself after its context was cancelled, before it is killed.
const termGrace = 10 * time.Second

// Command prepares one of the binaries, or any program when name is a path, to run as the user that runs Postgres and in a
// process group of its own, so that a Ctrl-C at the terminal reaches only pitr, which then stops it in order.
func (i *Install) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if !strings.ContainsRune(name, '/') {
		name = i.Path(name)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: i.credential}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = termGrace
	cmd.Env = os.Environ()
	if i.credential != nil {
		cmd.Env = append(cmd.Env, "HOME="+i.home, "USER="+serverUser)
		cmd.Dir = "/"
	}
	return cmd
}
