package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"pitr/config"
	"pitr/internal/monitor"
	"pitr/internal/postmaster"
	"pitr/internal/repo"
	"pitr/restore"
	"pitr/restore/prover"
)

// levelRestore is the level of `pitr verify` that restores.
const levelRestore = "restore"

// proveFlags are those of `pitr verify --level restore`.
type proveFlags struct {
	to   string
	seed uint64
}

func (f *proveFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.to, "to", "", "level restore: to this target, as for `pitr restore`, instead of a random instant")
	cmd.Flags().Uint64Var(&f.seed, "seed", 0, "level restore: of the random instant; 0: another each time")
}

func (f *proveFlags) check(level string) error {
	switch level {
	case levelRestore:
		return nil
	case string(restore.Inventory), string(restore.Checksum):
		if f.to != "" || f.seed != 0 {
			return &usageError{fmt.Errorf("verify: --to and --seed are for --level %s", levelRestore)}
		}
		return nil
	}
	return &usageError{fmt.Errorf("--level %q: inventory, checksum and restore exist", level)}
}

// run makes a proof, stores it, and prints it.
func (f *proveFlags) run(cmd *cobra.Command, app *app, cfg *config.Config, log *slog.Logger, asJSON bool) error {
	r, err := app.repository(cfg, log)
	if err != nil {
		return err
	}
	var target *restore.Target
	if f.to != "" {
		parsed, err := parseTarget(f.to, cfg)
		if err != nil {
			return err
		}
		target = &parsed
	}
	seed := f.seed
	if seed == 0 {
		seed = rand.Uint64()
	}
	bar := newProgress()
	proof, err := prove(cmd.Context(), cfg, r, log, target, seed, bar.show)
	bar.done()
	if err != nil {
		return err
	}
	if err := r.PutProof(cmd.Context(), proof); err != nil {
		return err
	}
	if asJSON {
		err = printJSON(cmd.OutOrStdout(), proof)
	} else {
		err = printProof(cmd.OutOrStdout(), proof)
	}
	if err == nil && !proof.OK {
		err = &defectError{"the test restore has failed"}
	}
	return err
}

// prove restores into the configured scratch directory.
func prove(ctx context.Context, cfg *config.Config, r *repo.Repo, log *slog.Logger, target *restore.Target, seed uint64, progress func(string)) (repo.Proof, error) {
	install, err := postmaster.Find(ctx)
	if err != nil {
		return repo.Proof{}, err
	}
	command, err := fetchCommand(cfg)
	if err != nil {
		return repo.Proof{}, err
	}
	if err := checkFetch(ctx, cfg, install); err != nil {
		return repo.Proof{}, err
	}
	user := "postgres"
	if dsn, err := pgconn.ParseConfig(cfg.Postgres.DSN.Reveal()); err == nil && dsn.User != "" {
		user = dsn.User
	}
	dir := cfg.Verify.Directory
	if dir == "" {
		dir = os.TempDir()
	}
	return restore.Prove(ctx, r, restore.ProveOptions{Target: target, Seed: seed, Dir: filepath.Join(dir, "pitr-verify-"+cfg.Cluster), Install: install, FetchWAL: command, User: user,
		Database: cfg.Verify.Database, Queries: cfg.Verify.Queries, OpenTimeout: cfg.Restore.OpenTimeout.D(), Parallel: cfg.Restore.Parallel, Version: version, Log: log, Progress: progress})
}

func printProof(w io.Writer, p repo.Proof) error {
	for _, check := range p.Checks {
		fmt.Fprintf(w, "%-8s %-14s %s\n", check.Outcome, check.Name, check.Detail)
	}
	word := "proven"
	if !p.OK {
		word = "FAILED"
	}
	_, err := fmt.Fprintf(w, "%s: backup %s to %s: %s fetched in %s, %s of WAL replayed and open after %s\n", word, p.Backup, p.Target, bytesText(p.FetchBytes),
		durationText(time.Duration(p.FetchSeconds*float64(time.Second))), bytesText(p.WALBytes), durationText(time.Duration(p.RecoverySeconds*float64(time.Second))))
	return err
}

// proofsSettle is how long an archiver has been at work before it verifies anything.
const proofsSettle = 5 * time.Minute

func newProofs(cfg *config.Config, r *repo.Repo, log *slog.Logger, working func() bool) *prover.Prover {
	return prover.New(prover.Options{Repo: r, Inventory: cfg.Verify.InventoryInterval.D(), ChecksumDays: cfg.Verify.ChecksumDays, Restore: cfg.Verify.RestoreInterval.D(),
		Settle: proofsSettle, Plan: restore.PlanOptions{Parallel: cfg.Restore.Parallel}, Working: working, Log: log,
		Prove: func(ctx context.Context, seed uint64) (repo.Proof, error) {
			return prove(ctx, cfg, r, log, nil, seed, nil)
		}})
}

// withProofs runs a service with the schedule of verifications beside it.
func withProofs(p *prover.Prover, run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			p.Run(ctx)
		}()
		err := run(ctx)
		cancel()
		<-ended
		return err
	}
}

func proofMetrics(st prover.Stats) []monitor.Metric {
	gauge := func(name, help string, value float64) monitor.Metric {
		return monitor.Metric{Name: name, Help: help, Value: value}
	}
	at := func(t time.Time) float64 {
		if t.IsZero() {
			return 0
		}
		return float64(t.Unix())
	}
	level := func(name, help, level string, value float64) monitor.Metric {
		m := monitor.Metric{Name: name, Help: help, Value: value}
		m.Labels = map[string]string{"level": level}
		return m
	}
	const lastHelp, defectsHelp = "When this archiver has last verified the repository at a level; 0: not yet.", "Defects that this has found."
	failures := monitor.Metric{Name: "pitr_verify_failures_total", Help: "Verifications that could not be done.", Kind: monitor.Counter, Value: float64(st.Failures)}
	return []monitor.Metric{
		gauge("pitr_last_proven_restore_timestamp_seconds", "When a restore was last proven by carrying it out; 0: never.", at(st.LastProven)),
		gauge("pitr_last_proven_restore_seconds", "How long it took until the data was back, fetch and recovery.", st.RecoverTook.Seconds()),
		gauge("pitr_last_test_restore_timestamp_seconds", "When a test restore last ended, whatever it has shown; 0: never.", at(st.LastTried)),
		gauge("pitr_last_test_restore_failed", "1 when that has shown that the data does not come back.", number(st.LastFailed)),
		level("pitr_last_verified_timestamp_seconds", lastHelp, "inventory", at(st.InventoryAt)),
		level("pitr_last_verified_timestamp_seconds", lastHelp, "checksum", at(st.SliceAt)),
		level("pitr_verify_defects", defectsHelp, "inventory", float64(st.InventoryDefects)),
		level("pitr_verify_defects", defectsHelp, "checksum", float64(st.SliceDefects)),
		failures,
	}
}
