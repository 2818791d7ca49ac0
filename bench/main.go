// Command bench compares pitr's pooler with its peers, on this machine, for anyone who wants to see for themselves:
//
//	go run ./bench pool --only simple,prepared --rounds 9
//
// It owns the workloads, the contestants' configurations and the arithmetic. It drives binaries (pitr, PgBouncer, Odyssey,
// Postgres, pgbench) and knows nothing of pitr's packages, so it can also run a pitr of another day. What it starts it
// ends, and it never touches a Postgres or a pooler that it did not start.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := rootCommand().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: error: %v\n", err)
		os.Exit(1)
	}
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "bench",
		Short:         "Compare pitr with its peers, and with itself",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(poolCommand(), archiveCommand(), walCommand(), backupCommand(), outageCommand(), tableCommand(), chartCommand())
	return root
}
