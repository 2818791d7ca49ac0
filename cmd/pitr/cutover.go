package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"pitr/config"
	"pitr/pooler/admin"
)

// cutoverFlags are those of `pitr cutover`.
type cutoverFlags struct {
	database string
	to       string
	console  string
	wait     time.Duration
}

func cutoverCommand(app *app) *cobra.Command {
	var f cutoverFlags
	cmd := &cobra.Command{
		Use:   "cutover",
		Short: "Let the pooler's clients go on with another server, without losing their connections",
		Long: `Looks whether the other server is open for writing; then, over the pooler's console: PAUSE, so that each transaction goes on to its end and further ones
wait; MOVE, so that the database's connections go to the other server; RESUME. Clients keep their connections. When something fails the database goes on where it was.

The pooler forgets the move when it ends: put the new address into its configuration, too. The same command with the old address takes a cutover back; what was written
meanwhile stays where it was written.

` + exitHelp,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, _, err := app.load()
			if err != nil {
				return err
			}
			return f.run(cmd.Context(), cmd.OutOrStdout(), cfg)
		},
	}
	cmd.Flags().StringVar(&f.database, "database", "", "database as clients call it")
	cmd.Flags().StringVar(&f.to, "to", "", "host:port of the server that clients go on with")
	cmd.Flags().StringVar(&f.console, "console", "", "how to reach the pooler, a connection string; default: pooler.listen, as the first of pooler.admin_users")
	cmd.Flags().DurationVar(&f.wait, "wait", 30*time.Second, "how long transactions may take to come to their end; then everything goes on as it was")
	return cmd
}

// check reads the flags.
func (f *cutoverFlags) check() (host string, port int, err error) {
	if f.database == "" || f.to == "" {
		return "", 0, &usageError{errors.New("cutover: --database and --to are needed: which database, and where to?")}
	}
	host, text, err := net.SplitHostPort(f.to)
	if err == nil {
		port, err = strconv.Atoi(text)
	}
	if err != nil || host == "" || port < 1 || port > 65535 {
		return "", 0, &usageError{fmt.Errorf("cutover --to %q: it is no host:port", f.to)}
	}
	if f.wait <= 0 {
		return "", 0, &usageError{fmt.Errorf("cutover --wait %s: it must be more than nothing", f.wait)}
	}
	return host, port, nil
}

