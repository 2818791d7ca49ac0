package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pitr/config"
	"pitr/internal/pg"
	"pitr/internal/postmaster"
	"pitr/internal/repo"
	"pitr/restore"
)

// restoreFlags are the flags of `pitr restore`.
type restoreFlags struct {
	to         string
	beforeDrop string
	beforeXID  string

	into     string
	timeline uint32
	dryRun   bool
	asJSON   bool
	start    bool
	port     int

	tablespaces   []string
	delta         bool
	yes           bool
	onlyDatabases []string
	standby       bool
	primary       string
	pause         bool
	promote       bool
}

func restoreCommand(app *app) *cobra.Command {
	var f restoreFlags
	cmd := &cobra.Command{
		Use:   "restore --to TARGET --into DIR",
		Short: "Bring the cluster back as it was at an instant",
		Long: `Prints the plan, then restores into a new directory; with --start runs Postgres until it is open.

TARGET is a time with its zone ("2026-11-20 14:03:21+01:00": every commit up to and including that instant), a relative time ("5 minutes ago",
"2h ago", "yesterday 14:00+01:00"; by the clock of this machine), lsn:0/3000148, xid:4711 (up to and including its end; a subtransaction
stands for its transaction), name:restore_point, or latest. --before-drop and --before-xid stop just before a commit. Nothing is
written or downloaded for a target that cannot be reached.

` + exitHelp,
		Example: `  pitr restore --to "2026-11-20 14:03:21+01:00" --dry-run
  pitr restore --to "2026-11-20 14:03:21+01:00" --into /var/lib/postgresql/restored --start`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runRestore(cmd, app, f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.to, "to", "", "the target: `TIME`, lsn:LSN, xid:ID, name:NAME or latest")
	flags.StringVar(&f.beforeDrop, "before-drop", "", "instead of --to: just before this `RELATION` was dropped; schema.table or database.schema.table")
	flags.StringVar(&f.beforeXID, "before-xid", "", "instead of --to: just before the transaction with this `ID` ended")
	flags.StringVar(&f.into, "into", "", "the new data `DIRECTORY`; absent or empty, unless --delta is given")
	flags.Uint32Var(&f.timeline, "timeline", 0, "recover along this timeline; default: the newest")
	flags.BoolVar(&f.dryRun, "dry-run", false, "print the plan and stop")
	flags.BoolVar(&f.asJSON, "json", false, "print JSON")
	flags.BoolVar(&f.start, "start", false, "start Postgres and wait until it is open")
	f.addOptions(cmd)
	cmd.AddCommand(restoreTableCommand(app))
	flags.IntVar(&f.port, "port", 0, "port for --start; default: the first free one from 5433 on")
	return cmd
}

// restored is what `pitr restore --json` prints.
type restored struct {
	Plan      *restore.Plan   `json:"plan"`
	Directory string          `json:"directory,omitempty"`
	Result    *restore.Result `json:"result,omitempty"`
	Opened    *restore.Opened `json:"opened,omitempty"`

	LeftOut map[uint32]string `json:"databases_left_out,omitempty"` // by object id
}

func runRestore(cmd *cobra.Command, app *app, f restoreFlags) error {
	if f.standby && f.to == "" {
		f.to = "latest"
	}
	if err := f.check(); err != nil {
		return err
	}
	cfg, log, err := app.load()
	if err != nil {
		return err
	}
	target, err := f.target(cfg)
	if err != nil {
		return err
	}
	if f.into != "" {
		if f.into, err = filepath.Abs(f.into); err != nil {
			return err
		}
		check := restore.CheckDirectory
		if f.delta {
			check = restore.CheckDelta
		}
		if err := check(f.into); err != nil {
			return err
		}
	}
	r, err := app.repository(cfg, log)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	plan, err := restore.NewPlan(cmd.Context(), r, target, restore.PlanOptions{Timeline: pg.Timeline(f.timeline), Now: time.Now(), Parallel: cfg.Restore.Parallel})
	if err != nil {
		return err
	}
	plan.Describe(cmd.Context(), r, cfg.Restore.Parallel)
	plan.Compare(thisMachine(cmd.Context()), f.start)
	answer := restored{Plan: plan, Directory: f.into}
	if len(f.onlyDatabases) > 0 {
		if answer.LeftOut, err = restore.OtherDatabases(cmd.Context(), r, plan, f.onlyDatabases); err != nil {
			return err
		}
	}
	if !f.asJSON {
		printPlan(out, plan, f.into)
		f.printOptions(out, answer)
	}
	if !f.dryRun {
		if err := f.confirm(); err != nil {
			return err
		}
		if err := f.carryOut(cmd.Context(), out, cfg, log, r, &answer); err != nil {
			return err
		}
	}
	if f.asJSON {
		return printJSON(out, answer)
	}
	return nil
}

func (f restoreFlags) target(cfg *config.Config) (restore.Target, error) {
	switch {
	case f.beforeDrop != "":
		return restore.BeforeDropOf(f.beforeDrop), nil
	case f.beforeXID != "":
		xid, err := restore.ParseXID(f.beforeXID)
		if err != nil {
			return restore.Target{}, &usageError{fmt.Errorf("restore --before-xid: %w", err)}
		}
		return restore.BeforeTransaction(xid), nil
	}
	return parseTarget(f.to, cfg)
}

func parseTarget(text string, cfg *config.Config) (restore.Target, error) {
	zone, err := timeZone(cfg)
	if err != nil {
		return restore.Target{}, err
	}
	target, err := restore.ParseTarget(text, zone)
	if err != nil {
		return target, &usageError{fmt.Errorf("restore --to: %w", err)}
	}
	return target, nil
}

// timeZone is that of times that are written without one; nil: they are refused.
func timeZone(cfg *config.Config) (*time.Location, error) {
	if cfg.Restore.TimeZone == "" {
		return nil, nil
	}
	zone, err := time.LoadLocation(cfg.Restore.TimeZone)
	if err != nil {
		return nil, &usageError{err}
	}
	return zone, nil
}

// carryOut restores, and starts if asked to.
func (f restoreFlags) carryOut(ctx context.Context, out io.Writer, cfg *config.Config, log *slog.Logger, r *repo.Repo, answer *restored) error {
	install, err := postmaster.Find(ctx)
	if err != nil && (f.start || os.Geteuid() == 0) {
		return err
	}
	if f.start && install.Major != answer.Plan.Backup.Major {
		return fmt.Errorf("the backup is of PostgreSQL %d, and %s is %d; set %s to the binaries of %d", answer.Plan.Backup.Major, install.Bin, install.Major,
			postmaster.BinEnv, answer.Plan.Backup.Major)
	}
	if f.start && f.port != 0 && !isFree(f.port) {
		return fmt.Errorf("port %d of 127.0.0.1 is in use; choose another, or leave --port out", f.port)
	}
	command, err := fetchCommand(cfg)
	if err != nil {
		return err
	}
	own := func(string) error { return nil }
	if install != nil {
		own = install.Own
		if err := checkFetch(ctx, cfg, install); err != nil {
			return err
		}
	}
	bar := newProgress()
	opt, err := f.options(cfg, answer)
	if err != nil {
		return err
	}
	opt.FetchWAL, opt.Own, opt.Log, opt.Progress = command, own, log, bar.fetching(time.Now())
	result, err := restore.CarryOut(ctx, r, answer.Plan, opt)
	bar.done()
	if err != nil {
		return err
	}
	answer.Result = &result
	if !f.asJSON {
		fmt.Fprintf(out, "%-16s %d files, %s, verified and written in %s; %s fetched\n", "restored", result.Files, bytesText(result.Bytes), durationText(result.Took), bytesText(result.Fetched))
	}
	if !f.start {
		return nil
	}
	return f.open(ctx, out, cfg, install, answer)
}

// fetchCommand is the restore_command of the restored server. An option may follow it.
func fetchCommand(cfg *config.Config) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find our own binary for restore_command: %w", err)
	}
	return fmt.Sprintf("%s || exec %s -c %s wal fetch %%f %%p", restore.ShellTake, shellQuote(self), shellQuote(cfg.Path)), nil
}

