package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"pitr/archiver"
	"pitr/archiver/replication"
	"pitr/config"
	"pitr/internal/repo"
)

func backupCommand(app *app) *cobra.Command {
	var asJSON, full bool
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Take a base backup now",
		Long: "Streams a base backup into the repository. What the repository has already is referred to and not uploaded again. `pitr archiver` must be\n" +
			"running: the backup exists once its WAL has arrived too.\n\n" + exitHelp,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, log, r, err := app.open()
			if err != nil {
				return err
			}
			rules, err := backupRules(cfg)
			if err != nil {
				return err
			}
			progress, began := newProgress(), time.Now()
			b, err := archiver.TakeBackup(cmd.Context(), archiver.BackupOptions{
				DSN: cfg.Postgres.DSN.Reveal(), Repo: r, BufferMax: int64(cfg.Backup.BufferMax), WALWait: cfg.Backup.WALWait.D(), Log: log,
				Full: full, BackupRules: rules,
				Progress: func(p archiver.BackupProgress) { progress.show(progressText(p, time.Since(began))) },
			})
			progress.done()
			if err != nil {
				return err
			}
			if err := printBackups(cmd.OutOrStdout(), []repo.Backup{b}, asJSON); err != nil || b.ChecksumFailures == 0 {
				return err
			}
			return &defectError{fmt.Sprintf("the backup exists, but %d pages of the server have a wrong checksum", b.ChecksumFailures)}
		},
	}
	cmd.Flags().BoolVar(&full, "full", false, "refer to no earlier backup: upload everything")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func backupsCommand(app *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "backups",
		Short: "List the base backups in the repository",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, _, r, err := app.open()
			if err != nil {
				return err
			}
			backups, damaged, err := r.ReadableBackups(cmd.Context())
			if err != nil {
				return err
			}
			if err := printBackups(cmd.OutOrStdout(), backups, asJSON); err != nil || len(damaged) == 0 {
				return err
			}
			return &defectError{fmt.Sprintf("%d backups cannot be used: %v", len(damaged), errors.Join(damaged...))}
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// backupRules are the settings of every backup.
func backupRules(cfg *config.Config) (archiver.BackupRules, error) {
	rules := archiver.BackupRules{Incremental: archiver.IncrementalMode(cfg.Backup.Incremental), ChecksumFailures: archiver.ChecksumPolicy(cfg.Backup.ChecksumFailures),
		From: replication.Role(cfg.Backup.From), Source: archiver.Source(cfg.Backup.Source), Directory: cfg.Postgres.DataDirectory,
		RateRead: int64(cfg.Backup.RateRead), RateUpload: int64(cfg.Backup.RateUpload), RepackBelow: cfg.Backup.RepackBelow}
	if rules.Directory == "" {
		rules.Directory = os.Getenv("PGDATA")
	}
	if rules.Source == archiver.SourceFiles && rules.From != "" && rules.From != replication.Primary {
		return rules, &usageError{errors.New("backup.source is files, which are those of one server: backup.from can only be primary")}
	}
	if rules.Source == archiver.SourceFiles && rules.Directory == "" {
		return rules, &usageError{errors.New("backup.source is files: give postgres.data_directory, or $PGDATA")}
	}
	return rules, nil
}

// progressText is one line of progress. The backup before, or the sizes of the databases, say about how much there is to come.
func progressText(p archiver.BackupProgress, took time.Duration) string {
	text := fmt.Sprintf("%d files, %s read, %s uploaded", p.Files, bytesText(p.Bytes), bytesText(p.StoredBytes))
	if p.Extents > 0 {
		text += fmt.Sprintf(", %d %% of the extents were there", 100*p.Reused/p.Extents)
	}
	if p.Bytes > 0 && p.Expected > p.Bytes {
		left := time.Duration(float64(took) * float64(p.Expected-p.Bytes) / float64(p.Bytes))
		text += fmt.Sprintf(", %d %%, some %s to go", 100*p.Bytes/p.Expected, durationText(left))
	}
	return text
}

// backupJSON is a backup without the list of its packs.
type backupJSON struct {
	repo.Backup
	UploadedBytes int64 `json:"uploaded_bytes"`
	Packs         int   `json:"packs"`
}

func printBackups(w io.Writer, backups []repo.Backup, asJSON bool) error {
	if asJSON {
		list := make([]backupJSON, 0, len(backups))
		for _, b := range backups {
			list = append(list, backupJSON{b, b.UploadedBytes(), len(b.Packs)})
		}
		return printJSON(w, list)
	}
	if len(backups) == 0 {
		_, err := fmt.Fprintln(w, "no backups")
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "BACKUP\tENDED\tTOOK\tSIZE\tSTORED\tUPLOADED\tTIMELINE\tSTART\tSTOP\tPOSTGRES")
	for _, b := range backups {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%d\n", b.ID, b.StopTime.UTC().Format(time.RFC3339), durationText(b.StopTime.Sub(b.StartTime)),
			bytesText(b.Bytes), bytesText(b.StoredBytes), bytesText(b.UploadedBytes()), b.Timeline, b.Start, b.Stop, b.Major)
	}
	return table.Flush()
}
