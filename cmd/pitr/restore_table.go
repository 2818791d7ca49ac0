package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"pitr/config"
	"pitr/internal/pg"
	"pitr/internal/postmaster"
	"pitr/internal/repo"
	"pitr/restore"
)

// tableFlags are the flags of `pitr restore table`.
type tableFlags struct {
	restoreFlags
	table        string
	intoDatabase string
	fromDatabase string
	as           string
	scratch      string
}

func restoreTableCommand(app *app) *cobra.Command {
	var f tableFlags
	cmd := &cobra.Command{
		Use:   "table SCHEMA.TABLE --to TARGET --into-database DATABASE",
		Short: "Bring one table back, beside what is there, into a running database",
		Long: `Restores a copy into a scratch directory, starts it where nobody else can reach it, and loads the table under another name into the database of the
server of postgres.dsn, in one transaction. The copy is removed in any case. The user of postgres.dsn must be allowed to make tables in the schema.

The table keeps its columns, defaults, checks, indexes, keys, and sequences of its own, which get new names. Foreign keys, triggers, rules, policies and
rights stay behind. Names are written as in SQL: "Mixed Case"."Table".

` + exitHelp,
		Example: `  pitr restore table public.orders --to "2026-11-20 14:03:21+01:00" --into-database shop
  pitr restore table public.orders --before-drop public.orders --into-database shop --as orders`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.table = args[0]
			return runRestoreTable(cmd, app, f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.to, "to", "", "the target, as of pitr restore")
	flags.StringVar(&f.beforeDrop, "before-drop", "", "instead of --to: just before this `RELATION` was dropped")
	flags.StringVar(&f.beforeXID, "before-xid", "", "instead of --to: just before the transaction with this `ID` ended")
	flags.Uint32Var(&f.timeline, "timeline", 0, "recover along this timeline; default: the newest")
	flags.StringVar(&f.intoDatabase, "into-database", "", "the running `DATABASE`")
	flags.StringVar(&f.fromDatabase, "from-database", "", "the `DATABASE` that the table was in; default: that of --into-database")
	flags.StringVar(&f.as, "as", "", "`NAME` of the table; default: its own with the time of the target")
	flags.StringVar(&f.scratch, "scratch", "", "`DIRECTORY` in which the copy is made; default: that of temporary files")
	return cmd
}

func runRestoreTable(cmd *cobra.Command, app *app, f tableFlags) error {
	f.dryRun = true // of the checks of a restore, those of its directory do not apply
	if err := f.check(); err != nil {
		return err
	}
	if f.intoDatabase == "" {
		return &usageError{errors.New("restore table: --into-database is missing")}
	}
	if f.fromDatabase == "" {
		f.fromDatabase = f.intoDatabase
	}
	table, err := restore.ParseRelation(f.table)
	if err != nil {
		return &usageError{fmt.Errorf("restore table: %w", err)}
	}
	cfg, log, err := app.load()
	if err != nil {
		return err
	}
	target, err := f.target(cfg)
	if err != nil {
		return err
	}
	install, err := postmaster.Find(cmd.Context())
	if err != nil {
		return err
	}
	r, err := app.repository(cfg, log)
	if err != nil {
		return err
	}
	plan, err := restore.NewPlan(cmd.Context(), r, target, restore.PlanOptions{Timeline: pg.Timeline(f.timeline), Now: time.Now(), Parallel: cfg.Restore.Parallel})
	if err != nil {
		return err
	}
	if f.as == "" {
		if f.as, err = restoredName(cfg, table.Name, target, plan); err != nil {
			return err
		}
	}
	t := &tableRestore{flags: f, cfg: cfg, log: log, repo: r, plan: plan, table: table, out: cmd.OutOrStdout(),
		loading: restore.Loading{Install: install, From: f.fromDatabase, Table: restore.Relation{Schema: table.Schema, Name: f.as}, DSN: cfg.Postgres.DSN.Reveal(), Database: f.intoDatabase}}
	return t.run(cmd.Context())
}

// restoredName has the time of the target in the zone of the configuration; of a target that is no time, that of the last transaction.
func restoredName(cfg *config.Config, name string, target restore.Target, plan *restore.Plan) (string, error) {
	at := plan.Backup.StopTime
	switch {
	case target.Kind == restore.AtTime:
		at = target.Time
	case plan.LastIncluded != nil:
		at = plan.LastIncluded.Time
	}
	zone, err := timeZone(cfg)
	if err != nil {
		return "", err
	}
	if zone == nil {
		zone = time.UTC
	}
	return restore.RestoredName(name, at.In(zone)), nil
}

// tableRestore is one `pitr restore table` that is under way.
type tableRestore struct {
	flags   tableFlags
	cfg     *config.Config
	log     *slog.Logger
	repo    *repo.Repo
	plan    *restore.Plan
	table   restore.Relation // in the copy
	loading restore.Loading
	out     io.Writer
}

func (t *tableRestore) run(ctx context.Context) (err error) {
	if t.plan.Backup.Major != t.loading.Install.Major {
		return fmt.Errorf("the backup is of PostgreSQL %d, and %s is %d; set %s to the binaries of %d", t.plan.Backup.Major, t.loading.Install.Bin, t.loading.Install.Major,
			postmaster.BinEnv, t.plan.Backup.Major)
	}
	if err := t.loading.Check(ctx); err != nil {
		return err
	}
	others, err := restore.OtherDatabases(ctx, t.repo, t.plan, []string{t.loading.From})
	if err != nil {
		return err
	}
	printPlan(t.out, t.plan, "")
	scratch, err := os.MkdirTemp(t.flags.scratch, "pitr-table-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	if err := t.loading.Install.Own(scratch); err != nil {
		return err
	}
	dir := filepath.Join(scratch, "data")
	if err := t.restore(ctx, dir, others); err != nil {
		return err
	}
	server, err := t.start(ctx, scratch, dir)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := cleanup(ctx)
		defer cancel()
		err = errors.Join(err, server.Stop(ctx, postmaster.Immediate)) // before its directory is removed
	}()
	return t.load(ctx, server)
}

