package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"pitr/config"
	"pitr/internal/postmaster"
	"pitr/internal/repo"
	"pitr/restore"
)

func runCommand(app *app) *cobra.Command {
	return &cobra.Command{
		Use:   "run -- postgres [ARGUMENT]...",
		Short: "Run Postgres; an empty data directory is first restored from the repository",
		Long: `The entrypoint of a container. A data directory that is a cluster is started at once. An empty one gets the latest state of the
repository. A new cluster is initialised only when the repository is certainly empty; never when the store cannot be reached. The
data directory is that of -D, $PGDATA or postgres.data_directory. A new cluster has the superuser $POSTGRES_USER (postgres) with
the password $POSTGRES_PASSWORD. Signals go to Postgres; its exit code is ours.

` + exitHelp,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, log, err := app.load()
			if err != nil {
				return err
			}
			r := runner{app: app, cfg: cfg, log: log, args: args}
			return r.run(cmd.Context())
		},
	}
}

// runner is one `pitr run`.
type runner struct {
	app     *app
	cfg     *config.Config
	log     *slog.Logger
	args    []string // the program and its arguments
	dir     string
	install *postmaster.Install
}

func (r *runner) run(ctx context.Context) error {
	if filepath.Base(r.args[0]) != "postgres" {
		return &usageError{fmt.Errorf("run: %q is not postgres", r.args[0])}
	}
	if r.dir = dataDirectory(r.args, r.cfg); r.dir == "" {
		return &usageError{errors.New("run: no data directory: give -D, $PGDATA or postgres.data_directory")}
	}
	var err error
	if r.install, err = postmaster.Find(ctx); err != nil {
		return err
	}
	state, err := directoryState(r.dir)
	if err != nil {
		return err
	}
	restoredNow := false
	switch state {
	case isCluster:
		r.log.Info("the data directory is a cluster", "directory", r.dir)
	case isEmpty:
		if restoredNow, err = r.fill(ctx); err != nil {
			return err
		}
	default:
		return fmt.Errorf("run: %s is neither empty nor a cluster", r.dir)
	}
	return r.supervise(restoredNow)
}

// dataDirectory follows postgres: -D counts, then PGDATA.
func dataDirectory(args []string, cfg *config.Config) string {
	for i, arg := range args {
		if arg == "-D" && i+1 < len(args) {
			return args[i+1]
		}
		if dir, found := strings.CutPrefix(arg, "-D"); found && dir != "" {
			return dir
		}
	}
	if dir := os.Getenv("PGDATA"); dir != "" {
		return dir
	}
	return cfg.Postgres.DataDirectory
}

type dirState int

const (
	isOther dirState = iota
	isEmpty
	isCluster
)

// directoryState tells what is in a directory. lost+found and the rest of an unfinished restore are nothing.
func directoryState(dir string) (dirState, error) {
	if _, err := os.Stat(filepath.Join(dir, "global", "pg_control")); err == nil {
		return isCluster, nil
	}
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return isEmpty, nil
	case err != nil:
		return isOther, fmt.Errorf("run: %w", err)
	case len(entries) == 0 || restore.Unfinished(dir):
		return isEmpty, nil
	}
	return isOther, nil
}

// fill restores the latest state into the empty directory, or initialises a new cluster when the repository is certainly empty.
func (r *runner) fill(ctx context.Context) (restoredNow bool, err error) {
	repository, err := r.app.repository(r.cfg, r.log)
	if err != nil {
		return false, err
	}
	_, err = repository.Cluster(ctx)
	if errors.Is(err, repo.ErrNotExist) {
		return false, r.initialise(ctx)
	}
	if err != nil {
		return false, fmt.Errorf("run: the data directory is empty, and the repository cannot be read; not initialising a new cluster: %w", err)
	}
	target := restore.Target{Kind: restore.Latest, Text: "latest"}
	plan, err := restore.NewPlan(ctx, repository, target, restore.PlanOptions{Now: time.Now(), Parallel: r.cfg.Restore.Parallel})
	if err != nil {
		return false, fmt.Errorf("run: the repository holds a cluster that cannot be restored; not initialising a new one over it: %w", err)
	}
	printPlan(os.Stderr, plan, r.dir)
	command, err := fetchCommand(r.cfg)
	if err != nil {
		return false, err
	}
	_, err = restore.CarryOut(ctx, repository, plan, restore.Options{Dir: r.dir, FetchWAL: command, Parallel: r.cfg.Restore.Parallel, Own: r.install.Own, Log: r.log})
	return true, err
}

func (r *runner) initialise(ctx context.Context) error {
	superuser := os.Getenv("POSTGRES_USER")
	if superuser == "" {
		superuser = "postgres"
	}
	password := os.Getenv("POSTGRES_PASSWORD")
	r.log.Info("the repository is empty: initialising a new cluster", "directory", r.dir, "superuser", superuser)
	if err := r.install.InitDB(ctx, postmaster.InitOptions{Dir: r.dir, Superuser: superuser, Password: password}); err != nil {
		return err
	}
	if password == "" {
		return nil
	}
	hba, err := os.OpenFile(filepath.Join(r.dir, "pg_hba.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = hba.WriteString("\n# pitr run: everyone with a password, from everywhere\nhost all all all scram-sha-256\nhost replication all all scram-sha-256\n")
	return errors.Join(err, hba.Close())
}

// supervise runs Postgres, hands on signals, and returns its exit code.
func (r *runner) supervise(restoredNow bool) error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	args := r.args[1:]
	if dataDirectory(r.args, &config.Config{}) != r.dir {
		args = append([]string{"-D", r.dir}, args...)
	}
	cmd := r.install.Command(context.Background(), "postgres", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr.Pdeathsig = syscall.SIGINT
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run: start postgres: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	recovered := r.watchRecovery(restoredNow)
	for {
		select {
		case sig := <-signals:
			if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
				r.log.Warn("a signal was not handed on", "signal", sig, "error", err)
			}
		case <-recovered:
			recovered = nil
			if err := restore.EndRecovery(r.dir); err != nil {
				r.log.Error("the recovery settings were not removed from postgresql.auto.conf", "error", err)
			} else {
				r.log.Info("recovery has ended; its settings were removed", "directory", r.dir)
			}
		case err := <-ended:
			return postgresExit(err)
		}
	}
}

// recoveryPoll is how often `run` looks whether the recovery of a restored cluster has ended.
const recoveryPoll = time.Second

// watchRecovery closes its channel when recovery.signal has gone.
func (r *runner) watchRecovery(restoredNow bool) <-chan struct{} {
	if !restoredNow {
		return nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(recoveryPoll)
		defer ticker.Stop()
		for range ticker.C {
			if _, err := os.Stat(filepath.Join(r.dir, "recovery.signal")); errors.Is(err, fs.ErrNotExist) {
				return
			}
		}
	}()
	return done
}

func postgresExit(err error) error {
	var exit *exec.ExitError
	if err == nil || !errors.As(err, &exit) {
		return err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return &exitError{128 + int(status.Signal())}
	}
	return &exitError{exit.ExitCode()}
}
