package restore

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"pitr/internal/postmaster"
)

// SingleUser runs statements, one after the other, in the single-user mode of a server that is not running: as the bootstrap superuser, whoever
// that is, and past pg_hba.conf. It returns what they have printed; the first error ends it.
func SingleUser(ctx context.Context, install *postmaster.Install, dir, database string, statements ...string) (string, error) {
	var input strings.Builder
	for _, statement := range statements {
		// A line feed ends a statement: InteractiveBackend of src/backend/tcop/postgres.c.
		input.WriteString(strings.ReplaceAll(statement, "\n", " ") + "\n")
	}
	cmd := install.Command(ctx, "postgres", "--single", "-D", dir, "-c", "exit_on_error=on", "-c", "lc_messages=C", "-c", "log_destination=stderr", "-c", "archive_mode=off",
		"-c", "log_min_messages=error", database)
	cmd.Stdin = strings.NewReader(input.String())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("run statements in single-user mode: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// DropDatabases drops databases of a cluster that is not running and whose recovery has ended.
func DropDatabases(ctx context.Context, install *postmaster.Install, dir string, names []string) error {
	var statements []string
	for _, name := range names {
		// IF EXISTS, since the origin may have dropped it between the backup and the target.
		statements = append(statements, fmt.Sprintf("DROP DATABASE IF EXISTS %s", quoteIdentifier(name)))
	}
	if _, err := SingleUser(ctx, install, dir, "template1", statements...); err != nil {
		return fmt.Errorf("drop the databases that were left out: %w", err)
	}
	return nil
}

func quoteIdentifier(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }
