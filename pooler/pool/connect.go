package pool

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pitr/config"
	"pitr/internal/pgwire"
	"pitr/pooler/session"
)

// ConnectError says why no server could be had. Code is the SQLSTATE that Postgres gave, or 08001 when it was not reached.
type ConnectError struct {
	Code       string
	Cause      error
	NoPassword bool // we had none to give
}

func (e *ConnectError) Error() string { return "connect to the server: " + e.Cause.Error() }
func (e *ConnectError) Unwrap() error { return e.Cause }

// Reason is what may be told to a client: what Postgres said, but no addresses of ours.
func (e *ConnectError) Reason() string {
	var pgErr *pgconn.PgError
	if errors.As(e.Cause, &pgErr) && e.NoPassword && pgErr.Code == "28P01" {
		// A SCRAM secret proves who the client is, but it cannot be used to log in elsewhere before a client has shown its key.
		return "server login failed: the pooler knows no password or key of this user; set pooler.databases.*.password or pooler.users.*.password, or let clients log in by SCRAM with the server's own secret"
	}
	if pgErr != nil {
		return "server login failed: " + pgErr.Message
	}
	var proof proofError
	if errors.As(e.Cause, &proof) {
		return "server login failed: " + proof.Error()
	}
	return "server is not reachable"
}

// notReached is ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION in src/backend/utils/errcodes.txt.
const notReached = "08001"

func connectError(err error) *ConnectError {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		if pgErr.Code == "" { // no Postgres leaves it out, but a client has to get one
			pgErr.Code = notReached
		}
		return &ConnectError{Code: pgErr.Code, Cause: err}
	}
	return &ConnectError{Code: notReached, Cause: err}
}

// dialer knows where and as whom to log in.
type dialer struct {
	config      *pgconn.Config
	credentials Credentials // where config has no password
	bound       func(*x509.Certificate) []byte
}

// newDialer follows the rules in config/settings.go: what the database's entry leaves open comes from the DSN.
func (s *Set) newDialer(db config.Database, key Key, known Credentials) (dialer, error) {
	return s.dialerOf(s.now(), db, key, known)
}

// dialerOf is newDialer with other settings.
func (s *Set) dialerOf(settings *config.Pooler, db config.Database, key Key, known Credentials) (dialer, error) {
	cfg, err := parseDSN(s.dsn)
	if err != nil {
		return dialer{}, err
	}
	if db.Host != "" || db.Port != 0 {
		moveTo(cfg, db.Host, uint16(db.Port))
	}
	if err := encryptionOf(*settings).apply(cfg); err != nil {
		return dialer{}, err
	}
	switch {
	case db.Password != "":
		cfg.Password = db.Password.Reveal()
	case known.Password != "":
		cfg.Password = known.Password
	case key.User != cfg.User:
		cfg.Password = ""
	}
	cfg.User, cfg.Database = key.User, key.Database
	if db.DBName != "" {
		cfg.Database = db.DBName
	}
	cfg.MaxProtocolMessageBodyLen = messageLenMax
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "pitr"
	}
	if s.driver.Dial != nil {
		cfg.DialFunc = s.driver.Dial
	}
	return dialer{config: cfg, credentials: known, bound: s.driver.Binding}, nil
}

// prepare returns how the next connection is made.
func (d dialer) prepare() *pgconn.Config {
	cfg := d.config.Copy()
	if cfg.Password == "" {
		cfg.Password = d.credentials.Password
	}
	if cfg.Password == "" && !d.credentials.empty() {
		mustBind := cfg.ChannelBinding == "require" // pgconn would not see that it was done
		if mustBind {
			cfg.ChannelBinding = "prefer"
		}
		cfg.AfterNetConnect = func(_ context.Context, _ *pgconn.Config, conn net.Conn) (net.Conn, error) {
			return &prover{Conn: conn, credentials: d.credentials, bound: d.bound, mustBind: mustBind}, nil
		}
	}
	return cfg
}

// knowsNothing reports whether there is nothing to answer a question for a password with.
func (d dialer) knowsNothing() bool {
	return d.config != nil && d.config.Password == "" && d.credentials.empty()
}

// messageLenMax bounds what a server may send at once during a login, to auth_query and to a Listener.
const messageLenMax = 1 << 20

// moveTo replaces the hosts of the DSN by one. Attempts that differ only in TLS (sslmode=prefer) are kept.
func moveTo(cfg *pgconn.Config, host string, port uint16) {
	first := cfg.Host
	if host == "" {
		host = first
	}
	if port == 0 {
		port = cfg.Port
	}
	cfg.Fallbacks = slices.DeleteFunc(cfg.Fallbacks, func(f *pgconn.FallbackConfig) bool { return f.Host != first || f.Port != cfg.Port })
	for _, fallback := range cfg.Fallbacks {
		fallback.Host, fallback.Port = host, port
		if fallback.TLSConfig != nil && fallback.TLSConfig.ServerName == first {
			fallback.TLSConfig = fallback.TLSConfig.Clone()
			fallback.TLSConfig.ServerName = host
		}
	}
	if cfg.TLSConfig != nil && cfg.TLSConfig.ServerName == first {
		cfg.TLSConfig = cfg.TLSConfig.Clone()
		cfg.TLSConfig.ServerName = host
	}
	cfg.Host, cfg.Port = host, port
}

