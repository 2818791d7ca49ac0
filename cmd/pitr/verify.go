package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"pitr/config"
	"pitr/restore"
)

func verifyCommand(app *app) *cobra.Command {
	var asJSON bool
	var level string
	var prove proveFlags
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Look for everything that would make a restore fail",
		Long: "Level inventory checks by name and size that every object is there which a restore would need; level checksum reads and decodes every byte; level restore\n" +
			"restores to a random instant into a scratch directory, starts Postgres there, runs pg_amcheck, pg_checksums and verify.queries, and removes it again.\n" +
			"The archiver does all three on a schedule: see the settings of the section verify.\n\n" + exitHelp,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := prove.check(level); err != nil {
				return err
			}
			cfg, log, err := app.load()
			if err != nil {
				return err
			}
			if level == levelRestore {
				return prove.run(cmd, app, cfg, log, asJSON)
			}
			reports, err := verifyStores(cmd, cfg, log, app, restore.VerifyLevel(level))
			if err != nil {
				return err
			}
			return printReports(cmd.OutOrStdout(), reports, asJSON)
		},
	}
	cmd.Flags().StringVar(&level, "level", string(restore.Inventory), "inventory, checksum or restore")
	prove.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// storeReport is what one store of the repository holds, verified as if it were the only one: that is what a restore has when the others are lost.
type storeReport struct {
	Store string `json:"store"`
	restore.Report
}

func verifyStores(cmd *cobra.Command, cfg *config.Config, log *slog.Logger, app *app, level restore.VerifyLevel) ([]storeReport, error) {
	stores := cfg.Archive.Stores()
	if len(stores) == 0 {
		stores = []string{""} // openStore says what is missing
	}
	var reports []storeReport
	for _, text := range stores {
		report, err := verifyStore(cmd, cfg, log, app, text, level)
		var usage *usageError
		if len(stores) > 1 && err != nil && !errors.As(err, &usage) && cmd.Context().Err() == nil {
			report.Defects = append(report.Defects, err.Error()) // the others can be verified all the same
			err = nil
		}
		if err != nil {
			return reports, err
		}
		reports = append(reports, storeReport{config.StoreName(text), report})
	}
	return reports, nil
}

func verifyStore(cmd *cobra.Command, cfg *config.Config, log *slog.Logger, app *app, text string, level restore.VerifyLevel) (restore.Report, error) {
	inner, err := openStore(cfg, text)
	if err != nil {
		return restore.Report{Level: level}, err
	}
	r, err := openRepository(cfg, app.retrying(inner, cfg, log, cfg.Archive.StoreRetries))
	if err != nil {
		return restore.Report{Level: level}, err
	}
	return restore.Verify(cmd.Context(), r, restore.VerifyOptions{Level: level, Plan: restore.PlanOptions{Now: time.Now(), Parallel: cfg.Restore.Parallel}})
}

// printReports prints the report of a single store as it is, and those of several one after the other.
func printReports(w io.Writer, reports []storeReport, asJSON bool) error {
	defects := 0
	for _, report := range reports {
		defects += len(report.Defects)
		if len(reports) > 1 && !asJSON {
			fmt.Fprintln(w, "store", report.Store)
		}
		if len(reports) > 1 && asJSON {
			continue
		}
		if err := printReport(w, report.Report, asJSON); err != nil {
			return err
		}
	}
	if len(reports) > 1 && asJSON {
		if err := printJSON(w, map[string]any{"stores": reports}); err != nil {
			return err
		}
	}
	if defects > 0 {
		return &defectError{fmt.Sprintf("verification found %d defects", defects)}
	}
	return nil
}

func printReport(w io.Writer, report restore.Report, asJSON bool) error {
	if asJSON {
		return printJSON(w, report)
	}
	for _, defect := range report.Defects {
		fmt.Fprintln(w, "defect:", defect)
	}
	for _, window := range report.Windows {
		fmt.Fprintf(w, "any second can be reached from %s\n", window)
	}
	if report.Encrypted {
		fmt.Fprintln(w, "encrypted, and no identity opens it: names and sizes were compared, what can be reached is not known")
	}
	_, err := fmt.Fprintf(w, "%s: %d backups, %d packs, %d WAL segments, %s: %d defects\n", report.Level, report.Backups, report.Packs, report.Segments,
		bytesText(report.Bytes), len(report.Defects))
	return err
}
