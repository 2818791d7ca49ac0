package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"pitr/config"
	"pitr/config/pgbouncer"
	"pitr/pooler"
	"pitr/pooler/admin"
)

// calledPgBouncer reports whether the program was started under PgBouncer's name: then it takes PgBouncer's options and signals.
func calledPgBouncer(name string) bool { return filepath.Base(name) == "pgbouncer" }

// likePgBouncer is what was asked for under that name: pgbouncer(1).
type likePgBouncer struct {
	ini     string
	daemon  bool
	quiet   bool
	verbose int
	user    string
	reboot  bool
	process pgbouncer.Process
	log     *logFile
}

func newPgBouncerRoot() *cobra.Command {
	l := &likePgBouncer{}
	cmd := &cobra.Command{
		Use:   "pgbouncer [-d] [-q] [-v] [-R] [-u user] pgbouncer.ini",
		Short: "pitr pooler in PgBouncer's clothes",
		Long: "Runs `pitr pooler` from a configuration of PgBouncer. Signals: HUP reloads, INT waits until every transaction has ended, TERM until every client has\n" +
			"left, QUIT ends at once, USR1 is PAUSE, USR2 is RESUME.\n\n" + exitHelp,
		Version: version, Args: cobra.ExactArgs(1), SilenceErrors: true, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			l.ini = args[0]
			return l.run(cmd.Context())
		},
	}
	l.flags(cmd.Flags())
	cmd.SetVersionTemplate("pitr {{.Version}}, as PgBouncer\n")
	return cmd
}

func (l *likePgBouncer) flags(flags *pflag.FlagSet) {
	flags.BoolVarP(&l.daemon, "daemon", "d", false, "run in the background; needs logfile and pidfile")
	flags.BoolVarP(&l.quiet, "quiet", "q", false, "log nothing to standard error")
	flags.CountVarP(&l.verbose, "verbose", "v", "log more; may be given twice")
	flags.StringVarP(&l.user, "user", "u", "", "change to this user; default: the setting user")
	flags.BoolVarP(&l.reboot, "reboot", "R", false, "take the sockets of the process that runs over, if there is one")
	flags.BoolP("version", "V", false, "print the version")
}

// takeoverSuffix is added to the name of the pidfile to make that of the socket over which -R takes the listening sockets of the process that runs.
const takeoverSuffix = ".takeover"

// daemonEnv marks the process in the background, which tells its maker on descriptor 3 that it listens.
const daemonEnv = "PITR_DAEMON"

func (l *likePgBouncer) run(ctx context.Context) (err error) {
	t, err := translateINI(l.ini)
	if err != nil {
		return err
	}
	l.process = t.Process
	if l.user != "" {
		l.process.User = l.user
	}
	if l.daemon && os.Getenv(daemonEnv) == "" {
		return l.detach(ctx)
	}
	if err := changeUser(l.process.User); err != nil {
		return err
	}
	if l.log, err = openLogFile(l.process.LogFile, l.quiet || l.daemon); err != nil {
		return err
	}
	pid := pidFile(l.process.PIDFile)
	if !l.reboot {
		if err := pid.free(); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, pid.release()) }()
	cfg, log, err := l.load()
	if err != nil {
		return err
	}
	logNotes(log, t)
	return servePooler(ctx, cfg, log, poolerOptions{load: l.load, listening: func() error { return errors.Join(pid.write(), tellMaker()) }, signals: l.signals})
}

// load reads the ini again, and the log's file is opened again: it may have been moved away.
func (l *likePgBouncer) load() (*config.Config, *slog.Logger, error) {
	t, err := translateINI(l.ini)
	if err != nil {
		return nil, nil, err
	}
	cfg, err := parseINI(l.ini, t)
	if err != nil {
		return nil, nil, err
	}
	if l.process.PIDFile != "" {
		if cfg.Pooler.TakeoverSocket, err = filepath.Abs(l.process.PIDFile + takeoverSuffix); err != nil {
			return nil, nil, err
		}
	}
	if err := l.log.reopen(); err != nil {
		return nil, nil, err
	}
	level := slog.LevelInfo
	if l.verbose+l.process.Verbose > 0 {
		level = slog.LevelDebug
	}
	return cfg, slog.New(slog.NewTextHandler(l.log, &slog.HandlerOptions{Level: level})), nil
}

