package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"pitr/config"
	"pitr/internal/repo"
	"pitr/internal/store"
)

func configCommand(app *app) *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check or show the configuration", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(
		&cobra.Command{Use: "check", Short: "Validate the file, then probe Postgres and the store", Long: "Validates the configuration and probes what it names.\n\n" + exitHelp, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				cfg, log, err := app.load()
				if err != nil {
					return err
				}
				return checkConfig(cmd.Context(), cmd.OutOrStdout(), app, cfg, log)
			}},
		&cobra.Command{Use: "show", Short: "Print the effective values, secrets hidden", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				cfg, _, err := app.load()
				if err != nil {
					return err
				}
				_, err = fmt.Fprint(cmd.OutOrStdout(), cfg.YAML())
				return err
			}})
	cmd.AddCommand(importCommand())
	return cmd
}

// probeTimeout bounds each probe of `config check`.
const probeTimeout = 15 * time.Second

func checkConfig(ctx context.Context, w io.Writer, app *app, cfg *config.Config, log *slog.Logger) error {
	fmt.Fprintf(w, "ok      %s is valid\n", cfg.Path)
	failed := 0
	probe := func(what string, run func(context.Context) (string, error)) {
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		found, err := run(ctx)
		if err != nil {
			failed++
			fmt.Fprintf(w, "failed  %s: %v\n", what, err)
			return
		}
		fmt.Fprintf(w, "ok      %s: %s\n", what, found)
	}
	probe("postgres", func(ctx context.Context) (string, error) { return probePostgres(ctx, cfg) })
	if cfg.Archive.Store == "" {
		fmt.Fprintln(w, "absent  store: archive.store is not set, so there is no archive")
	} else {
		for i, text := range cfg.Archive.Stores() {
			what := "store"
			if i > 0 {
				what = "copy " + config.StoreName(text)
			}
			before := failed
			probe(what, func(ctx context.Context) (string, error) { return probeStore(ctx, app, cfg, text, log) })
			if failed == before {
				failed += tryStore(ctx, w, cfg, what, text)
			}
		}
	}
	checkLock(w, cfg)
	if failed > 0 {
		return fmt.Errorf("%d of the probes failed", failed)
	}
	return nil
}

// tryStore tries what a repository needs of its store, one thing after the other, and returns how many failed.
func tryStore(ctx context.Context, w io.Writer, cfg *config.Config, what, text string) (failed int) {
	s, err := openStore(cfg, text)
	if err != nil {
		fmt.Fprintf(w, "failed  %s: %v\n", what, err)
		return 1
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	for _, found := range store.Probe(ctx, s, time.Now) {
		switch {
		case found.Err != nil && found.Bearable:
			fmt.Fprintf(w, "limited %s, %s: %v; so %s\n", what, found.What, found.Err, found.Consequence)
		case found.Err != nil:
			failed++
			fmt.Fprintf(w, "failed  %s, %s: %v; so %s\n", what, found.What, found.Err, found.Consequence)
		case found.Detail != "":
			fmt.Fprintf(w, "ok      %s, %s: %s\n", what, found.What, found.Detail)
		default:
			fmt.Fprintf(w, "ok      %s, %s\n", what, found.What)
		}
	}
	return failed + tryHeaders(ctx, w, what, s) + tryLock(ctx, w, cfg, what, s)
}

// choosy is a store that can be asked to keep objects in a certain way.
type choosy interface {
	ProbeHeaders(ctx context.Context) (problem string, err error)
}

// tryHeaders tries whether a store keeps objects as its URL says.
func tryHeaders(ctx context.Context, w io.Writer, what string, s store.Store) (failed int) {
	bucket, ok := s.(choosy)
	if !ok {
		return 0
	}
	problem, err := bucket.ProbeHeaders(ctx)
	switch {
	case err != nil:
		fmt.Fprintf(w, "failed  %s, encryption and class: %v; so nothing can be archived\n", what, err)
		return 1
	case problem != "":
		fmt.Fprintf(w, "limited %s, encryption and class: %s\n", what, problem)
	}
	return 0
}

// locking is a store that can retain objects.
type locking interface {
	ProbeLock(ctx context.Context) (detail string, err error)
}

// tryLock tries whether a store retains what it is given, when archive.lock asks for that.
func tryLock(ctx context.Context, w io.Writer, cfg *config.Config, what string, s store.Store) (failed int) {
	if cfg.Archive.Lock == 0 {
		return 0
	}
	const consequence = "whoever has the archiver's credentials can destroy what is there"
	bucket, ok := s.(locking)
	if !ok {
		fmt.Fprintf(w, "limited %s, object lock: a directory retains nothing; so %s\n", what, consequence)
		return 0
	}
	detail, err := bucket.ProbeLock(ctx)
	if err != nil {
		fmt.Fprintf(w, "failed  %s, object lock: %v; so nothing can be archived with archive.lock, and without it %s\n", what, err, consequence)
		return 1
	}
	fmt.Fprintf(w, "ok      %s, object lock: %s\n", what, detail)
	return 0
}

// checkLock holds the retention of objects against that of backups.
func checkLock(w io.Writer, cfg *config.Config) {
	lock, window := cfg.Archive.Lock, cfg.Backup.Retention.Window
	switch {
	case lock == 0:
	case lock <= window:
		fmt.Fprintf(w, "limited archive.lock: %s is no longer than backup.retention.window, %s; so objects that a restore still needs can be destroyed when they are older\n", lock, window)
	default:
		fmt.Fprintf(w, "ok      archive.lock: %s, backup.retention.window is %s\n", lock, window)
	}
}

func probeStore(ctx context.Context, app *app, cfg *config.Config, text string, log *slog.Logger) (string, error) {
	inner, err := openStore(cfg, text)
	if err != nil {
		return "", err
	}
	r, err := openRepository(cfg, app.retrying(inner, cfg, log, cfg.Archive.StoreRetries))
	if err != nil {
		return "", err
	}
	cluster, err := r.Cluster(ctx)
	if errors.Is(err, repo.ErrNotExist) {
		return "reachable, and the repository is empty", nil
	}
	if err != nil {
		return "", err
	}
	return "reachable, and holds the cluster with system identifier " + cluster.SystemID.String(), nil
}

// probePostgres asks for what the archiver needs.
func probePostgres(ctx context.Context, cfg *config.Config) (found string, err error) {
	conn, err := pgconn.Connect(ctx, cfg.Postgres.DSN.Reveal())
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	results, err := conn.Exec(ctx, `SELECT current_setting('server_version'), current_setting('wal_level'), current_setting('max_wal_senders'),
		current_setting('max_replication_slots'), (SELECT rolreplication OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user), current_user`).ReadAll()
	if err != nil {
		return "", err
	}
	row := results[0].Rows[0]
	if string(row[1]) == "minimal" {
		return "", errors.New("wal_level is minimal; archiving needs replica or logical")
	}
	for i, name := range map[int]string{2: "max_wal_senders", 3: "max_replication_slots"} {
		if n, err := strconv.Atoi(string(row[i])); err != nil || n < 1 {
			return "", fmt.Errorf("%s is %s; archiving needs two or more", name, row[i])
		}
	}
	if string(row[4]) != "t" {
		return "", fmt.Errorf("user %s lacks the REPLICATION attribute: ALTER ROLE %s REPLICATION", row[5], row[5])
	}
	return fmt.Sprintf("PostgreSQL %s, wal_level %s, user %s may replicate", row[0], row[1], row[5]), nil
}
