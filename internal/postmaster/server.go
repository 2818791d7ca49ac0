package postmaster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// InitOptions says what cluster InitDB makes.
type InitOptions struct {
	Dir           string
	Superuser     string
	Password      string // empty: local connections are trusted
	SegmentSizeMB int    // zero: Postgres's default, 16
}

// InitDB makes a new cluster with data checksums, UTF-8 and the C locale. Dir must be absent or empty.
func (i *Install) InitDB(ctx context.Context, opt InitOptions) error {
	if err := os.MkdirAll(opt.Dir, 0o700); err != nil {
		return fmt.Errorf("initdb: %w", err)
	}
	if err := i.Own(opt.Dir); err != nil {
		return fmt.Errorf("initdb: %w", err)
	}
	args := []string{"-D", opt.Dir, "-U", opt.Superuser, "--data-checksums", "-E", "UTF8", "--locale=C"}
	if opt.SegmentSizeMB != 0 {
		args = append(args, fmt.Sprintf("--wal-segsize=%d", opt.SegmentSizeMB))
	}
	if opt.Password == "" {
		args = append(args, "--auth=trust")
	} else {
		file, err := i.passwordFile(opt.Password)
		if err != nil {
			return fmt.Errorf("initdb: %w", err)
		}
		defer os.Remove(file)
		args = append(args, "--auth=scram-sha-256", "--pwfile="+file)
	}
	if out, err := i.Command(ctx, "initdb", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("initdb %s: %w: %s", opt.Dir, err, lastLines(out, 5))
	}
	return nil
}

// passwordFile holds the password for initdb, readable by nobody else.
func (i *Install) passwordFile(password string) (string, error) {
	file, err := os.CreateTemp("", "pitr-initdb-")
	if err != nil {
		return "", err
	}
	_, err = file.WriteString(password + "\n")
	err = errors.Join(err, file.Close())
	if err == nil {
		err = i.Own(file.Name())
	}
	if err != nil {
		return "", errors.Join(err, os.Remove(file.Name()))
	}
	return file.Name(), nil
}

// Server is a running Postgres.
type Server struct {
	Dir  string
	Port int

	install *Install
	cmd     *exec.Cmd     // nil when it runs on its own
	done    chan struct{} // closed when cmd has ended
	exitErr error         // valid after done
}

// StartOptions says how Postgres is started. It listens on 127.0.0.1 and, if the name is fit for it, on a Unix socket in Dir.
type StartOptions struct {
	Dir      string
	Port     int
	Log      string   // file that its output is appended to
	Settings []string // name=value, as for postgres -c
	Env      []string // NAME=value, besides our own environment; StartChild only
}

