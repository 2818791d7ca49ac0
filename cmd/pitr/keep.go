package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"pitr/internal/repo"
)

func keepCommand(app *app) *cobra.Command {
	var release bool
	var reason string
	cmd := &cobra.Command{
		Use:   "keep BACKUP",
		Short: "Let a base backup stay, whatever the retention says",
		Long: `A backup that is kept never expires. While backup.retention needs it all the same, any second behind it can be reached; later only its own end,
since no more WAL stays for it than makes it consistent. --release leaves it to the retention again.

` + exitHelp,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, _, r, err := app.open()
			if err != nil {
				return err
			}
			backup := args[0]
			if release {
				keeps, err := r.Keeps(cmd.Context())
				if err != nil {
					return err
				}
				if _, kept := keeps[backup]; !kept {
					return &usageError{fmt.Errorf("keep --release: %q is not kept; `pitr backups` tells which are", backup)}
				}
				return r.DeleteKeep(cmd.Context(), backup)
			}
			err = r.PutKeep(cmd.Context(), backup, repo.Keep{Since: time.Now().UTC().Truncate(time.Second), Reason: reason})
			if errors.Is(err, repo.ErrNotExist) {
				return &usageError{fmt.Errorf("keep: there is no backup %q; `pitr backups` lists them", backup)}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&release, "release", false, "leave the backup to the retention again")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for those who wonder later")
	return cmd
}