func (f *cutoverFlags) run(ctx context.Context, out io.Writer, cfg *config.Config) error {
	host, port, err := f.check()
	if err != nil {
		return err
	}
	line := func(name, format string, args ...any) {
		fmt.Fprintf(out, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	version, err := openForWriting(ctx, cfg, f.database, host, port)
	if err != nil {
		return fmt.Errorf("cutover: nothing was changed: %w", err)
	}
	line("checked", "%s is PostgreSQL %s and open for writing", f.to, version)
	console, err := f.connect(ctx, cfg)
	if err != nil {
		return fmt.Errorf("cutover: nothing was changed: the pooler's console: %w", err)
	}
	defer console.Close(context.WithoutCancel(ctx))
	begin := time.Now()
	if err := f.pause(ctx, console); err != nil {
		return fmt.Errorf("cutover: nothing was changed, and everything goes on: PAUSE %s: %w", f.database, err)
	}
	line("paused", "no transaction is under way, after %s", durationText(time.Since(begin)))
	// From here on it goes to an end, whatever happens to us.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.wait)
	defer cancel()
	from, err := tell(ctx, console, fmt.Sprintf("MOVE %s TO %s %d", quoteWord(f.database, '"'), quoteWord(host, '\''), port))
	if err == nil {
		line("moved", "from %s to %s", from, f.to)
	}
	if _, resumeErr := tell(ctx, console, "RESUME "+quoteWord(f.database, '"')); resumeErr != nil {
		return fmt.Errorf("cutover: clients wait: say RESUME %s on the console: %w", f.database, errors.Join(err, resumeErr))
	}
	if err != nil {
		return fmt.Errorf("cutover: the database was paused for %s and goes on where it was: %w", durationText(time.Since(begin)), err)
	}
	line("resumed", "clients have waited for %s at most", durationText(time.Since(begin)))
	line("to do", "write host: %s, port: %d below pooler.databases.%s, or the pooler goes to %s when it is started again; let the archiver's postgres.dsn follow", host, port, f.database, from)
	line("back", "pitr cutover --database %s --to %s", f.database, from)
	return nil
}

// pause waits no longer than was said; the console gives a pause up when we leave.
func (f *cutoverFlags) pause(ctx context.Context, console *pgconn.PgConn) error {
	ctx, cancel := context.WithTimeout(ctx, f.wait)
	defer cancel()
	_, err := tell(ctx, console, "PAUSE "+quoteWord(f.database, '"'))
	if ctx.Err() != nil {
		return fmt.Errorf("transactions did not come to their end within %s; in pool_mode session clients must leave", f.wait)
	}
	return err
}

// openForWriting looks whether a server takes writes.
func openForWriting(ctx context.Context, cfg *config.Config, database, host string, port int) (version string, err error) {
	dsn, err := pgconn.ParseConfig(cfg.Postgres.DSN.Reveal())
	if err != nil {
		return "", fmt.Errorf("postgres.dsn: %w", err)
	}
	for _, fallback := range dsn.Fallbacks {
		fallback.Host, fallback.Port = host, uint16(port)
	}
	dsn.Host, dsn.Port, dsn.ValidateConnect = host, uint16(port), nil
	if name := cfg.Pooler.Databases[database].DBName; name != "" {
		dsn.Database = name
	} else if database != "*" {
		dsn.Database = database
	}
	conn, err := pgconn.ConnectConfig(ctx, dsn)
	if err != nil {
		return "", fmt.Errorf("the other server: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	answer, err := tell(ctx, conn, "SELECT pg_catalog.pg_is_in_recovery() OR pg_catalog.current_setting('transaction_read_only')::bool")
	if err != nil {
		return "", fmt.Errorf("the other server: %w", err)
	}
	if answer != "f" {
		return "", fmt.Errorf("%s recovers, or takes no writes: promote it first", net.JoinHostPort(host, strconv.Itoa(port)))
	}
	return conn.ParameterStatus("server_version"), nil
}

func (f *cutoverFlags) connect(ctx context.Context, cfg *config.Config) (*pgconn.PgConn, error) {
	dsn := f.console
	if dsn == "" {
		if len(cfg.Pooler.AdminUsers) == 0 {
			return nil, errors.New("pooler.admin_users names nobody who may use it")
		}
		user := cfg.Pooler.AdminUsers[0]
		host, port, err := net.SplitHostPort(cfg.Pooler.Listen[0])
		if err != nil {
			return nil, err
		}
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			host = "127.0.0.1"
		}
		parsed, err := pgconn.ParseConfig(fmt.Sprintf("host=%s port=%s", host, port))
		if err != nil {
			return nil, err
		}
		parsed.User, parsed.Database = user, admin.Database
		if secret := cfg.Pooler.Users[user].Password.Reveal(); !strings.HasPrefix(secret, "SCRAM-SHA-256$") && secret != "" {
			parsed.Password = secret
		}
		return pgconn.ConnectConfig(ctx, parsed)
	}
	parsed, err := pgconn.ParseConfig(dsn)
	if err != nil {
		return nil, &usageError{fmt.Errorf("--console: %w", err)}
	}
	parsed.Database = admin.Database
	return pgconn.ConnectConfig(ctx, parsed)
}

// tell sends one command and returns the first value of its answer.
func tell(ctx context.Context, conn *pgconn.PgConn, command string) (string, error) {
	results, err := conn.Exec(ctx, command).ReadAll()
	if err != nil {
		return "", err
	}
	for _, result := range results {
		if len(result.Rows) > 0 && len(result.Rows[0]) > 0 {
			return string(result.Rows[0][0]), nil
		}
	}
	return "", nil
}

func quoteWord(text string, quote rune) string {
	return string(quote) + strings.ReplaceAll(text, string(quote), string(quote)+string(quote)) + string(quote)
}
