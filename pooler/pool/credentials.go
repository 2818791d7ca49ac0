package pool

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"

	"pitr/internal/pgwire"
)

// Credentials is what is known of a user that lets us log in to a server in its name. Of several things the first is used.
type Credentials struct {
	Password string
	MD5      string // as in pg_authid.rolpassword; enough where Postgres asks for MD5
	SCRAM    *SCRAMKeys
}

// SCRAMKeys are those of a SCRAM secret, of which the client's was learnt when a client has logged in. They are enough where Postgres has
// the same secret, with its salt.
type SCRAMKeys struct {
	ClientKey, ServerKey []byte
	Salt                 []byte
	Iterations           int
}

func (c Credentials) empty() bool { return c.Password == "" && c.MD5 == "" && c.SCRAM == nil }

// Learn notes what a client of this pool's user has shown when it logged in; connects use it from then on, where no password was configured.
func (p *Pool) Learn(credentials Credentials) {
	if credentials.empty() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dial.credentials = credentials
}

// prover is a connection to a server that answers the server's question for a secret itself, since pgconn knows but plain passwords. It
// is read by pgconn until the login is over, and then taken away.
type prover struct {
	net.Conn
	credentials Credentials
	bound       func(*x509.Certificate) []byte // tls-server-end-point
	mustBind    bool                           // as channel_binding=require
	in          []byte                         // what pgconn has not read yet
	proven      bool                           // the server has shown that it knows the secret, too
	over        bool
}

// proverLenMax bounds a message of a server during the login.
const proverLenMax = 64 << 10

// proofError says that what is known of a user does not open a server. Clients may be told.
type proofError string

func (e proofError) Error() string { return string(e) }