// checkFetch makes sure, before anything is downloaded, that the user who runs Postgres can run us and read the configuration and
// the repository: recovery needs it.
func checkFetch(ctx context.Context, cfg *config.Config, install *postmaster.Install) error {
	if os.Geteuid() != 0 {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// Timeline 1 never has a history file, so a fetch that works says that it is certainly absent.
	out, err := install.Command(ctx, self, "-c", cfg.Path, "wal", "fetch", pg.Timeline(1).HistoryName(), os.DevNull).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitFetchAbsent {
		return fmt.Errorf("the user who runs Postgres must be able to run %s -c %s and to read the repository, so that recovery can fetch WAL: %w: %s",
			self, cfg.Path, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// shellQuote also doubles percent signs, which mean something in restore_command.
func shellQuote(text string) string {
	text = strings.ReplaceAll(text, "%", "%%")
	if strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/%") == "" {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

func (f restoreFlags) open(ctx context.Context, out io.Writer, cfg *config.Config, install *postmaster.Install, answer *restored) error {
	port := f.port
	if port == 0 {
		var err error
		if port, err = freePort(); err != nil {
			return err
		}
	}
	bar := newProgress()
	opt := restore.StartOptions{Dir: f.into, Port: port, Log: filepath.Clean(f.into) + ".log", Pause: f.pause, Standby: f.standby,
		OpenTimeout: cfg.Restore.OpenTimeout.D(), Progress: bar.replaying(time.Now(), f.into, answer.Plan)}
	server, opened, err := restore.Start(ctx, install, opt)
	bar.done()
	if err != nil {
		return err
	}
	answer.Opened = &opened
	if server, err = f.dropLeftOut(ctx, install, server, opt, answer); err != nil {
		return err
	}
	if f.asJSON {
		return nil
	}
	f.printOpened(out, port, opened)
	fmt.Fprintf(out, "%-16s %s -h %s -p %d; stop: %s stop -D %s\n", "connect", install.Path("psql"), server.Host(), port, install.Path("pg_ctl"), f.into)
	return nil
}

// Ports that --start tries when none is given.
const (
	startPortFirst = 5433
	startPortLast  = 5533
)

func freePort() (int, error) {
	for port := startPortFirst; port <= startPortLast; port++ {
		if isFree(port) {
			return port, nil
		}
	}
	return 0, fmt.Errorf("no port from %d to %d is free; give --port", startPortFirst, startPortLast)
}

// isFree reports whether nobody listens on a loopback port at this moment.
func isFree(port int) bool {
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return false
	}
	return listener.Close() == nil
}
