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
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"pitr/config"
	"pitr/internal/pg"
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
	if r.dir, err = filepath.Abs(r.dir); err != nil {
		return err
	}
	if r.install, err = postmaster.Find(ctx); err != nil {
		return err
	}
	state, err := directoryState(r.dir)
	if err != nil {
		return err
	}
	switch state {
	case isCluster:
		r.log.Info("the data directory is a cluster", "directory", r.dir)
		if err := r.mayStart(ctx); err != nil {
			return err
		}
	case isEmpty:
		if err := r.fill(ctx); err != nil {
			return err
		}
	default:
		return fmt.Errorf("run: %s is neither empty nor a cluster; give a directory of its own, below the root of a volume", r.dir)
	}
	return r.supervise(ctx)
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

// directoryState tells what is in a directory. The rest of an unfinished restore is nothing.
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
func (r *runner) fill(ctx context.Context) error {
	repository, err := r.app.repository(r.cfg, r.log)
	if err != nil {
		return err
	}
	_, err = repository.Cluster(ctx)
	if errors.Is(err, repo.ErrNotExist) {
		err = certainlyEmpty(ctx, repository)
		if err == nil {
			return r.initialise(ctx)
		}
	}
	if err != nil {
		return fmt.Errorf("run: the data directory is empty, and the repository cannot be read; not initialising a new cluster: %w", err)
	}
	target := restore.Target{Kind: restore.Latest, Text: "latest"}
	plan, err := restore.NewPlan(ctx, repository, target, restore.PlanOptions{Now: time.Now(), Parallel: r.cfg.Restore.Parallel})
	if err != nil {
		return fmt.Errorf("run: the repository holds a cluster that cannot be restored; not initialising a new one over it: %w", err)
	}
	printPlan(os.Stderr, plan, r.dir)
	if plan.Backup.Major != r.install.Major {
		return fmt.Errorf("run: the backup is of PostgreSQL %d, and %s is %d", plan.Backup.Major, r.install.Bin, r.install.Major)
	}
	if err := checkFetch(ctx, r.cfg, r.install); err != nil {
		return err
	}
	command, err := fetchCommand(r.cfg)
	if err != nil {
		return err
	}
	// Who restores takes the place of a server that is gone: one that still writes must not get a rival. It is watched for while files are fetched.
	watching := make(chan error, 1)
	go func() {
		if r.cfg.Restore.FenceWatch == 0 {
			watching <- nil
			return
		}
		watching <- restore.WatchForOthers(ctx, repository, r.cfg.Restore.FenceWatch.D())
	}()
	asked := false
	_, err = restore.CarryOut(ctx, repository, plan, restore.Options{Dir: r.dir, FetchWAL: command, Parallel: r.cfg.Restore.Parallel, BufferMax: int64(r.cfg.Backup.BufferMax),
		Own: r.install.Own, Log: r.log, BeforePublish: func() error { asked = true; return <-watching }})
	if !asked {
		<-watching
	}
	return err
}

// fenceTimeout bounds what is asked of the repository before a cluster that is there is started: without the store it is started all the same.
const fenceTimeout = 10 * time.Second

// mayStart refuses a cluster that a server runs already, and one that was replaced. A standby may start, and a recovery that was interrupted.
func (r *runner) mayStart(ctx context.Context) error {
	if pid := restore.ServerOf(r.dir); pid != 0 {
		return fmt.Errorf("run: %s: %w (process %d)", r.dir, restore.ErrInUse, pid)
	}
	removed, err := restore.ClearStalePID(r.dir)
	if err != nil {
		return fmt.Errorf("run: %w", err)
	}
	if removed {
		r.log.Info("a postmaster.pid was removed that named a process which is no server of this directory", "directory", r.dir)
	}
	if restore.Recovers(r.dir) || r.cfg.Restore.FenceWatch == 0 {
		return nil // it goes where the archive has gone
	}
	if err := r.superseded(ctx); errors.Is(err, restore.ErrOtherServer) {
		return fmt.Errorf("run: %w; make a standby of it (pitr restore --standby --delta), or set restore.fence_watch to 0 if it is to run all the same", err)
	} else if err != nil {
		r.log.Warn("the repository could not be asked whether the cluster was replaced; it is started all the same", "error", err)
	}
	return nil
}

