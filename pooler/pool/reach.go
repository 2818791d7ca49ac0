package pool

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// unfitError says that none of a database's servers is what target_session_attrs and max_replica_lag ask for. Clients may be told.
type unfitError string

func (e unfitError) Error() string {
	return "no server of the database is fit (target_session_attrs=" + string(e) + ")"
}

// unreached reports whether an error says that a server is not there, or went away during the login, rather than that it does not want us.
func unreached(err error) bool {
	var refused *pgconn.PgError
	var proof proofError
	if err == nil || errors.As(err, &refused) || errors.As(err, &proof) {
		return false
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Op != "remote error" && op.Op != "local error" // these are alerts of TLS
	}
	var name *net.DNSError
	return errors.As(err, &name) || errors.Is(err, context.DeadlineExceeded) || endOfStream(err)
}

// passes reports whether it is only a matter of time until the server lets us in: see ConnectError.busy.
func passes(err error) bool {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return (&ConnectError{Code: refused.Code}).busy()
	}
	var none unfitError
	return errors.As(err, &none) || unreached(err)
}

// reach logs in to the first host that can be had and that suits. Each may take as long as server_connect_timeout says. with may change how.
func (s *Set) reach(ctx context.Context, d dialer, turn uint64, with func(*pgconn.Config)) (*pgconn.PgConn, Address, error) {
	var problem error
	failed := make([]bool, len(d.targets))
	for _, next := range s.hosts.order(d, turn, time.Now()) {
		if failed[next.i] || ctx.Err() != nil {
			continue
		}
		if now := s.hosts.judge(d, time.Now())[next.i]; now != unknown && now > next.least {
			continue
		}
		at := d.targets[next.i].Address
		conn, err := s.reachOne(ctx, d, next, with)
		if err == nil {
			return conn, at, nil
		}
		var none unfitError
		if errors.As(err, &none) {
			continue
		}
		if ctx.Err() == nil && len(d.targets) > 1 {
			err = fmt.Errorf("%s: %w", at, err)
		}
		failed[next.i] = true
		if !passes(err) {
			return nil, at, err // whoever is not let in by one will not be by the others
		}
		if problem == nil {
			problem = err
		}
	}
	switch {
	case problem == nil && ctx.Err() != nil:
		problem = ctx.Err()
	case problem == nil:
		problem = unfitError(d.rule.attrs)
	}
	return nil, Address{}, problem
}

// reachOne logs in to one host and asks it what it is, where that matters.
func (s *Set) reachOne(ctx context.Context, d dialer, next try, with func(*pgconn.Config)) (*pgconn.PgConn, error) {
	limited, done := context.WithTimeout(ctx, s.now().ServerConnectTimeout.D())
	defer done()
	t := d.targets[next.i]
	cfg := d.prepare(t)
	if with != nil {
		with(cfg)
	}
	conn, err := pgconn.ConnectConfig(limited, cfg)
	if err == nil && d.rule.asks() {
		err = s.inspect(limited, conn, t.Address)
	} else if err == nil {
		s.hosts.met(t.Address)
	}
	if err != nil {
		if conn != nil {
			discard(conn)
		}
		var refused *pgconn.PgError
		if full := errors.As(err, &refused) && refused.Code == "53300"; ctx.Err() == nil && passes(err) && !full {
			s.hosts.failed(t.Address, time.Now().Add(s.now().ServerLoginRetry.D()))
		}
		return nil, err
	}
	if !s.hosts.takes(d, next) {
		discard(conn)
		return nil, unfitError(d.rule.attrs)
	}
	return conn, nil
}

// inspection asks a server what it is. The timeline is in the name of a file of WAL (XLogFileName in src/include/access/xlog_internal.h); a standby has replayed everything
// where it received nothing more, and otherwise is behind by the age of the last transaction that it has replayed.
const inspection = `select pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('default_transaction_read_only') operator(pg_catalog.=) 'on',
case when pg_catalog.pg_is_in_recovery() then '0' else pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) end,
(select system_identifier from pg_catalog.pg_control_system())::pg_catalog.text,
case when pg_catalog.pg_is_in_recovery() and pg_catalog.pg_last_wal_receive_lsn() is distinct from pg_catalog.pg_last_wal_replay_lsn()
then pg_catalog.ceil(extract(epoch from pg_catalog.clock_timestamp() operator(pg_catalog.-) coalesce(pg_catalog.pg_last_xact_replay_timestamp(), pg_catalog.pg_postmaster_start_time())) operator(pg_catalog.*) 1000)::pg_catalog.int8
else 0 end`

// inspect asks a server what it is, and notes it.
func (s *Set) inspect(ctx context.Context, conn *pgconn.PgConn, at Address) error {
	results, err := conn.Exec(ctx, inspection).ReadAll()
	if err != nil {
		return fmt.Errorf("ask what the server is: %w", err)
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 5 {
		return errors.New("ask what the server is: it gives no answer")
	}
	row := results[0].Rows[0]
	timeline, err := strconv.ParseUint(string(row[2]), 16, 32)
	lag, err2 := strconv.ParseInt(string(row[4]), 10, 64)
	if err := errors.Join(err, err2); err != nil {
		return fmt.Errorf("ask what the server is: %w", err)
	}
	v := view{standby: string(row[0]) == "t", readOnly: string(row[1]) == "t", timeline: timeline, system: string(row[3]), lag: time.Duration(lag) * time.Millisecond}
	if s.hosts.saw(at, v, time.Now()) {
		s.log.Info("server has another role", "server", at.String(), "standby", v.standby, "read_only", v.readOnly, "timeline", v.timeline)
	}
	return nil
}