func (opt StartOptions) args() []string {
	args := []string{"-D", opt.Dir, "-p", strconv.Itoa(opt.Port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=" + socketDir(opt.Dir)}
	for _, setting := range opt.Settings {
		args = append(args, "-c", setting)
	}
	return args
}

// socketPathMax is UNIXSOCK_PATH_BUFLEN of src/include/libpq/pqcomm.h less its final zero: the size of sun_path on Linux.
const socketPathMax = 107

// socketDir is dir, or "" when the name of a socket in it would be too long or would not survive the list that the setting is.
func socketDir(dir string) string {
	if len(dir)+len("/.s.PGSQL.65535") > socketPathMax || strings.ContainsAny(dir, ",\"") {
		return ""
	}
	return dir
}

// Host is what a client on this machine gives as host.
func (s *Server) Host() string {
	if dir := socketDir(s.Dir); dir != "" {
		return dir
	}
	return "127.0.0.1"
}

// StartChild runs Postgres as a child of this process and waits until it accepts connections. The caller must Stop it.
func (i *Install) StartChild(ctx context.Context, opt StartOptions) (*Server, error) {
	log, err := i.openLog(opt.Log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// The process outlives ctx on purpose: it is stopped in order, by Stop, and never killed by a cancelled context.
	cmd := i.Command(context.WithoutCancel(ctx), "postgres", opt.args()...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(cmd.Env, opt.Env...)
	cmd.SysProcAttr.Pdeathsig = syscall.SIGINT // a fast shutdown, should we be killed
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start Postgres: %w", err)
	}
	s := &Server{Dir: opt.Dir, Port: opt.Port, install: i, cmd: cmd, done: make(chan struct{})}
	go func() {
		s.exitErr = cmd.Wait()
		close(s.done)
	}()
	if err := s.waitStatus(ctx, "ready", opt.Log); err != nil {
		return nil, errors.Join(err, s.Stop(context.WithoutCancel(ctx), Immediate))
	}
	return s, nil
}

// StartDetached starts Postgres so that it goes on when this process ends. It does not wait for recovery: see Query and Status.
func (i *Install) StartDetached(ctx context.Context, opt StartOptions) (*Server, error) {
	log, err := i.openLog(opt.Log)
	if err != nil {
		return nil, err
	}
	if err := log.Close(); err != nil {
		return nil, err
	}
	quoted := make([]string, 0, 16)
	for _, arg := range opt.args()[2:] {
		quoted = append(quoted, "'"+strings.ReplaceAll(arg, "'", `'\''`)+"'")
	}
	cmd := i.Command(ctx, "pg_ctl", "start", "-W", "-s", "-D", opt.Dir, "-l", opt.Log, "-o", strings.Join(quoted, " "))
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("start Postgres in %s: %w: %s", opt.Dir, err, lastLines(out, 5))
	}
	s := &Server{Dir: opt.Dir, Port: opt.Port, install: i}
	s.waitPidFile()
	return s, nil
}

// waitPidFile gives a server that was just started the time to say who it is, so that whoever wants to stop it finds it. A server
// that fails at once never says so; the caller sees that by its status.
func (s *Server) waitPidFile() {
	ticker := time.NewTicker(statusPoll)
	defer ticker.Stop()
	for begin := time.Now(); s.Pid() == 0 && time.Since(begin) < pidFileGrace; {
		<-ticker.C
	}
}

// pidFileGrace bounds that wait; Postgres writes the file within milliseconds.
const pidFileGrace = 2 * time.Second

func (i *Install) openLog(name string) (*os.File, error) {
	log, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, fmt.Errorf("start Postgres: open its log: %w", err)
	}
	if err := i.Own(name); err != nil {
		return nil, errors.Join(fmt.Errorf("start Postgres: %w", err), log.Close())
	}
	return log, nil
}

// Attach speaks of a server that runs, or has run, in dir and that somebody else started.
func (i *Install) Attach(dir string, port int) *Server {
	return &Server{Dir: dir, Port: port, install: i}
}

// Pid is the postmaster's process id; zero when it is not running.
func (s *Server) Pid() int {
	pid, _ := s.pidFile()
	return pid
}

// Status is the line of postmaster.pid that pg_ctl reads: starting, stopping, ready, standby; empty when nothing runs.
func (s *Server) Status() string {
	pid, status := s.pidFile()
	if pid == 0 || syscall.Kill(pid, 0) == syscall.ESRCH {
		return ""
	}
	return status
}

// pidFile reads postmaster.pid; its lines are LOCK_FILE_LINE_* of src/include/utils/pidfile.h.
func (s *Server) pidFile() (pid int, status string) {
	content, err := os.ReadFile(filepath.Join(s.Dir, "postmaster.pid"))
	if err != nil {
		return 0, ""
	}
	lines := strings.Split(string(content), "\n")
	pid, err = strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil || len(lines) < 8 {
		return 0, ""
	}
	return pid, strings.TrimSpace(lines[7])
}

// statusPoll is how often the status of a server is looked at while it starts or stops.
const statusPoll = 20 * time.Millisecond

func (s *Server) waitStatus(ctx context.Context, want, log string) error {
	ticker := time.NewTicker(statusPoll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("start Postgres in %s: %w", s.Dir, ctx.Err())
		case <-s.done:
			content, err := os.ReadFile(log)
			return errors.Join(fmt.Errorf("start Postgres in %s: it ended (%v): %s", s.Dir, s.exitErr, lastLines(content, 8)), err)
		case <-ticker.C:
			if s.Pid() == s.cmd.Process.Pid && s.Status() == want {
				return nil
			}
		}
	}
}

// StopMode is one of the three ways to stop Postgres.
type StopMode syscall.Signal

// The signals are those of "Shutting Down the Server" in the PostgreSQL manual.
const (
	Smart     = StopMode(syscall.SIGTERM)
	Fast      = StopMode(syscall.SIGINT)
	Immediate = StopMode(syscall.SIGQUIT)
)

// Stop ends the server and waits until it is gone, or ctx is. A server that is not running is no error.
func (s *Server) Stop(ctx context.Context, mode StopMode) error {
	if s.cmd == nil {
		return s.stopDetached(ctx, mode)
	}
	select {
	case <-s.done:
		return nil
	default:
	}
	if err := s.cmd.Process.Signal(syscall.Signal(mode)); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop Postgres: %w", err)
	}
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop Postgres in %s: %w", s.Dir, ctx.Err())
	}
}

func (s *Server) stopDetached(ctx context.Context, mode StopMode) error {
	if s.Status() == "" {
		return nil
	}
	name := map[StopMode]string{Smart: "smart", Fast: "fast", Immediate: "immediate"}[mode]
	cmd := s.install.Command(ctx, "pg_ctl", "stop", "-w", "-s", "-m", name, "-D", s.Dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("stop Postgres in %s: %w: %s", s.Dir, err, lastLines(out, 3))
	}
	return nil
}

// Kill ends the server like a power cut ends it: SIGKILL to the postmaster, whose children notice and go.
func (s *Server) Kill() error {
	if s.cmd == nil {
		return errors.New("kill Postgres: not a child of this process")
	}
	err := s.cmd.Process.Kill()
	<-s.done
	return err
}

// Query runs one statement with psql as user in database and returns its rows: lines of fields separated by |.
func (s *Server) Query(ctx context.Context, user, database, sql string) (string, error) {
	cmd := s.install.Command(ctx, "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", s.Host(), "-p", strconv.Itoa(s.Port), "-U", user, "-d", database, "-c", sql)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("query %q: %w: %s", sql, err, lastLines(stderr.Bytes(), 3))
	}
	return strings.TrimRight(stdout.String(), "\n"), nil
}

func lastLines(out []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, " / ")
}