func (t *tableRestore) restore(ctx context.Context, dir string, others map[uint32]string) error {
	command, err := fetchCommand(t.cfg)
	if err != nil {
		return err
	}
	if err := checkFetch(ctx, t.cfg, t.loading.Install); err != nil {
		return err
	}
	opt := restore.Options{Dir: dir, FetchWAL: command, Isolated: true, Parallel: t.cfg.Restore.Parallel, BufferMax: int64(t.cfg.Backup.BufferMax), Own: t.loading.Install.Own, Log: t.log,
		Sparse: map[uint32]bool{}}
	for oid := range others {
		opt.Sparse[oid] = true
	}
	bar := newProgress()
	defer bar.done()
	opt.Progress = bar.fetching(time.Now())
	_, err = restore.CarryOut(ctx, t.repo, t.plan, opt)
	return err
}

// scratchPort names the socket of the scratch copy, which listens nowhere else.
const scratchPort = 5432

// start runs the copy so that only its own user reaches it: by a socket in a directory that nobody else may enter. It ends with us.
func (t *tableRestore) start(ctx context.Context, scratch, dir string) (*postmaster.Server, error) {
	hba := filepath.Join(scratch, "pg_hba.conf")
	if err := errors.Join(os.WriteFile(hba, []byte("local all all trust\n"), 0o600), t.loading.Install.Own(hba)); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Restore.OpenTimeout.D())
	defer cancel()
	return t.loading.Install.StartChild(ctx, postmaster.StartOptions{Dir: dir, Port: scratchPort, Log: filepath.Join(scratch, "log"), Settings: []string{
		"listen_addresses=", "hba_file=" + hba, "ssl=off", "fsync=off", "full_page_writes=off", "autovacuum=off", "logging_collector=off",
		"log_destination=stderr", "lc_messages=C", "shared_buffers=64MB", "huge_pages=off"}})
}

func (t *tableRestore) load(ctx context.Context, server *postmaster.Server) error {
	l := t.loading
	var err error
	if l.User, err = restore.Superuser(ctx, server); err != nil {
		return err
	}
	l.Scratch = server
	if err := restore.RenameTable(ctx, server, l.User, l.From, t.table, l.Table.Name); err != nil {
		return err
	}
	if err := l.Load(ctx); err != nil {
		return err
	}
	rows, err := l.Ask(ctx, "SELECT pg_catalog.count(*) FROM "+l.Table.String())
	if err != nil {
		return err
	}
	planLine(t.out, "loaded", "%s, %s rows, as %s into database %s", t.table, rows, l.Table, l.Database)
	return nil
}
