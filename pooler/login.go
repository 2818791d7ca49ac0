package pooler

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/internal/pgwire"
	"pitr/pooler/loop"
	"pitr/pooler/pool"
	"pitr/pooler/session"
)

// login brings a connection from its first byte to the end of its authentication. It returns no client and no error for a cancel
// request. over is the connection as it is now, which may be encrypted; early is what the client has already sent behind its login.
// A *pgwire.Failure is what the client is to be told.
func (p *Pooler) login(conn net.Conn) (c *client, over net.Conn, early []byte, err error) {
	if err := conn.SetDeadline(time.Now().Add(p.cfg.ClientLoginTimeout.D())); err != nil {
		return nil, conn, nil, err
	}
	g := p.gate.Load()
	conn, in, startup, err := g.readStartup(conn)
	if err != nil {
		return nil, conn, nil, err
	}
	if startup.Kind == pgwire.StartupCancel {
		p.cancel(startup.Process, startup.Secret)
		return nil, conn, nil, nil
	}
	ask, err := readRequest(startup)
	if err != nil {
		return nil, conn, nil, err
	}
	ask.gate = g
	if p.asksForConsole(ask) {
		return nil, conn, nil, p.console(conn, in, ask)
	}
	if ask.replication {
		return nil, conn, nil, p.replicate(conn, in, ask)
	}
	if c, err = p.register(ask.version); err != nil {
		return nil, conn, nil, err
	}
	if err := p.admit(c, conn, in, ask); err != nil {
		return c, conn, nil, err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return c, conn, nil, err
	}
	early, _ = in.Peek(in.Buffered())
	return c, conn, early, nil
}

// admit is the part of a login for which the client counts in max_client_conn.
func (p *Pooler) admit(c *client, conn net.Conn, in *bufio.Reader, ask request) error {
	if err := negotiate(conn, ask); err != nil {
		return err
	}
	last, shown, err := p.authenticate(conn, in, ask)
	if err != nil {
		return err
	}
	if err := p.enroll(c, conn, ask); err != nil {
		return err
	}
	servers, err := p.pools.Get(ask.database, ask.user)
	switch {
	case errors.Is(err, pool.ErrDisabled):
		return pgwire.Fatal("08P01", fmt.Sprintf("database %q is disabled", ask.database))
	case errors.Is(err, pool.ErrUnknownDatabase):
		return pgwire.Fatal("3D000", fmt.Sprintf("database %q does not exist", ask.database))
	case errors.Is(err, pool.ErrTooManyPools):
		return pgwire.Fatal("53300", err.Error())
	case err != nil:
		p.log.Error("pool not made", "database", ask.database, "user", ask.user, "error", err)
		return pgwire.Fatal("58000", "the pooler's configuration for this database cannot be used; its log says why")
	}
	if servers.Key().User == ask.user {
		servers.Learn(shown)
	}
	c.pool, c.options = servers, p.options(ask)
	params, err := p.announced(ask, conn)
	if err != nil {
		return err
	}
	c.entry = &entry{params: params, tell: last, remote: conn.RemoteAddr().String(), address: addressOf(conn)}
	return nil
}

// readStartup reads packets until one of them asks for more than encryption. It returns the connection, encrypted if that was asked
// for and is offered, and a reader of it.
func (g *gate) readStartup(conn net.Conn) (net.Conn, *bufio.Reader, pgwire.Startup, error) {
	in := bufio.NewReaderSize(conn, int(g.cfg.PktBuf))
	var asked [pgwire.StartupCancel + 1]bool
	conn, encrypted, err := g.readDirectTLS(conn, in)
	if err != nil {
		return conn, in, pgwire.Startup{}, err
	}
	for {
		startup, err := readPacket(in)
		if err != nil {
			return conn, in, startup, err
		}
		if startup.Kind != pgwire.StartupSSL && startup.Kind != pgwire.StartupGSS {
			if !encrypted && startup.Kind == pgwire.StartupSession && g.mustEncrypt(conn) {
				return conn, in, startup, pgwire.Fatal("28000", "SSL connection is required (pooler.client_tls_sslmode)")
			}
			return conn, in, startup, nil
		}
		if in.Buffered() > 0 {
			// Somebody in the middle could have put it there; compare ProcessStartupPacket in src/backend/postmaster/postmaster.c.
			return conn, in, startup, pgwire.Fatal("08P01", "received unencrypted data after SSL request")
		}
		if asked[startup.Kind] || encrypted {
			return conn, in, startup, pgwire.Fatal("08P01", "encryption was asked for twice")
		}
		asked[startup.Kind] = true
		if startup.Kind == pgwire.StartupGSS || g.tls == nil {
			if _, err := conn.Write([]byte{'N'}); err != nil {
				return conn, in, startup, err
			}
			continue
		}
		secure, err := g.tls.encrypt(conn)
		if err != nil {
			return conn, in, startup, err
		}
		conn, encrypted = secure, true
		in.Reset(conn)
	}
}

