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
	"pitr/internal/repo"
)

func backupCommand(app *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Take a base backup now",
		Long:  "Streams a base backup into the repository. `pitr archiver` must be running: the backup exists once its WAL has arrived too.\n\n" + exitHelp,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, log, r, err := app.open()
			if err != nil {
				return err
			}
			progress := newProgress(os.Stderr)
			b, err := archiver.TakeBackup(cmd.Context(), archiver.BackupOptions{
				DSN: cfg.Postgres.DSN.Reveal(), Repo: r, BufferMax: int64(cfg.Backup.BufferMax), WALWait: cfg.Backup.WALWait.D(), Log: log,
				Progress: func(p archiver.BackupProgress) {
					progress.show(fmt.Sprintf("%d files, %s read, %s stored", p.Files, bytesText(p.Bytes), bytesText(p.StoredBytes)))
				},
			})
			progress.done()
			if err != nil {
				return err
			}
			return printBackups(cmd.OutOrStdout(), []repo.Backup{b}, asJSON)
		},
	}
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

// backupJSON is a backup without the list of its packs.
type backupJSON struct {
	repo.Backup
	Packs int `json:"packs"`
}

func printBackups(w io.Writer, backups []repo.Backup, asJSON bool) error {
	if asJSON {
		list := make([]backupJSON, 0, len(backups))
		for _, b := range backups {
			list = append(list, backupJSON{b, len(b.Packs)})
		}
		return printJSON(w, list)
	}
	if len(backups) == 0 {
		_, err := fmt.Fprintln(w, "no backups")
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "BACKUP\tENDED\tTOOK\tSIZE\tSTORED\tTIMELINE\tSTART\tSTOP\tPOSTGRES")
	for _, b := range backups {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%d\n", b.ID, b.StopTime.UTC().Format(time.RFC3339), durationText(b.StopTime.Sub(b.StartTime)),
			bytesText(b.Bytes), bytesText(b.StoredBytes), b.Timeline, b.Start, b.Stop, b.Major)
	}
	return table.Flush()
}

// progress shows one line that replaces itself, on a terminal only.
type progress struct {
	out   *os.File
	shown bool
}

func newProgress(out *os.File) *progress {
	info, err := out.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return &progress{}
	}
	return &progress{out: out}
}

func (p *progress) show(text string) {
	if p.out != nil {
		fmt.Fprintf(p.out, "\r\x1b[K%s", text)
		p.shown = true
	}
}

func (p *progress) done() {
	if p.shown {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.shown = false
	}
}