// translateINI says PgBouncer's configuration in our words.
func translateINI(path string) (*pgbouncer.Translation, error) {
	t, err := pgbouncer.Translate(path)
	if err != nil {
		return nil, &usageError{err}
	}
	return t, nil
}

func parseINI(path string, t *pgbouncer.Translation) (*config.Config, error) {
	cfg, err := config.Parse(path, []byte(t.YAML))
	if err != nil {
		return nil, err
	}
	cfg.Path, err = filepath.Abs(path)
	return cfg, err
}

// loadINI reads PgBouncer's configuration for `pitr pooler`, which logs to standard error and stays in the foreground.
func loadINI(path string) (*config.Config, *slog.Logger, error) {
	t, err := translateINI(path)
	if err != nil {
		return nil, nil, err
	}
	cfg, err := parseINI(path, t)
	if err != nil {
		return nil, nil, err
	}
	log := newLogger(cfg.Log)
	logNotes(log, t)
	return cfg, log, nil
}

func logNotes(log *slog.Logger, t *pgbouncer.Translation) {
	for _, note := range t.Notes {
		log.Info("a setting of PgBouncer has no meaning here, or another one", "setting", note)
	}
}

// signals does what PgBouncer does at each of its signals, but for HUP.
func (l *likePgBouncer) signals(ctx context.Context, p *pooler.Pooler, log *slog.Logger) {
	got := make(chan os.Signal, 4)
	signal.Notify(got, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(got)
	var pauses sync.WaitGroup
	defer pauses.Wait()
	ending := false
	end := func(how admin.Shutdown) {
		if ending { // twice is meant
			how = admin.ShutdownNow
		}
		ending = true
		p.Shutdown(how)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-got:
			log.Info("got a signal", "signal", s.String())
			switch s {
			case syscall.SIGINT:
				end(admin.ShutdownServers)
			case syscall.SIGTERM:
				end(admin.ShutdownClients)
			case syscall.SIGQUIT:
				p.Shutdown(admin.ShutdownNow)
			case syscall.SIGUSR1:
				pauses.Go(func() { obeyed(log, s, p.Pause(ctx)) })
			case syscall.SIGUSR2:
				obeyed(log, s, p.Resume())
			}
		}
	}
}

func obeyed(log *slog.Logger, s os.Signal, err error) {
	if err != nil {
		log.Error("a signal was not obeyed", "signal", s.String(), "error", err)
	}
}

// detach starts the program again in the background, and waits until it listens or has failed.
func (l *likePgBouncer) detach(ctx context.Context) error {
	if l.process.PIDFile == "" || l.process.LogFile == "" {
		return &usageError{errors.New("-d needs the settings pidfile and logfile")}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ready, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd := exec.Command(self, os.Args[1:]...) // not of ctx: it goes on when this process has ended
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), daemonEnv+"=1")
	cmd.ExtraFiles = []*os.File{tell}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var complaint strings.Builder
	cmd.Stderr = tell
	err = cmd.Start()
	if closeErr := tell.Close(); err != nil || closeErr != nil {
		return errors.Join(err, closeErr)
	}
	for lines := bufio.NewScanner(ready); lines.Scan(); {
		if lines.Text() == daemonReady {
			return cmd.Process.Release()
		}
		fmt.Fprintln(&complaint, lines.Text())
	}
	err = cmd.Wait()
	return fmt.Errorf("the process in the background has ended: %w\n%s", errors.Join(err, ctx.Err()), complaint.String())
}

const daemonReady = "listening"

