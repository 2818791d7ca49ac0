// Package replication is the client side of Postgres's streaming replication protocol, physical replication only: identify, slots,
// history files, the WAL stream, and BASE_BACKUP. It follows "Streaming Replication Protocol" in the PostgreSQL manual. It owns
// pgconn for the archiver and never looks into the WAL that it carries.
package replication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/internal/pg"
)

// Conn is a connection in replication mode. It is not safe for use by several goroutines.
type Conn struct {
	conn  *pgconn.PgConn
	paced *pacedReader // what it reads through
}

// ConnectOptions says where the server is and how the connection is named in pg_stat_replication.
type ConnectOptions struct {
	DSN             string
	Database        string // empty: that of the DSN
	ApplicationName string
	Replication     bool // a physical walsender; otherwise an ordinary connection for queries
	Only            Host // of several hosts this one, whatever it is; zero: what Role says
	Role            Role
}

// Role says which of several hosts is wanted.
type Role string

// The zero Role is the primary of several hosts, unless the DSN's target_session_attrs says otherwise, and a single host whatever it is.
const (
	AnyRole       Role = ""
	Primary       Role = "primary"
	Standby       Role = "standby"
	PreferStandby Role = "prefer-standby" // the primary when there is no standby
)

// Host is one of those that a DSN names.
type Host struct {
	Name string // or the directory of its socket
	Port uint16
}

// Hosts lists those that a DSN names, in its order.
func Hosts(dsn string) ([]Host, error) {
	cfg, err := pgconn.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	return hostsOf(cfg), nil
}

