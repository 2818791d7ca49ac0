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
		probe("store", func(ctx context.Context) (string, error) { return probeStore(ctx, app, cfg, log) })
		failed += tryStore(ctx, w, cfg, failed)
	}
	if failed > 0 {
		return fmt.Errorf("%d of the probes failed", failed)
	}
	return nil
}

// tryStore tries what a repository needs of its store, one thing after the other, and returns how many failed. A store that cannot be
// reached has been reported.
func tryStore(ctx context.Context, w io.Writer, cfg *config.Config, failedBefore int) (failed int) {
	s, err := openStore(cfg.Archive.Store)
	if err != nil || failedBefore > 0 {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	for _, found := range store.Probe(ctx, s, time.Now) {
		switch {
		case found.Err != nil:
			failed++
			fmt.Fprintf(w, "failed  store, %s: %v; so %s\n", found.What, found.Err, found.Consequence)
		case found.Detail != "":
			fmt.Fprintf(w, "ok      store, %s: %s\n", found.What, found.Detail)
		default:
			fmt.Fprintf(w, "ok      store, %s\n", found.What)
		}
	}
	return failed
}

func probeStore(ctx context.Context, app *app, cfg *config.Config, log *slog.Logger) (string, error) {
	r, err := app.repository(cfg, log)
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