func (r *runner) superseded(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fenceTimeout)
	defer cancel()
	own, err := r.install.ControlTimeline(ctx, r.dir)
	if err != nil {
		return err
	}
	repository, err := r.app.repository(r.cfg, r.log)
	if err != nil {
		return err
	}
	if _, err := repository.Cluster(ctx); errors.Is(err, repo.ErrNotExist) {
		return nil // nothing was archived yet
	}
	return restore.Superseded(ctx, repository, r.dir, pg.Timeline(own))
}

// certainlyEmpty makes sure that a repository without cluster.json has not merely lost it.
func certainlyEmpty(ctx context.Context, repository *repo.Repo) error {
	packs, err := repository.StoredPacks(ctx)
	if err != nil {
		return err
	}
	backups, err := repository.Backups(ctx)
	if err != nil {
		return err
	}
	if len(packs)+len(backups) > 0 {
		return fmt.Errorf("it has backups, but no cluster.json: %w", repo.ErrDamaged)
	}
	return nil
}

// initialise makes a new cluster. It can be started only when it is whole, the access of others included.
func (r *runner) initialise(ctx context.Context) error {
	superuser := os.Getenv("POSTGRES_USER")
	if superuser == "" {
		superuser = "postgres"
	}
	password := os.Getenv("POSTGRES_PASSWORD")
	r.log.Info("the repository is empty: initialising a new cluster", "directory", r.dir, "superuser", superuser)
	return restore.Initialise(r.dir, r.install.Own, func(dir string) error {
		if err := r.install.InitDB(ctx, postmaster.InitOptions{Dir: dir, Superuser: superuser, Password: password}); err != nil {
			return err
		}
		if password == "" {
			return nil
		}
		hba, err := os.OpenFile(filepath.Join(dir, "pg_hba.conf"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = hba.WriteString("\n# pitr run: everyone with a password, from everywhere\nhost all all all scram-sha-256\nhost replication all all scram-sha-256\n")
		return errors.Join(err, hba.Close())
	})
}

// supervise runs Postgres, hands on signals, and returns its exit code.
func (r *runner) supervise(ctx context.Context) error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	if err := ctx.Err(); err != nil {
		return err // asked to stop before anybody could hand it on
	}
	args := r.args[1:]
	if dataDirectory(r.args, &config.Config{}) != r.dir {
		args = append(slices.Clone(args), "-D", r.dir) // the last one counts
	}
	cmd := r.install.Command(context.Background(), "postgres", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr.Pdeathsig = syscall.SIGINT
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run: start postgres: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	recovery := time.NewTicker(recoveryPoll)
	defer recovery.Stop()
	for {
		select {
		case sig := <-signals:
			if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
				r.log.Warn("a signal was not handed on", "signal", sig, "error", err)
			}
		case <-recovery.C:
			if r.endRecovery() {
				recovery.Stop()
			}
		case err := <-ended:
			return postgresExit(err)
		}
	}
}

// recoveryPoll is how often `run` looks whether the recovery of a restored cluster has ended.
const recoveryPoll = time.Second

// endRecovery removes the recovery settings of a restored cluster once it is open. It is done when there is nothing left to do. An
// earlier run may have restored the cluster and been killed before it came to this.
func (r *runner) endRecovery() (done bool) {
	pending, err := restore.RecoveryToEnd(r.dir)
	if err == nil && pending {
		if _, signalErr := os.Stat(filepath.Join(r.dir, "recovery.signal")); !errors.Is(signalErr, fs.ErrNotExist) || r.install.Attach(r.dir, 0).Status() != "ready" {
			return false
		}
		if err = errors.Join(restore.RemoveSpools(r.dir), restore.EndRecovery(r.dir)); err == nil {
			r.log.Info("recovery has ended; its settings were removed", "directory", r.dir)
		}
	}
	if err != nil {
		r.log.Error("the recovery settings were not removed from postgresql.auto.conf", "error", err)
	}
	return true
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
