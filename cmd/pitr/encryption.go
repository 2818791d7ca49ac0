package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"pitr/internal/repo"
)

func encryptionCommand(app *app) *cobra.Command {
	cmd := &cobra.Command{Use: "encryption", Short: "Make and change the keys of an encrypted repository", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(keygenCommand(), rewrapCommand(app))
	return cmd
}

func keygenCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "keygen",
		Short: "Make an identity, and print it with its recipient",
		Long: "Prints an identity file as age-keygen does. Keep it where no archiver can reach it, and a copy elsewhere: without it nobody can\n" +
			"read the archive. The recipient belongs into archive.encryption.recipients.",
		Example: "  pitr encryption keygen > identity.txt",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			identity, recipient, err := repo.NewIdentity()
			if err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, "Public key: %s\n", recipient)
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "# created: %s\n# public key: %s\n%s\n", time.Now().Format(time.RFC3339), recipient, identity)
			return err
		},
	}
}

func rewrapCommand(app *app) *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "rewrap",
		Short: "Make what is there already readable for the present recipients",
		Long: `Opens every data key of the repository with archive.encryption.identity_file, wraps it for archive.encryption.recipients, and removes
what it was wrapped in before. Objects stay as they are: a data key is a few hundred bytes, and there is one for each day of a writer.

Who has kept a copy of an old wrapping, and its identity, can still open what was written until now.

` + exitHelp,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return rewrap(cmd, app, dryRun) },
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print what would be done and stop")
	return cmd
}

func rewrap(cmd *cobra.Command, app *app, dryRun bool) error {
	cfg, _, r, err := app.open()
	if err != nil {
		return err
	}
	if !r.Encrypts() {
		return &usageError{errors.New("archive.encryption.recipients is empty: for whom should keys be wrapped?")}
	}
	keys, err := r.WrappedKeys(cmd.Context())
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "%d data keys are to be wrapped for %d recipients\n", len(keys), len(cfg.Archive.Encryption.Recipients))
	if dryRun {
		return printKeys(out, keys)
	}
	done := 0
	var errs []error
	for _, k := range keys {
		if err := r.Rewrap(cmd.Context(), k); err != nil {
			errs = append(errs, err)
			continue
		}
		done++
	}
	fmt.Fprintf(out, "%d data keys were wrapped anew\n", done)
	return errors.Join(errs...)
}

func printKeys(w io.Writer, keys []repo.WrappedKey) error {
	for _, k := range keys {
		if _, err := fmt.Fprintf(w, "%s, wrapped %d times\n", k.ID, len(k.Wraps)); err != nil {
			return err
		}
	}
	return nil
}
