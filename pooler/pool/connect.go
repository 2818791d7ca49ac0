package pool

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"slices"
	"strings"
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
	waits      bool // clients wait until it is over
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
	var none unfitError
	if errors.As(e.Cause, &none) {
		return none.Error()
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
	greeting    string   // a query for each new connection; empty: none
	targets     []target // hosts, in the order in which they are written; never empty
	rule        rule
	credentials Credentials // where configs have no password
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
	d := dialer{greeting: db.ConnectQuery, rule: newRule(settings, db, attrsOf(cfg)), credentials: known, bound: s.driver.Binding}
	cfg.ValidateConnect = nil // that is ours
	configs, err := spread(cfg, db)
	if err != nil {
		return dialer{}, err
	}
	for _, cfg := range configs {
		if err := encryptionOf(*settings).apply(cfg); err != nil {
			return dialer{}, err
		}
		s.fill(cfg, db, key, known)
		d.targets = append(d.targets, target{Address{cfg.Host, int(cfg.Port)}, cfg})
	}
	return d, nil
}

// spread returns one configuration for each host of a database.
func spread(cfg *pgconn.Config, db config.Database) (list []*pgconn.Config, err error) {
	hosts, err := db.Hosts()
	if err != nil {
		return nil, err
	}
	if len(hosts) > 0 && hosts[0].Name != "" {
		for _, to := range hosts {
			one := cfg.Copy()
			moveTo(one, to.Name, to.Port)
			list = append(list, one)
		}
		return list, nil
	}
	for {
		one, rest := cfg.Copy(), cfg.Copy()
		moveTo(one, "", 0)
		if len(hosts) > 0 {
			moveTo(one, "", hosts[0].Port)
		}
		list = append(list, one)
		rest.Fallbacks = slices.DeleteFunc(rest.Fallbacks, func(f *pgconn.FallbackConfig) bool { return f.Host == cfg.Host && f.Port == cfg.Port })
		if len(rest.Fallbacks) == 0 {
			return list, nil
		}
		next := rest.Fallbacks[0]
		rest.Host, rest.Port, rest.TLSConfig, rest.Fallbacks = next.Host, next.Port, next.TLSConfig, rest.Fallbacks[1:]
		cfg = rest
	}
}

// fill completes how a host is logged in to.
func (s *Set) fill(cfg *pgconn.Config, db config.Database, key Key, known Credentials) {
	switch {
	case db.Password != "":
		cfg.Password = db.Password.Reveal()
	case key.User != cfg.User || !known.empty():
		cfg.Password = "" // what is known of the user is in the dialer's credentials, which may change
	}
	cfg.User, cfg.Database = key.User, key.Database
	if db.DBName != "" {
		cfg.Database = db.DBName
	}
	cfg.MaxProtocolMessageBodyLen = messageLenMax
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "pitr"
	}
	for name, value := range map[string]string{"client_encoding": db.ClientEncoding, "datestyle": db.DateStyle, "timezone": db.TimeZone} {
		if value != "" {
			cfg.RuntimeParams[name] = value
		}
	}
	if s.driver.Dial != nil {
		cfg.DialFunc = s.driver.Dial
	}
	cfg.LookupFunc = s.lookup
}

// prepare returns how the next connection to a host is made.
func (d dialer) prepare(t target) *pgconn.Config {
	cfg := t.config.Copy()
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
	return len(d.targets) > 0 && d.targets[0].config.Password == "" && d.credentials.empty()
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
	if path.IsAbs(host) || strings.HasPrefix(host, "@") { // a Unix socket, over which Postgres does not encrypt
		cfg.TLSConfig, cfg.Fallbacks = nil, nil
	}
}

// login is a connection that has logged in, taken from pgconn.
type login struct {
	*pgconn.HijackedConn
	origin *pgconn.PgConn
	at     Address
}

// connect logs in to a host that suits. turn says with which to begin where they take turns.
func (s *Set) connect(ctx context.Context, d dialer, turn uint64) (*login, error) {
	conn, at, err := s.reach(ctx, d, turn, nil)
	if err != nil {
		return nil, err
	}
	ctx, done := context.WithTimeout(ctx, s.now().ServerConnectTimeout.D())
	defer done()
	if d.greeting != "" {
		if _, err := conn.Exec(ctx, d.greeting).ReadAll(); err != nil {
			return nil, errors.Join(fmt.Errorf("connect_query: %w", err), conn.Close(ctx))
		}
	}
	hijacked, err := takeFrom(ctx, conn)
	if err != nil {
		return nil, err
	}
	return &login{hijacked, conn, at}, nil
}

// syncAttempts bounds how often pgconn is asked to stop reading.
const syncAttempts = 10