// tellMaker says on descriptor 3 that we listen, if somebody waits there for that, and lets go of what its terminal is.
func tellMaker() error {
	if os.Getenv(daemonEnv) == "" {
		return nil
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	maker := os.NewFile(3, "maker")
	_, err = fmt.Fprintln(maker, daemonReady)
	return errors.Join(err, maker.Close(), syscall.Dup3(int(null.Fd()), 1, 0), syscall.Dup3(int(null.Fd()), 2, 0))
}

// changeUser goes on as another user. Like PgBouncer we do not run as root.
func changeUser(name string) error {
	if os.Geteuid() != 0 {
		if current, err := user.Current(); name != "" && (err != nil || current.Username != name) {
			return &usageError{fmt.Errorf("only root can change to the user %s", name)}
		}
		return nil
	}
	if name == "" {
		return &usageError{errors.New("PgBouncer should not run as root: give -u, or the setting user")}
	}
	u, err := user.Lookup(name)
	if err != nil {
		return &usageError{err}
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if uid == 0 {
		return &usageError{errors.New("PgBouncer should not run as root")}
	}
	ids, err := u.GroupIds()
	if err != nil {
		return err
	}
	groups := make([]int, 0, len(ids))
	for _, id := range ids {
		n, err := strconv.Atoi(id)
		if err != nil {
			return err
		}
		groups = append(groups, n)
	}
	return errors.Join(syscall.Setgroups(groups), syscall.Setgid(gid), syscall.Setuid(uid))
}

// pidFile is the name of the file with our process id; empty: there is none. It is written when clients can connect, so that one who takes another's place and fails leaves that
// one's as it is.
type pidFile string

// owner is the process that the file names, zero without one.
func (f pidFile) owner() int {
	text, err := os.ReadFile(string(f))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	return pid
}

// free reports whether no process that lives has the file.
func (f pidFile) free() error {
	if pid := f.owner(); f != "" && pid > 0 && pid != os.Getpid() && syscall.Kill(pid, 0) != syscall.ESRCH {
		return fmt.Errorf("%s: process %d runs already", f, pid)
	}
	return nil
}

func (f pidFile) write() error {
	if f == "" {
		return nil
	}
	return os.WriteFile(string(f), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644)
}

// release removes the file, unless a successor has written its own.
func (f pidFile) release() error {
	if f == "" || f.owner() != os.Getpid() {
		return nil
	}
	return os.Remove(string(f))
}

// logFile is the setting logfile, and standard error unless it is to be quiet.
type logFile struct {
	path  string
	quiet bool

	mu   sync.Mutex // guards file
	file *os.File
}

func openLogFile(path string, quiet bool) (*logFile, error) {
	l := &logFile{path: path, quiet: quiet}
	return l, l.reopen()
}

func (l *logFile) reopen() error {
	if l.path == "" {
		return nil
	}
	file, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.file
	if l.file = file; old != nil {
		return old.Close()
	}
	return nil
}

// Write implements io.Writer.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	if l.file != nil {
		_, err := l.file.Write(p)
		errs = append(errs, err)
	}
	if !l.quiet {
		_, err := stderr.Write(p)
		errs = append(errs, err)
	}
	return len(p), errors.Join(errs...)
}

// importCommand prints PgBouncer's configuration in our words.
func importCommand() *cobra.Command {
	return &cobra.Command{
		Use: "import pgbouncer.ini", Short: "Print the pitr.yaml that means the same as a configuration of PgBouncer",
		Long: "Prints a pitr.yaml, with a comment on each line whose name or meaning is another, and at its end what has no meaning here. Passwords of [databases] are in it.\n\n" + exitHelp,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := translateINI(args[0])
			if err != nil {
				return err
			}
			if _, err := parseINI(args[0], t); err != nil {
				return err
			}
			return printTranslation(cmd.OutOrStdout(), t)
		},
	}
}

func printTranslation(w io.Writer, t *pgbouncer.Translation) error {
	text := t.YAML
	for _, note := range t.Notes {
		text += "# " + note + "\n"
	}
	_, err := io.WriteString(w, text)
	return err
}
