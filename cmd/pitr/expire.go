package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"pitr/archiver"
	"pitr/config"
	"pitr/internal/pg"
	"pitr/internal/repo"
)

// errMayNotDelete says that expiry has to be done with other credentials.
var errMayNotDelete = errors.New("these credentials may not delete")

func expireCommand(app *app) *cobra.Command {
	var dryRun, asJSON bool
	cmd := &cobra.Command{
		Use:   "expire",
		Short: "Remove what backup.retention does not need any more",
		Long: `Prints which backups the retention keeps and which it does not, then removes those, the WAL before the first that is kept, and what
other objects have replaced: parts that are in larger objects, old leases and clocks. The archiver does the same behind each backup and every hour
if it may delete; where it may not, run this as a job elsewhere, with credentials that may.

What the store still retains (archive.lock) stays, is counted, and goes when this runs again later.

` + exitHelp,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return expire(cmd, app, dryRun, asJSON) },
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print what would be removed and stop")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// retention is what must stay restorable.
func retention(cfg *config.Config) archiver.Retention {
	return archiver.Retention{Window: cfg.Backup.Retention.Window.D(), Minimum: cfg.Backup.Retention.Minimum, Grace: cfg.Backup.Retention.Grace.D()}
}

// expiryJSON is the plan of an expiry, and what became of it.
type expiryJSON struct {
	Keep     []string `json:"keep"`
	Condemn  []string `json:"condemn"`
	Wait     []string `json:"wait"`
	Expire   []string `json:"expire"`
	WALFrom  pg.LSN   `json:"wal_kept_from"`
	DryRun   bool     `json:"dry_run"`
	Removed  int      `json:"removed_objects"`
	Retained int      `json:"still_retained_objects"`
}

func expire(cmd *cobra.Command, app *app, dryRun, asJSON bool) error {
	ctx := cmd.Context()
	cfg, _, r, err := app.open()
	if err != nil {
		return err
	}
	catalogue, err := archiver.LoadCatalogue(ctx, r)
	if err != nil && !errors.Is(err, repo.ErrNotExist) { // nothing was ever archived
		return err
	}
	now := time.Now()
	plan := archiver.PlanExpiry(catalogue, now, retention(cfg))
	out := cmd.OutOrStdout()
	result := expiryJSON{Keep: backupIDs(plan.Keep), Condemn: backupIDs(plan.Condemn), Wait: backupIDs(plan.Wait), Expire: backupIDs(plan.Expire), WALFrom: plan.WALFrom, DryRun: dryRun}
	if !asJSON {
		printExpiry(out, plan, cfg.Backup.Retention.Grace.D(), catalogue, now)
	}
	if !dryRun {
		if result.Removed, result.Retained, err = carryOutExpiry(ctx, r, plan, now, cfg.Archive.SweepGrace.D()); err != nil {
			return err
		}
	}
	switch {
	case asJSON:
		return printJSON(out, result)
	case dryRun:
		return nil
	}
	fmt.Fprintf(out, "%d objects were removed\n", result.Removed)
	if result.Retained > 0 {
		fmt.Fprintf(out, "%d objects stay, since the store retains them still\n", result.Retained)
	}
	return nil
}

// carryOutExpiry removes what a plan says, and what others have replaced.
func carryOutExpiry(ctx context.Context, r *repo.Repo, plan archiver.Expiry, now time.Time, grace time.Duration) (removed, retained int, err error) {
	done, err := plan.CarryOut(ctx, r, now)
	swept := archiver.Swept{}
	if err == nil {
		swept, err = archiver.Sweep(ctx, r, now.Add(-grace))
	}
	if errors.Is(err, repo.ErrNotExist) { // nothing was ever archived
		err = nil
	}
	if errors.Is(err, repo.ErrDenied) {
		err = fmt.Errorf("%w: %w", errMayNotDelete, err)
	}
	if err != nil {
		err = fmt.Errorf("expire, after %d objects: %w", done.Removed+swept.Removed, err)
	}
	return done.Removed + swept.Removed, done.Retained + swept.Retained, err
}

func backupIDs(backups []repo.Backup) []string {
	list := make([]string, len(backups))
	for i, b := range backups {
		list[i] = b.ID
	}
	return list
}

func printExpiry(w io.Writer, plan archiver.Expiry, grace time.Duration, c archiver.Catalogue, now time.Time) {
	line := func(what string, b repo.Backup, why string) {
		fmt.Fprintf(w, "%-8s %s, ended %s%s\n", what, b.ID, b.StopTime.UTC().Format(time.RFC3339), why)
	}
	for _, b := range plan.Expire {
		line("expires", b, "")
	}
	for _, b := range plan.Wait {
		if left := grace - now.Sub(c.Tombstones[b.ID].Since); left > 0 {
			line("waits", b, ": not needed, and expires in "+durationText(left))
		} else {
			line("waits", b, ": not needed, but a backup that is being taken refers to it")
		}
	}
	for _, b := range plan.Condemn {
		line("waits", b, ": not needed, and expires in "+durationText(grace))
	}
	for _, b := range plan.Keep {
		line("stays", b, ": "+plan.Why[b.ID])
	}
	switch {
	case len(plan.Stay()) == 0:
		fmt.Fprintln(w, "no backups, so that all WAL stays")
	case plan.WALFrom == 0:
		fmt.Fprintln(w, "WAL      stays as it is")
	default:
		fmt.Fprintf(w, "WAL      from %s on stays\n", plan.WALFrom)
	}
	for _, i := range plan.Islands {
		fmt.Fprintf(w, "WAL      from %s to %s stays\n", i.From, i.To)
	}
}