// takeFrom takes a connection over from pgconn, once its login has wholly ended.
func takeFrom(ctx context.Context, conn *pgconn.PgConn) (*pgconn.HijackedConn, error) {
	// If a write of the login has taken long, pgconn has begun to read in the background, and would get the next answer instead of us. It ends that with an empty query where it must,
	// which a walsender does not understand: its error is as good an answer.
	for attempt := 0; ; attempt++ {
		err := conn.SyncConn(ctx)
		var refused *pgconn.PgError
		if err == nil {
			break
		}
		if !errors.As(err, &refused) || attempt == syncAttempts {
			return nil, errors.Join(err, conn.Close(ctx))
		}
	}
	hijacked, err := conn.Hijack()
	if err != nil {
		return nil, errors.Join(err, conn.Close(ctx))
	}
	if hijacked.Frontend.ReadBufferLen() != 0 || hijacked.TxStatus != pgwire.Idle {
		return nil, errors.Join(errors.New("the server sent more than a login's answer"), hijacked.Conn.Close())
	}
	if proven, wrapped := hijacked.Conn.(*prover); wrapped {
		if hijacked.Conn = proven.Conn; len(proven.in) > 0 || !proven.over {
			return nil, errors.Join(errors.New("the server's login did not come to its end"), hijacked.Conn.Close())
		}
	}
	if err := hijacked.Conn.SetDeadline(time.Time{}); err != nil {
		return nil, errors.Join(err, hijacked.Conn.Close())
	}
	return hijacked, nil
}

// backoffMin is the pause after the first failed login; it doubles up to server_login_retry, or to busyBackoffMax where it is only a matter of time.
const (
	backoffMin     = 100 * time.Millisecond
	busyBackoffMax = time.Second
)

// busy reports whether it is only a matter of time until we are let in. Postgres says so by ERRCODE_CANNOT_CONNECT_NOW, while it starts, stops or recovers,
// ERRCODE_TOO_MANY_CONNECTIONS, and by ERRCODE_ADMIN_SHUTDOWN and ERRCODE_CRASH_SHUTDOWN to who is about to log in (src/backend/utils/errcodes.txt). Clients then wait on. They do, too, for a
// server that cannot be reached but was reached before.
func (e *ConnectError) busy() bool {
	return e != nil && (e.waits || e.Code == "57P03" || e.Code == "53300" || e.Code == "57P01" || e.Code == "57P02")
}

// endOfStream reports whether the other side has closed a connection.
func endOfStream(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// address is what connects are counted by: see Set.pace.
func (d dialer) address() string {
	if len(d.targets) == 0 {
		return ""
	}
	return d.targets[0].String()
}

// attempt is a connect that is to be made.
type attempt struct {
	dial  dialer
	moves int
	turn  uint64
}

// connectOne makes a connection, unless ctx ends: then the hosts have changed, and others make it.
func (p *Pool) connectOne(ctx context.Context, a attempt) {
	begin := time.Now()
	in, err := p.set.connect(ctx, a.dial, a.turn)
	var server *Server
	if err == nil {
		server = &Server{State: session.NewServer(in.ParameterStatuses), pool: p, origin: in.origin, at: in.at, remote: in.Conn.RemoteAddr(), born: time.Now()}
		p.connects.observe(1, server.born.Sub(begin))
		server.wire, err = p.set.driver.Attach(server, in.Conn)
	}
	p.mu.Lock()
	p.connecting--
	if err != nil {
		p.perDatabase.give()
		p.perUser.give()
		p.freed()
		switch {
		case ctx.Err() == nil:
			p.connectFailed(err, begin)
		case p.set.ctx.Err() == nil:
			p.launch(time.Now())
		}
		p.mu.Unlock()
		return
	}
	if span := p.limits.lifespan(); span > 0 {
		server.dies = server.born.Add(span)
	}
	switch {
	case p.moves != a.moves:
		server.leaves = becauseMoved
	case p.dial.watched() && misplaced(p.dial, p.set.hosts.judge(p.dial, time.Now()), server.at):
		server.leaves = becauseUnfit
	}
	p.proven = true
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
	p.lastErr.waits = passes(err) && p.set.hosts.everReached(p.dial.targets)
	// Nothing is launched before retryAt: what fails until then was on its way together with what has failed already, and says no more.
	if now := time.Now(); !now.Before(p.retryAt) {
		pause := min(backoffMin<<min(p.failures, 20), p.set.now().ServerLoginRetry.D())
		if p.lastErr.busy() {
			pause = min(pause, busyBackoffMax)
			p.starved = true // the janitor comes when the pause is over
			time.AfterFunc(pause, p.set.nudge)
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
