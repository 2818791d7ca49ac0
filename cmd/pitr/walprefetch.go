package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"pitr/config"
	"pitr/internal/pg"
	"pitr/restore"
)

// segmentNameLength is XLOG_FNAME_LEN of src/include/access/xlog_internal.h.
const segmentNameLength = 24

// takeAhead takes a segment that was fetched ahead. Whatever is in its way, the archive is asked next.
func takeAhead(name, destination string) bool {
	if len(name) != segmentNameLength {
		return false
	}
	spool, ok := restore.SpoolOf(destination)
	return ok && spool.Take(name, destination)
}

// takeAtOnce does so before anything else of the program is set up: while Postgres waits, each millisecond counts. It looks for the
// arguments that fetchCommand writes.
func takeAtOnce(args []string) bool {
	at := slices.Index(args, "fetch")
	return at > 0 && args[at-1] == "wal" && len(args) > at+2 && takeAhead(args[at+1], args[at+2])
}

// fetchAhead has the segments behind one brought by a process that goes on by itself, until the recovery ends. It is a help only: recovery goes on
// without it, so that nothing of it is an error.
func fetchAhead(cfg *config.Config, name, destination, until string) {
	spool, ok := restore.SpoolOf(destination)
	if !ok || len(name) != segmentNameLength || cfg.Restore.PrefetchMax == 0 || spool.Want(name) != nil || spool.Busy() {
		return
	}
	self, err := os.Executable()
	if err != nil {
		return
	}
	args := []string{"-c", cfg.Path, "wal", "prefetch", "--data", spool.Data()}
	if until != "" {
		args = append(args, "--until", until)
	}
	cmd := exec.Command(self, args...)
	// A session of its own: Postgres ends the process group of its restore_command with itself. It must not hold Postgres's pipes either.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Dir = "/"
	if err := cmd.Start(); err == nil {
		_ = cmd.Process.Release() // it is nobody's child when we have ended
	}
}

func walPrefetchCommand(app *app) *cobra.Command {
	var data, until string
	cmd := &cobra.Command{
		Use:    "prefetch --data DIR",
		Short:  "Bring WAL ahead of a recovery, until it ends; `wal fetch` starts it",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opt := restore.PrefetchOptions{Data: data}
			var err error
			if until != "" {
				if opt.Until, err = pg.ParseLSN(until); err != nil {
					return &usageError{fmt.Errorf("wal prefetch --until: %w", err)}
				}
			}
			cfg, log, r, err := app.open()
			if err != nil {
				return err
			}
			opt.Max, opt.Parallel, opt.Log = int64(cfg.Restore.PrefetchMax), cfg.Restore.Parallel, log
			return restore.Prefetch(cmd.Context(), r, opt)
		},
	}
	cmd.Flags().StringVar(&data, "data", "", "the data `DIRECTORY` that is being recovered")
	cmd.Flags().StringVar(&until, "until", "", "the recovery stops at this `LSN`")
	return cmd
}
