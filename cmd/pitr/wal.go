package main

import (
	"errors"

	"github.com/spf13/cobra"

	"pitr/restore"
)

// Exit codes of `wal fetch`. Postgres reads 1 to 125 as "not there: the archive ends here" and goes on to open the database, so that
// only what is certainly absent may say so (law 6). 255 makes it stop. For `wal push` it is the other way round: its failures stay
// below 126, since Postgres ends its archiver process when a command exits with more than 125 (shell_archive_file in
// src/backend/archive/shell_archive.c, wait_result_is_any_signal in src/common/wait_error.c).
const (
	exitFetchAbsent = 1
	exitFetchFailed = 255
)

func walCommand(app *app) *cobra.Command {
	cmd := &cobra.Command{Use: "wal", Short: "Serve Postgres's restore_command and archive_command", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(walPushCommand(app), &cobra.Command{
		Use:   "fetch FILE DESTINATION",
		Short: "Fetch a WAL segment or history file: restore_command = 'pitr wal fetch %f %p'",
		Long: "Writes the file to the destination, as a whole or not at all.\n\n" +
			"Exit codes: 0 done, 1 certainly not in the archive, 255 any failure, so that Postgres does not take trouble for the end of the archive.",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := fetchWAL(cmd, app, args[0], args[1])
			switch {
			case err == nil:
				return nil
			case errors.Is(err, restore.ErrAbsent):
				return &exitError{exitFetchAbsent}
			default:
				printError(err)
				return &exitError{exitFetchFailed}
			}
		},
	})
	return cmd
}

func fetchWAL(cmd *cobra.Command, app *app, name, destination string) error {
	_, _, r, err := app.open()
	if err != nil {
		return err
	}
	return restore.FetchWAL(cmd.Context(), r, name, destination)
}