// Read implements net.Conn.
func (p *prover) Read(b []byte) (int, error) {
	for len(p.in) == 0 && !p.over {
		if err := p.pass(); err != nil {
			return 0, err
		}
	}
	if len(p.in) > 0 {
		n := copy(b, p.in)
		p.in = p.in[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// Codes of Authentication messages: AUTH_REQ_* in src/include/libpq/protocol.h (pqcomm.h before 17).
const (
	authOK           = 0
	authMD5          = 5
	authSASL         = 10
	authSASLContinue = 11
	authSASLFinal    = 12
)

// pass reads one message, and answers it or gives it to pgconn.
func (p *prover) pass() error {
	kind, body, err := p.message()
	if err != nil {
		return err
	}
	if kind == 'R' && len(body) >= 4 {
		code, rest := binary.BigEndian.Uint32(body), body[4:]
		switch {
		case code == authMD5 && len(rest) == 4 && p.credentials.MD5 != "" && !p.mustBind:
			sum := md5.Sum(append([]byte(strings.TrimPrefix(p.credentials.MD5, "md5")), rest...))
			return p.answer([]byte("md5" + hex.EncodeToString(sum[:]) + "\x00"))
		case code == authSASL && p.credentials.SCRAM != nil:
			return p.scram(strings.Split(strings.TrimRight(string(rest), "\x00"), "\x00"))
		case code == authOK && p.mustBind && !p.proven:
			return errors.New("channel binding is required, and the server did without")
		case code != authOK:
			return proofError("the server asks for the password in a way for which a stored secret is not enough")
		}
	}
	p.over = kind == 'R' || kind == pgwire.ErrorResponse
	p.in = append(pgwire.AppendHeader(nil, kind, len(body)), body...)
	return nil
}

func (p *prover) message() (kind byte, body []byte, err error) {
	var head [pgwire.HeaderLen]byte
	if _, err := io.ReadFull(p.Conn, head[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(head[1:])
	if length < 4 || length > proverLenMax {
		return 0, nil, fmt.Errorf("the server sent a message of %d bytes during the login", length)
	}
	body = make([]byte, length-4)
	_, err = io.ReadFull(p.Conn, body)
	return head[0], body, err
}

func (p *prover) answer(body []byte) error {
	_, err := p.Conn.Write(append(pgwire.AppendHeader(nil, pgwire.Password, len(body)), body...))
	return err
}

// scram is the client's side of RFC 5802 with keys in the place of a password, and with channel binding where both sides can.
func (p *prover) scram(offered []string) error {
	keys := p.credentials.SCRAM
	mechanism, header, binding := "SCRAM-SHA-256", "n,,", []byte(nil)
	if secure, isTLS := p.Conn.(*tls.Conn); isTLS && p.bound != nil {
		if certificates := secure.ConnectionState().PeerCertificates; len(certificates) > 0 {
			binding = p.bound(certificates[0])
		}
		if binding != nil {
			header = "y,,"
		}
		if binding != nil && slices.Contains(offered, "SCRAM-SHA-256-PLUS") {
			mechanism, header = "SCRAM-SHA-256-PLUS", "p=tls-server-end-point,,"
		}
	}
	if p.mustBind && header[0] != 'p' || !slices.Contains(offered, mechanism) {
		return errors.New("the server offers no mechanism of SCRAM that can be used")
	}
	var random [18]byte
	_, _ = rand.Read(random[:]) // crypto/rand never fails
	nonce := base64.StdEncoding.EncodeToString(random[:])
	first := "n=,r=" + nonce
	out := append([]byte(mechanism), 0)
	out = binary.BigEndian.AppendUint32(out, uint32(len(header)+len(first)))
	if err := p.answer(append(append(out, header...), first...)); err != nil {
		return err
	}
	reply, err := p.continued(authSASLContinue)
	if err != nil || p.over {
		return err
	}
	nonce, err = keys.check(reply, nonce)
	if err != nil {
		return err
	}
	cover := []byte(header)
	if header[0] == 'p' {
		cover = append(cover, binding...)
	}
	final := "c=" + base64.StdEncoding.EncodeToString(cover) + ",r=" + nonce
	said := []byte(first + "," + reply + "," + final)
	stored := sha256.Sum256(keys.ClientKey)
	proof := hmacOf(stored[:], said)
	for i := range proof {
		proof[i] ^= keys.ClientKey[i]
	}
	if err := p.answer([]byte(final + ",p=" + base64.StdEncoding.EncodeToString(proof))); err != nil {
		return err
	}
	reply, err = p.continued(authSASLFinal)
	if err != nil || p.over {
		return err
	}
	want := "v=" + base64.StdEncoding.EncodeToString(hmacOf(keys.ServerKey, said))
	if !hmac.Equal([]byte(reply), []byte(want)) {
		return errors.New("the server does not know the secret itself: its signature is wrong")
	}
	p.proven = true
	return nil
}

// continued reads the next message of the conversation. An error of the server is left for pgconn to read.
func (p *prover) continued(code uint32) (string, error) {
	kind, body, err := p.message()
	switch {
	case err != nil:
		return "", err
	case kind == pgwire.ErrorResponse:
		p.in, p.over = append(pgwire.AppendHeader(nil, kind, len(body)), body...), true
		return "", nil
	case kind != 'R' || len(body) < 4 || binary.BigEndian.Uint32(body) != code:
		return "", fmt.Errorf("the server broke off SCRAM with a message %q", kind)
	}
	return string(body[4:]), nil
}

// check reads the server's first message, r=…,s=…,i=…, and returns the nonce.
func (k *SCRAMKeys) check(reply, nonce string) (string, error) {
	parts := strings.Split(reply, ",")
	if len(parts) != 3 || !strings.HasPrefix(parts[0], "r="+nonce) || len(parts[0]) == len("r="+nonce) || !strings.HasPrefix(parts[1], "s=") || !strings.HasPrefix(parts[2], "i=") {
		return "", errors.New("the server's first message of SCRAM is malformed")
	}
	if parts[1][2:] != base64.StdEncoding.EncodeToString(k.Salt) || parts[2][2:] != strconv.Itoa(k.Iterations) {
		return "", proofError("the server's SCRAM secret of this user is another one than the pooler's: salt or iterations differ")
	}
	return parts[0][2:], nil
}

func hmacOf(key, text []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(text)
	return mac.Sum(nil)
}