func (d dialer) connect(ctx context.Context, timeout time.Duration) (*pgconn.PgConn, *pgconn.HijackedConn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, d.prepare())
	if err != nil {
		return nil, nil, err
	}
	// If a write of the login has taken long, pgconn has begun to read in the background, and would get the next answer instead of us.
	if err := conn.SyncConn(ctx); err != nil {
		return nil, nil, errors.Join(err, conn.Close(ctx))
	}
	hijacked, err := conn.Hijack()
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close(ctx))
	}
	if hijacked.Frontend.ReadBufferLen() != 0 || hijacked.TxStatus != pgwire.Idle {
		return nil, nil, errors.Join(errors.New("the server sent more than a login's answer"), hijacked.Conn.Close())
	}
	if proven, wrapped := hijacked.Conn.(*prover); wrapped {
		if hijacked.Conn = proven.Conn; len(proven.in) > 0 || !proven.over {
			return nil, nil, errors.Join(errors.New("the server's login did not come to its end"), hijacked.Conn.Close())
		}
	}
	if err := hijacked.Conn.SetDeadline(time.Time{}); err != nil {
		return nil, nil, errors.Join(err, hijacked.Conn.Close())
	}
	return conn, hijacked, nil
}

// backoffMin is the pause after the first failed login; it doubles up to server_login_retry, or to busyBackoffMax where it is only a matter of time.
const (
	backoffMin     = 100 * time.Millisecond
	busyBackoffMax = time.Second
)

// busy reports whether Postgres has said that it will let us in later: ERRCODE_CANNOT_CONNECT_NOW, while it starts, stops or recovers, or
// ERRCODE_TOO_MANY_CONNECTIONS (src/backend/utils/errcodes.txt). Clients then wait on.
func (e *ConnectError) busy() bool { return e != nil && (e.Code == "57P03" || e.Code == "53300") }

// address is what connects are counted by: see Set.pace.
func (d dialer) address() string {
	if d.config == nil {
		return ""
	}
	return net.JoinHostPort(d.config.Host, strconv.Itoa(int(d.config.Port)))
}

func (p *Pool) connectOne(dial dialer, moves int) {
	begin := time.Now()
	origin, hijacked, err := dial.connect(p.set.ctx, p.set.now().ServerConnectTimeout.D())
	var server *Server
	if err == nil {
		server = &Server{State: session.NewServer(hijacked.ParameterStatuses), pool: p, origin: origin, born: time.Now()}
		p.connects.observe(1, server.born.Sub(begin))
		server.wire, err = p.set.driver.Attach(server, hijacked.Conn)
	}
	p.mu.Lock()
	p.connecting--
	if err != nil {
		p.perDatabase.give()
		p.perUser.give()
		p.freed()
		p.connectFailed(err, begin)
		p.mu.Unlock()
		return
	}
	if span := p.limits.lifespan(); span > 0 {
		server.dies = server.born.Add(span)
	}
	if p.moves != moves {
		server.leaves = becauseMoved
	}
	p.servers[server] = struct{}{} // from now on it may be lost
	p.counters.Connects++
	p.mu.Unlock()
	if err := server.wire.Start(); err != nil {
		server.Fail(err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures, p.retryAt = 0, time.Time{}
	if reported := server.State.Reported(); !slices.Equal(reported, p.baseline) {
		clear(p.welcomes) // the server's own settings are not what they were
		p.baseline = reported
	}
	p.give(server)
}

// connectFailed notes a failure. Clients wait on only if there are servers that may become free. The caller holds mu.
func (p *Pool) connectFailed(err error, begin time.Time) {
	p.counters.ConnectFailures++
	if p.closed {
		return
	}
	p.lastErr = connectError(err)
	p.lastErr.NoPassword = p.dial.knowsNothing()
	// Nothing is launched before retryAt: what fails until then was on its way together with what has failed already, and says no more.
	if now := time.Now(); !now.Before(p.retryAt) {
		pause := min(backoffMin<<min(p.failures, 20), p.set.now().ServerLoginRetry.D())
		if p.lastErr.busy() {
			pause = min(pause, busyBackoffMax)
		}
		p.failures++
		p.retryAt = now.Add(pause)
		if p.failures&(p.failures-1) == 0 {
			because := "server login failed" // PgBouncer's words (src/server.c)
			if p.lastErr.Code == "08001" {
				because = "connect failed"
			}
			p.log.Warn(fmt.Sprintf("closing because: %s (age=%ds)", because, int(now.Sub(begin).Seconds())), "database", p.key.Database, "user", p.key.User, "attempt", p.failures, "retry_in", pause, "error", err)
		}
	}
	if len(p.servers)+p.connecting > 0 || p.lastErr.busy() {
		return
	}
	for now := time.Now(); p.waiters.n > 0; {
		p.settle(p.waiters.first, now, nil, p.lastErr)
	}
}

func parseDSN(dsn config.DSN) (*pgconn.Config, error) {
	cfg, err := pgconn.ParseConfig(dsn.Reveal())
	if err != nil {
		return nil, fmt.Errorf("postgres.dsn: %w", err)
	}
	return cfg, nil
}

// CheckDSN reports whether a DSN can be read.
func CheckDSN(dsn config.DSN) error {
	_, err := parseDSN(dsn)
	return err
}
