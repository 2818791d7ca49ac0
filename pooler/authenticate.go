package pooler

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"

	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/config"
	"pitr/internal/pgwire"
	"pitr/pooler/admin"
	"pitr/pooler/auth"
	"pitr/pooler/pool"
)

// passwordLenMax is PG_MAX_AUTH_TOKEN_LENGTH in src/include/libpq/auth.h, the longest password that is read.
const passwordLenMax = 65535

// authenticate lets the client show who it is. What is to be told last is returned, to be sent together with what follows, and what the
// client has shown that lets us log in to a server in its name.
func (p *Pooler) authenticate(conn net.Conn, in *bufio.Reader, ask request) (last []byte, shown pool.Credentials, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), p.cfg.ClientLoginTimeout.D())
	defer cancel()
	login, err := ask.gate.users.Begin(ctx, auth.Request{User: ask.user, Database: ask.database, Replication: ask.physical, Lookup: p.lookupOf(ask.database), From: ask.gate.origin(conn)})
	if err != nil {
		return nil, shown, p.notLookedUp(ask, err)
	}
	if last, err = converse(conn, in, login); err != nil {
		return nil, shown, p.authenticationFailed(ask, err)
	}
	return last, credentials(login.Credentials()), nil
}

// notLookedUp makes of a user about whom nothing can be found out what the client is told. Whatever has failed is on our side.
func (p *Pooler) notLookedUp(ask request, err error) error {
	var denial *auth.Denial
	if errors.As(err, &denial) {
		return pgwire.Fatal(denial.Code, denial.Text)
	}
	p.log.Error("user not looked up", "database", ask.database, "user", ask.user, "error", err)
	return pgwire.Fatal("58000", "the pooler cannot find out who may log in; its log says why")
}

// authenticationFailed makes of a refused login what the client is told.
func (p *Pooler) authenticationFailed(ask request, err error) error {
	var denial *auth.Denial
	var failure *pgwire.Failure
	var lost net.Error
	switch {
	case errors.As(err, &denial):
		return pgwire.Fatal(denial.Code, denial.Text)
	case errors.As(err, &failure), errors.As(err, &lost), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return err
	}
	return p.notLookedUp(ask, err)
}

// converse asks the client for what the login wants to know.
func converse(conn net.Conn, in *bufio.Reader, login *auth.Login) (last []byte, err error) {
	switch login.Challenge {
	case auth.ChallengePassword:
		said, err := askPassword(conn, in, &pgproto3.AuthenticationCleartextPassword{}, passwordLenMax)
		if err != nil {
			return nil, err
		}
		return nil, login.Password(said)
	case auth.ChallengeMD5:
		said, err := askPassword(conn, in, &pgproto3.AuthenticationMD5Password{Salt: login.Salt}, auth.MessageLenMax)
		if err != nil {
			return nil, err
		}
		return nil, login.MD5(said)
	case auth.ChallengeSASL:
		return converseSASL(conn, in, login)
	}
	return nil, nil
}

func askPassword(conn net.Conn, in *bufio.Reader, question pgproto3.BackendMessage, lenMax int) (string, error) {
	if err := send(conn, question); err != nil {
		return "", err
	}
	body, err := readPassword(in, "password", lenMax)
	if err != nil {
		return "", err
	}
	if bytes.IndexByte(body, 0) != len(body)-1 {
		return "", pgwire.Fatal("08P01", "invalid password packet size") // recv_password_packet in src/backend/libpq/auth.c
	}
	return string(body[:len(body)-1]), nil
}

func converseSASL(conn net.Conn, in *bufio.Reader, login *auth.Login) (last []byte, err error) {
	if err := send(conn, &pgproto3.AuthenticationSASL{AuthMechanisms: login.Mechanisms}); err != nil {
		return nil, err
	}
	body, err := readPassword(in, "SASL", auth.MessageLenMax)
	if err != nil {
		return nil, err
	}
	mechanism, first, err := initialResponse(body)
	if err != nil {
		return nil, err
	}
	if err := login.Choose(mechanism); err != nil {
		return nil, err
	}
	answer, _, err := login.Step(first)
	if err != nil {
		return nil, err
	}
	if err := send(conn, &pgproto3.AuthenticationSASLContinue{Data: answer}); err != nil {
		return nil, err
	}
	if body, err = readPassword(in, "SASL", auth.MessageLenMax); err != nil {
		return nil, err
	}
	if answer, _, err = login.Step(body); err != nil {
		return nil, err
	}
	final := pgproto3.AuthenticationSASLFinal{Data: answer}
	return final.Encode(nil)
}