func hostsOf(cfg *pgconn.Config) []Host {
	hosts := []Host{{cfg.Host, cfg.Port}}
	for _, other := range cfg.Fallbacks { // with sslmode=prefer a host is there twice
		if host := (Host{other.Host, other.Port}); !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// only leaves one host in the configuration.
func only(cfg *pgconn.Config, host Host) {
	var attempts []*pgconn.FallbackConfig
	for _, one := range append([]*pgconn.FallbackConfig{{Host: cfg.Host, Port: cfg.Port, TLSConfig: cfg.TLSConfig}}, cfg.Fallbacks...) {
		if one.Host == host.Name && one.Port == host.Port {
			attempts = append(attempts, one)
		}
	}
	cfg.ValidateConnect = nil
	if len(attempts) > 0 {
		cfg.Host, cfg.Port, cfg.TLSConfig, cfg.Fallbacks = host.Name, host.Port, attempts[0].TLSConfig, attempts[1:]
	}
}

var (
	errStandby = errors.New("it is a standby")
	errPrimary = errors.New("it is the primary")
)

// inRecovery reports whether a server is a standby. Since version 14 it reports that (in_hot_standby); an older one is asked in a way
// that a walsender understands too.
func inRecovery(ctx context.Context, conn *pgconn.PgConn) (bool, error) {
	switch conn.ParameterStatus("in_hot_standby") {
	case "on":
		return true, nil
	case "off":
		return false, nil
	}
	err := pgconn.ValidateConnectTargetSessionAttrsReadWrite(ctx, conn)
	if errors.Is(err, pgconn.ErrReadOnlyConnection) {
		return true, nil
	}
	return false, err
}

// primary refuses a standby.
func primary(ctx context.Context, conn *pgconn.PgConn) error {
	standby, err := inRecovery(ctx, conn)
	if err == nil && standby {
		err = errStandby
	}
	return err
}

// standby refuses a primary.
func standby(ctx context.Context, conn *pgconn.PgConn) error {
	standby, err := inRecovery(ctx, conn)
	if err == nil && !standby {
		err = errPrimary
	}
	return err
}

// InRecovery reports whether the server is a standby.
func (c *Conn) InRecovery(ctx context.Context) (bool, error) { return inRecovery(ctx, c.conn) }

// Connect logs in to the host that Role wants.
func Connect(ctx context.Context, opt ConnectOptions) (*Conn, error) {
	if opt.Role != PreferStandby || opt.Only != (Host{}) {
		return connect(ctx, opt)
	}
	opt.Role = Standby
	conn, err := connect(ctx, opt)
	if err == nil || ctx.Err() != nil {
		return conn, err
	}
	opt.Role = Primary
	conn, primaryErr := connect(ctx, opt)
	if primaryErr != nil {
		return nil, errors.Join(primaryErr, err)
	}
	return conn, nil
}

func connect(ctx context.Context, opt ConnectOptions) (*Conn, error) {
	cfg, err := pgconn.ParseConfig(opt.DSN)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	switch {
	case opt.Only != Host{}:
		only(cfg, opt.Only)
	case opt.Role == Standby:
		cfg.ValidateConnect = standby
	case opt.Role == Primary || len(hostsOf(cfg)) > 1 && cfg.ValidateConnect == nil:
		cfg.ValidateConnect = primary
	}
	if opt.Database != "" {
		cfg.Database = opt.Database
	}
	if opt.Replication {
		cfg.RuntimeParams["replication"] = "true"
	}
	cfg.RuntimeParams["application_name"] = opt.ApplicationName
	var paced *pacedReader // of the host that was tried last, which is the one that we are connected to
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		paced = newPacedReader(r)
		return pgproto3.NewFrontend(paced, w)
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	return &Conn{conn, paced}, nil
}

// syncAttempts bounds how often takeOver asks pgconn to stop reading.
const syncAttempts = 10

// takeOver gives the connection's parts to us. pgconn reads in the background once a write has taken long, and would get the next answer
// instead of us; SyncConn waits for the end of that, with an empty query where it must. A walsender does not understand the query: its
// error is as good an answer.
func (c *Conn) takeOver(ctx context.Context) (*pgconn.HijackedConn, error) {
	for range syncAttempts {
		err := c.conn.SyncConn(ctx)
		var pgErr *pgconn.PgError
		if err == nil {
			return c.conn.Hijack()
		}
		if !errors.As(err, &pgErr) {
			return nil, err
		}
	}
	return nil, errors.New("the connection does not come to rest")
}

// Close ends the connection.
func (c *Conn) Close(ctx context.Context) error { return c.conn.Close(ctx) }

// PID is that of the server process.
func (c *Conn) PID() uint32 { return c.conn.PID() }

// ServerVersion is the reported server_version, such as 15.18 (Debian 15.18-0+deb12u1).
func (c *Conn) ServerVersion() string { return c.conn.ParameterStatus("server_version") }

// Major is the major version of the server, from what it reports.
func (c *Conn) Major() (int, error) {
	digits, _, _ := strings.Cut(c.ServerVersion(), ".")
	for i, char := range digits {
		if char < '0' || char > '9' {
			digits = digits[:i] // 18beta1
			break
		}
	}
	major, err := strconv.Atoi(digits)
	if err != nil {
		return 0, fmt.Errorf("server version %q is not understood", c.ServerVersion())
	}
	return major, nil
}

// Query runs one statement, or one command of the replication protocol, and returns the rows of its last result as text; NULL is "".
func (c *Conn) Query(ctx context.Context, sql string) ([][]string, error) {
	results, err := c.conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", firstWords(sql), err)
	}
	if len(results) == 0 {
		return nil, nil
	}
	var rows [][]string
	for _, row := range results[len(results)-1].Rows {
		fields := make([]string, len(row))
		for i, field := range row {
			fields[i] = string(field)
		}
		rows = append(rows, fields)
	}
	return rows, nil
}

func firstWords(sql string) string {
	if len(sql) > 60 {
		return sql[:60] + "…"
	}
	return sql
}

// row runs a command that answers with one row of at least n columns.
func (c *Conn) row(ctx context.Context, sql string, n int) ([]string, error) {
	rows, err := c.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	if len(rows) != 1 || len(rows[0]) < n {
		return nil, fmt.Errorf("%s: got %d rows, want one of %d columns", sql, len(rows), n)
	}
	return rows[0], nil
}

// System is the answer of IDENTIFY_SYSTEM.
type System struct {
	ID       pg.SystemID
	Timeline pg.Timeline
	Position pg.LSN // flushed so far
}

// IdentifySystem asks who the server is.
func (c *Conn) IdentifySystem(ctx context.Context) (System, error) {
	row, err := c.row(ctx, "IDENTIFY_SYSTEM", 3)
	if err != nil {
		return System{}, err
	}
	id, err1 := pg.ParseSystemID(row[0])
	tli, err2 := strconv.ParseUint(row[1], 10, 32)
	position, err3 := pg.ParseLSN(row[2])
	return System{id, pg.Timeline(tli), position}, errors.Join(err1, err2, err3)
}

// SegmentSize asks for wal_segment_size.
func (c *Conn) SegmentSize(ctx context.Context) (pg.SegmentSize, error) {
	row, err := c.row(ctx, "SHOW wal_segment_size", 1)
	if err != nil {
		return 0, err
	}
	return pg.ParseSegmentSize(row[0])
}

// TimelineHistory fetches the history file of a timeline, byte for byte.
func (c *Conn) TimelineHistory(ctx context.Context, tli pg.Timeline) ([]byte, error) {
	row, err := c.row(ctx, fmt.Sprintf("TIMELINE_HISTORY %d", tli), 2)
	if err != nil {
		return nil, err
	}
	if row[0] != tli.HistoryName() {
		return nil, fmt.Errorf("TIMELINE_HISTORY %d: the server sent %s", tli, row[0])
	}
	return []byte(row[1]), nil
}

// CreateSlot makes a physical slot that reserves WAL at once. One that exists is no error.
func (c *Conn) CreateSlot(ctx context.Context, name string) error {
	_, err := c.Query(ctx, fmt.Sprintf("CREATE_REPLICATION_SLOT %s PHYSICAL RESERVE_WAL", name))
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "42710" { // ERRCODE_DUPLICATE_OBJECT
		return nil
	}
	return err
}

// DropSlot removes a slot, after whoever uses it has gone.
func (c *Conn) DropSlot(ctx context.Context, name string) error {
	_, err := c.Query(ctx, fmt.Sprintf("DROP_REPLICATION_SLOT %s WAIT", name))
	return err
}

// SlotInUse reports whether an error says that another connection streams from the slot: ReplicationSlotAcquire in
// src/backend/replication/slot.c, ERRCODE_OBJECT_IN_USE.
func SlotInUse(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "55006"
}

// WALRemoved reports whether an error says that the server has no longer the WAL that was asked for: WalSndSegmentOpen in
// src/backend/replication/walsender.c, ERRCODE_UNDEFINED_FILE; or that the slot was invalidated.
func WALRemoved(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == "58P01" || pgErr.Code == "55000" && strings.Contains(pgErr.Message, "slot"))
}
