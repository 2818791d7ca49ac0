package main

import (
	"errors"

	"github.com/spf13/cobra"

	"pitr/internal/pg"
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
	cmd.AddCommand(walPushCommand(app), walFetchCommand(app), walPrefetchCommand(app))
	return cmd
}

func walFetchCommand(app *app) *cobra.Command {
	var until string
	cmd := &cobra.Command{
		Use:   "fetch FILE DESTINATION",
		Short: "Fetch a WAL segment or history file: restore_command = 'pitr wal fetch %f %p'",
		Long: "Writes the file to the destination, as a whole or not at all. A hole in the archive is a failure; with --until, which a restore sets,\n" +
			"only before that position, so that Postgres may read ahead of where it is told to stop.\n\n" +
			"Exit codes: 0 done, 1 certainly not in the archive, 255 any failure, so that Postgres does not take trouble for the end of the archive.",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := fetchWAL(cmd, app, args[0], args[1], until)
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
	}
	cmd.Flags().StringVar(&until, "until", "", "the recovery stops at this `LSN`, and needs nothing behind it")
	return cmd
}

func fetchWAL(cmd *cobra.Command, app *app, name, destination, until string) error {
	var opt restore.FetchOptions
	if until != "" {
		lsn, err := pg.ParseLSN(until)
		if err != nil {
			return err
		}
		opt.Until = lsn
	}
	if takeAhead(name, destination) {
		return nil
	}
	cfg, _, r, err := app.open()
	if err != nil {
		return err
	}
	if err := restore.FetchWAL(cmd.Context(), r, name, destination, opt); err != nil {
		return err
	}
	fetchAhead(cfg, name, destination, until)
	return nil
}