// initialResponse reads SASLInitialResponse: the mechanism's name, and the length of what follows, or -1.
func initialResponse(body []byte) (mechanism string, first []byte, err error) {
	name, rest, found := bytes.Cut(body, []byte{0})
	if !found || len(rest) < 4 {
		return "", nil, pgwire.Fatal("08P01", "malformed SASLInitialResponse")
	}
	length := int32(binary.BigEndian.Uint32(rest))
	if rest = rest[4:]; length != int32(len(rest)) && (length != -1 || len(rest) > 0) {
		return "", nil, pgwire.Fatal("08P01", "malformed SASLInitialResponse")
	}
	return string(name), rest, nil
}

// readPassword reads one message of the client's side of a login.
func readPassword(in *bufio.Reader, what string, lenMax int) ([]byte, error) {
	var head [pgwire.HeaderLen]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(head[1:])
	if head[0] != pgwire.Password || length < 4 || length > uint32(lenMax)+4 {
		return nil, pgwire.Fatal("08P01", "expected "+what+" response, got something else")
	}
	return readBody(in, int(length)-4)
}

// readBody reads what a header has announced. Its memory grows with what arrives and not with what was announced.
func readBody(in io.Reader, length int) ([]byte, error) {
	var body bytes.Buffer
	if _, err := io.CopyN(&body, in, int64(length)); err != nil {
		if errors.Is(err, io.EOF) && body.Len() > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return body.Bytes(), nil
}

// lookupOf returns the database that is asked who may log in, empty if none is.
func (p *Pooler) lookupOf(database string) string {
	if database == admin.Database && p.cfg.Auth.DBName == "" {
		return ""
	}
	if _, _, asked := p.pools.AuthDatabase(database); !asked {
		return ""
	}
	return database
}

// asksServers reports whether somebody is configured who asks Postgres for secrets.
func asksServers(cfg config.Pooler) bool {
	for _, db := range cfg.Databases {
		if db.AuthUser != "" {
			return true
		}
	}
	return cfg.Auth.User != ""
}

// stored tells what is known of a user before it has logged in.
func (p *Pooler) stored(user string) pool.Credentials {
	return credentials(p.gate.Load().users.Stored(user))
}

// askSecret implements auth.Query.
func (p *Pooler) askSecret(ctx context.Context, database, user string) (string, bool, error) {
	return p.pools.AskSecret(ctx, database, user)
}

// credentials hands what package auth knows to package pool.
func credentials(known auth.Credentials) pool.Credentials {
	out := pool.Credentials{Password: known.Plain, MD5: known.MD5}
	if keys := known.SCRAM; keys != nil {
		out.SCRAM = &pool.SCRAMKeys{ClientKey: keys.ClientKey, ServerKey: keys.ServerKey, Salt: keys.Salt, Iterations: keys.Iterations}
	}
	return out
}

// origin is what is known of a connection.
func (g *gate) origin(conn net.Conn) auth.Origin {
	from := auth.Origin{Address: addressOf(conn)}
	secure, encrypted := conn.(*tls.Conn)
	if encrypted {
		from.TLS, from.Binding = true, g.tls.binding
		from.Verified, from.CommonName, from.DN = g.tls.identify(secure.ConnectionState())
	}
	if !from.Address.IsValid() {
		from.SystemUser = peerOf(conn)
	}
	return from
}

// addressOf returns whence a connection comes, no address for a Unix socket.
func addressOf(conn net.Conn) netip.Addr {
	if remote, isTCP := conn.RemoteAddr().(*net.TCPAddr); isTCP {
		return remote.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
