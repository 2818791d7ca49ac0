package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"pitr/restore"
)

func verifyCommand(app *app) *cobra.Command {
	var asJSON bool
	var level string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Look for everything that would make a restore fail",
		Long:  "Level inventory checks by name and size that every object is there which a restore would need; level checksum reads and decodes every byte.\n\n" + exitHelp,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if level != string(restore.Inventory) && level != string(restore.Checksum) {
				return &usageError{fmt.Errorf("--level %q: inventory and checksum exist", level)}
			}
			cfg, _, r, err := app.open()
			if err != nil {
				return err
			}
			report, err := restore.Verify(cmd.Context(), r, restore.VerifyLevel(level), restore.PlanOptions{Now: time.Now(), Parallel: cfg.Restore.Parallel})
			if err != nil {
				return err
			}
			if err := printReport(cmd.OutOrStdout(), report, asJSON); err != nil {
				return err
			}
			if n := len(report.Defects); n > 0 {
				return &defectError{fmt.Sprintf("verification found %d defects", n)}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&level, "level", string(restore.Inventory), "inventory or checksum")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
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
