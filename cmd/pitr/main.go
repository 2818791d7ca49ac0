// Command pitr is a Postgres connection pooler, a WAL archiver and a point-in-time restore in one binary. This package parses, assembles,
// runs and prints; what is done is done elsewhere. Results go to stdout, everything else to stderr; each command has a file.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	_ "time/tzdata" // restore.time_zone must work in a container that has no zone files

	"github.com/spf13/cobra"

	"pitr/config"
	"pitr/internal/repo"
	"pitr/internal/store/copies"
	"pitr/restore"
	"pitr/restore/journal"
)

// version is set by the linker.
var version = "dev"

// Exit codes, as the help lists them. `wal fetch` has its own: see wal.go.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitDefect      = 3
	exitUnreachable = 4
)

const exitHelp = `Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 verification found a defect, 4 the target cannot be reached.`

// usageError marks what the user has typed wrong.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// defectError says that a verification found something wrong; what it found has been printed.
type defectError struct{ text string }

func (e *defectError) Error() string { return e.text }

// exitError carries the exit code of a program that we have run.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

// errInterrupted is all that is said after Ctrl-C or SIGTERM.
var errInterrupted = errors.New("interrupted")

func main() {
	if slices.Contains(os.Args, "fetch") {
		// A panic would exit with 2, which Postgres takes for the end of the archive; with this it ends by a signal, which it does not.
		debug.SetTraceback("crash")
	}
	if takeAtOnce(os.Args[1:]) {
		os.Exit(exitOK)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	root := newRoot()
	if calledPgBouncer(os.Args[0]) {
		root, ctx = newPgBouncerRoot(), context.Background() // its signals mean something else
	}
	cmd, err := root.ExecuteContextC(ctx)
	var exit *exitError
	if err != nil && ctx.Err() != nil && !errors.As(err, &exit) {
		err = errInterrupted // what failed, failed because of it
	}
	stop()
	code := report(err)
	if code != exitOK && !errors.As(err, &exit) && (isFetch(cmd.CommandPath()) || looksLikeFetch(os.Args[1:])) {
		code = exitFetchFailed // wrong usage too: see wal.go
	}
	os.Exit(code)
}

// isFetch also takes a command below `pitr wal` that does not exist for a fetch.
func isFetch(path string) bool {
	return strings.HasPrefix(path, "pitr wal") && path != "pitr wal push"
}

// looksLikeFetch recognises a restore_command even when it is misspelt: with "wall fetch" Postgres must not open the database either.
func looksLikeFetch(args []string) bool {
	at := slices.Index(args, "fetch")
	return at >= 0 && len(args) == at+3
}

// report prints an error once, with a hint where the operator can act, and returns the exit code.
func report(err error) int {
	var exit *exitError
	var usage *usageError
	var problems *config.Error
	var defect *defectError
	var unreachable *restore.UnreachableError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		if text := err.Error(); text != exit.Error() {
			printError(err)
		}
		return exit.code
	case errors.As(err, &usage), errors.As(err, &problems), errors.Is(err, config.ErrNotFound):
		printError(err)
		return exitUsage
	case errors.As(err, &defect):
		printError(err)
		return exitDefect
	case errors.As(err, &unreachable):
		printError(err)
		return exitUnreachable
	default:
		printError(err)
		return exitFailed
	}
}

// hints are what an operator can do about the errors that are known by identity.
var hints = []struct {
	is   error
	hint string
}{
	{config.ErrNotFound, "docs/CONFIG.md lists every setting; a first file needs postgres.dsn and archive.store"},
	{repo.ErrForeign, "is archive.store the bucket of another cluster? give this one its own `cluster` name or prefix"},
	{repo.ErrConflict, "is the same repository used by two clusters?"},
	{copies.ErrQuorum, "archive.quorum says how many stores must hold an object; `pitr config check` tells which answer"},
	{repo.ErrNoIdentity, "archive.encryption.identity_file names the file with the identity (AGE-SECRET-KEY-1…) of one of the recipients"},
	{repo.ErrWrongIdentity, "objects are encrypted for the recipients of the time; `pitr encryption rewrap` makes older ones readable for new recipients"},
	{repo.ErrIncomparable, "all who write to a repository need the same archive.encryption.fingerprint_key"},
	{errMayNotDelete, "`expiry_profile=` in archive.store names a profile that may; docs/OPERATIONS.md, \"Object stores\""},
	{repo.ErrDamaged, "`pitr verify --level checksum` lists every damaged object; an older backup may be whole"},
	{restore.ErrNoZone, "a time without a zone is a guess, and a restore must not be one"},
	{journal.ErrNoRelation, "names come from the catalogs that the archiver stores; `pitr log` without --rel shows what it knows"},
	{restore.ErrNotEmpty, "pitr never writes into a directory that holds something"},
	{restore.ErrInUse, "`pg_ctl stop -D DIR` stops it"},
}

func printError(err error) {
	fmt.Fprintf(os.Stderr, "pitr: error: %s\n", err)
	for _, h := range hints {
		if errors.Is(err, h.is) {
			fmt.Fprintf(os.Stderr, "pitr: hint: %s\n", h.hint)
			return
		}
	}
	var problems *config.Error
	if errors.As(err, &problems) {
		fmt.Fprintln(os.Stderr, "pitr: hint: docs/CONFIG.md lists every setting; `pitr config check` checks a file")
	}
}

func newRoot() *cobra.Command {
	app := &app{}
	root := &cobra.Command{
		Use:                "pitr",
		Short:              "Postgres connection pooler, WAL archiver and point-in-time restore",
		Long:               "pitr stands between an application, its Postgres and its bucket.\n\n" + exitHelp,
		SilenceUsage:       true,
		SilenceErrors:      true,
		Args:               cobra.NoArgs,
		RunE:               func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPostRunE: func(cmd *cobra.Command, _ []string) error { return app.settleCopies(cmd.Context(), settle) },
	}
	root.PersistentFlags().StringVarP(&app.configPath, "config", "c", "", "configuration `FILE` (else $PITR_CONFIG, ./pitr.yaml, /etc/pitr/pitr.yaml)")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.AddCommand(poolerCommand(app), archiverCommand(app), backupCommand(app), backupsCommand(app), expireCommand(app), keepCommand(app), cutoverCommand(app), restoreCommand(app), logCommand(app), verifyCommand(app),
		walCommand(app), encryptionCommand(app), configCommand(app), runCommand(app), demoCommand(), versionCommand())
	wrapArgErrors(root)
	return root
}

// wrapArgErrors makes wrong arguments usage errors, for every command.
func wrapArgErrors(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return &usageError{fmt.Errorf("%s: %s", cmd.CommandPath(), strings.TrimSpace(err.Error()))}
			}
			return nil
		}
	}
	for _, child := range cmd.Commands() {
		wrapArgErrors(child)
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, Run: func(cmd *cobra.Command, _ []string) {
		fmt.Fprintln(cmd.OutOrStdout(), "pitr", version)
	}}
}