// tlsHandshake is the first byte of a client that begins TLS without asking: ContentType handshake in RFC 8446, section 5.1. A packet
// that begins with it would be longer than any may be.
const tlsHandshake = 0x16

// readDirectTLS looks at a client's first byte, and begins TLS if the client has.
func (g *gate) readDirectTLS(conn net.Conn, in *bufio.Reader) (over net.Conn, encrypted bool, err error) {
	first, err := in.Peek(1)
	if err != nil || first[0] != tlsHandshake {
		return conn, false, err
	}
	stream := conn.(*loop.Stream)
	early, _ := in.Peek(in.Buffered())
	stream.Unread(early)
	secure, err := g.encryptDirectly(stream)
	if secure == nil {
		return conn, false, err
	}
	in.Reset(secure)
	return secure, true, err
}

// readPacket reads one packet of a client that has not begun a session.
func readPacket(in *bufio.Reader) (pgwire.Startup, error) {
	var head [4]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return pgwire.Startup{}, err
	}
	length, err := pgwire.StartupLen(head)
	if err != nil {
		return pgwire.Startup{}, protocolViolation(err)
	}
	body, err := readBody(in, length-len(head))
	if err != nil {
		return pgwire.Startup{}, err
	}
	startup, err := pgwire.ParseStartup(append(head[:], body...))
	if err != nil {
		return pgwire.Startup{}, protocolViolation(err)
	}
	return startup, nil
}

func protocolViolation(err error) error {
	if text := err.Error(); strings.HasPrefix(text, "unsupported frontend protocol") {
		return pgwire.Fatal("0A000", text)
	}
	return pgwire.Fatal("08P01", err.Error())
}

// request is what a startup packet asks for.
type request struct {
	gate           *gate
	user, database string
	startup        []pgwire.Param
	replication    bool // a walsender is wanted
	physical       bool // for physical replication, which is no matter of a database
	params         *session.Params
	version        uint32   // of the protocol
	negotiate      bool     // the client speaks a newer minor version than that, or protocol options
	unknown        []string // the options
}

func readRequest(startup pgwire.Startup) (request, error) {
	ask := request{version: min(startup.Version, pgwire.Version32), negotiate: startup.Version > pgwire.Version32}
	for _, param := range startup.Params {
		switch {
		case param.Name == "user":
			ask.user = param.Value
		case param.Name == "database":
			ask.database = param.Value
		case param.Name == "replication":
			ask.replication = !isFalse(param.Value)
			ask.physical = ask.replication && !strings.EqualFold(param.Value, "database")
		case strings.HasPrefix(param.Name, "_pq_."):
			ask.negotiate = true
			ask.unknown = append(ask.unknown, param.Name)
		}
	}
	if ask.user == "" {
		return ask, pgwire.Fatal("28000", "no PostgreSQL user name specified in startup packet")
	}
	if ask.database == "" {
		ask.database = ask.user
	}
	params, err := session.StartupParams(startup.Params)
	if err != nil {
		return ask, pgwire.Fatal("22023", err.Error())
	}
	ask.params, ask.startup = params, startup.Params
	return ask, nil
}

// isFalse follows parse_bool in src/backend/utils/adt/bool.c, for the spellings that occur.
func isFalse(value string) bool {
	switch strings.ToLower(value) {
	case "false", "f", "off", "no", "n", "0":
		return true
	}
	return false
}

// negotiate tells a client that asks for more than version 3.2, or for options that nobody knows, what it gets: SendNegotiateProtocolVersion in
// src/backend/tcop/backend_startup.c.
func negotiate(conn net.Conn, ask request) error {
	if !ask.negotiate {
		return nil
	}
	message := pgproto3.NegotiateProtocolVersion{NewestMinorProtocol: ask.version, UnrecognizedOptions: ask.unknown}
	return send(conn, &message)
}

func send(conn net.Conn, message pgproto3.BackendMessage) error {
	out, err := message.Encode(nil)
	if err != nil {
		return err
	}
	_, err = conn.Write(out)
	return err
}

var errLoginTimeout = pgwire.Fatal("08P01", "client_login_timeout")

// loginFailed tells the client why, and the log if it is not the client's own affair.
func (p *Pooler) loginFailed(conn net.Conn, err error) {
	p.counters.loginFailures.Add(1)
	var failure *pgwire.Failure
	if !errors.As(err, &failure) {
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			failure = errLoginTimeout
		}
	}
	if failure != nil {
		err = failure
	}
	p.log.Log(context.Background(), p.errorLevel(), fmt.Sprintf("closing because: %s", because(err)), "client", conn.RemoteAddr().String(), "login", "failed")
	if failure == nil {
		conn.Close()
		return
	}
	refuse(conn, failure)
}
