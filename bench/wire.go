package main

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// address is where a contestant takes clients.
type address struct {
	host string
	port int
	tls  bool
}

// env is what makes libpq connect as the workload wants it; host, port and user are arguments.
func (a address) env() []string {
	env := []string{"PGPASSWORD=" + benchPassword, "PGGSSENCMODE=disable", "PGSSLMODE=disable"}
	if a.tls {
		env = append(env[:2], "PGSSLMODE=require", "PGSSLMINPROTOCOLVERSION=TLSv1.3", "PGSSLNEGOTIATION=postgres")
	}
	return env
}

// conn is a client of our own, for what pgbench cannot do. It speaks just enough of protocol 3.0.
type conn struct {
	net net.Conn
	in  *bufio.Reader
}

const (
	protocolVersion = 3 << 16  // 3.0
	sslRequest      = 80877103 // NEGOTIATE_SSL_CODE of src/include/libpq/pqcomm.h
	messageMax      = 64 << 10 // longest message that is read as a whole
	dialTimeout     = 30 * time.Second
	answerLimit     = 30 * time.Second // for a query that has nothing to do
)

// dial connects and logs in. inputSize is the read buffer's: small for a client that idles, large for one that copies.
func dial(ctx context.Context, at address, inputSize int) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(at.host, strconv.Itoa(at.port)))
	if err != nil {
		return nil, err
	}
	interrupted := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	c := &conn{net: raw}
	if at.tls {
		err = c.encrypt()
	}
	c.in = bufio.NewReaderSize(c.net, inputSize)
	if err == nil {
		err = c.login()
	}
	if !interrupted() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// limit bounds all that is still to be done on the connection.
func (c *conn) limit(d time.Duration) error { return c.net.SetDeadline(time.Now().Add(d)) }

func (c *conn) close() {
	_, _ = c.net.Write([]byte{'X', 0, 0, 0, 4}) // it may be closed already
	c.net.Close()
}

func (c *conn) encrypt() error {
	if _, err := c.net.Write(binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, sslRequest)); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := io.ReadFull(c.net, answer[:]); err != nil {
		return err
	}
	if answer[0] != 'S' {
		return errors.New("TLS is refused")
	}
	encrypted := tls.Client(c.net, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}) // a certificate of our own, on loopback
	c.net = encrypted
	return encrypted.Handshake()
}

func (c *conn) login() error {
	body := binary.BigEndian.AppendUint32(nil, protocolVersion)
	body = append(body, "user\x00"+benchUser+"\x00database\x00"+benchDatabase+"\x00\x00"...)
	if _, err := c.net.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body)+4)), body...)); err != nil {
		return err
	}
	exchange := &scramClient{}
	for {
		kind, body, err := c.read()
		if err != nil {
			return err
		}
		switch kind {
		case 'R':
			answer, err := exchange.answer(body)
			if err != nil {
				return err
			}
			if answer == nil {
				continue
			}
			if err := c.send('p', answer); err != nil {
				return err
			}
		case 'Z':
			return nil
		}
	}
}

func (c *conn) send(kind byte, body []byte) error {
	message := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4))
	_, err := c.net.Write(append(message, body...))
	return err
}

// read reads one message; an ErrorResponse is an error.
func (c *conn) read() (kind byte, body []byte, err error) {
	kind, length, err := c.header()
	if err != nil {
		return 0, nil, err
	}
	if length > messageMax {
		return 0, nil, fmt.Errorf("a message %q of %d bytes", kind, length)
	}
	body = make([]byte, length)
	if _, err := io.ReadFull(c.in, body); err != nil {
		return 0, nil, err
	}
	if kind == 'E' {
		return 0, nil, serverError(body)
	}
	return kind, body, nil
}

func (c *conn) header() (kind byte, length int, err error) {
	var head [5]byte
	if _, err := io.ReadFull(c.in, head[:]); err != nil {
		return 0, 0, err
	}
	length = int(binary.BigEndian.Uint32(head[1:])) - 4
	if length < 0 {
		return 0, 0, fmt.Errorf("a message %q of negative length", head[0])
	}
	return head[0], length, nil
}

// exec runs a query by the simple protocol and throws away what it returns: that much, in bytes of the stream.
func (c *conn) exec(query string) (int64, error) {
	if err := c.send('Q', append([]byte(query), 0)); err != nil {
		return 0, err
	}
	return c.drain()
}

// ask runs a query that has nothing to do; whoever takes long for that has stopped.
func (c *conn) ask() (int64, error) {
	if err := c.limit(answerLimit); err != nil {
		return 0, err
	}
	return c.exec("select 1")
}

// drain reads until ReadyForQuery and counts.
func (c *conn) drain() (int64, error) {
	var total int64
	for {
		kind, length, err := c.header()
		if err != nil {
			return total, err
		}
		total += int64(length) + 5
		if kind == 'E' {
			body := make([]byte, min(length, messageMax))
			_, err := io.ReadFull(c.in, body)
			return total, errors.Join(serverError(body), err)
		}
		if _, err := c.in.Discard(length); err != nil {
			return total, err
		}
		if kind == 'Z' {
			return total, nil
		}
	}
}

// serverError reads an ErrorResponse: fields of a letter and a zero-terminated text.
func serverError(body []byte) error {
	var message, code string
	for field := range strings.SplitSeq(string(body), "\x00") {
		switch {
		case strings.HasPrefix(field, "M"):
			message = field[1:]
		case strings.HasPrefix(field, "C"):
			code = field[1:]
		}
	}
	return fmt.Errorf("%s (%s)", message, code)
}

// scramClient is the client's half of SCRAM-SHA-256 (RFC 5802, RFC 7677) without channel binding. It trusts the server.
type scramClient struct{ first string }

// answer is what is sent in reply to an Authentication message; nil: nothing.
func (s *scramClient) answer(body []byte) ([]byte, error) {
	if len(body) < 4 {
		return nil, errors.New("a short authentication message")
	}
	// The codes are AUTH_REQ_* of src/include/libpq/protocol.h.
	switch code := binary.BigEndian.Uint32(body); code {
	case 0, 12:
		return nil, nil
	case 10:
		nonce := make([]byte, 18)
		if _, err := rand.Read(nonce); err != nil {
			return nil, err
		}
		s.first = "n=,r=" + base64.StdEncoding.EncodeToString(nonce)
		initial := "n,," + s.first
		answer := append([]byte("SCRAM-SHA-256\x00"), binary.BigEndian.AppendUint32(nil, uint32(len(initial)))...)
		return append(answer, initial...), nil
	case 11:
		return s.final(string(body[4:]))
	default:
		return nil, fmt.Errorf("authentication request %d, not SCRAM-SHA-256", code)
	}
}

func (s *scramClient) final(challenge string) ([]byte, error) {
	var nonce, salt string
	var iterations int
	for part := range strings.SplitSeq(challenge, ",") {
		switch {
		case strings.HasPrefix(part, "r="):
			nonce = part[2:]
		case strings.HasPrefix(part, "s="):
			salt = part[2:]
		case strings.HasPrefix(part, "i="):
			iterations, _ = strconv.Atoi(part[2:])
		}
	}
	salted, err := saltedPassword(salt, iterations)
	if err != nil {
		return nil, err
	}
	clientKey := mac(salted, "Client Key")
	storedKey := sha256.Sum256(clientKey)
	withoutProof := "c=biws,r=" + nonce
	proof := mac(storedKey[:], s.first+","+challenge+","+withoutProof)
	for i := range proof {
		proof[i] ^= clientKey[i]
	}
	return []byte(withoutProof + ",p=" + base64.StdEncoding.EncodeToString(proof)), nil
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// salted remembers the slow part of SCRAM, so that ten thousand logins cost us one.
var salted struct {
	mu    sync.Mutex // guards known
	known map[string][]byte
}

func saltedPassword(salt string, iterations int) ([]byte, error) {
	if iterations < 1 || iterations > 100_000 {
		return nil, fmt.Errorf("SCRAM with %d iterations", iterations)
	}
	id := salt + "," + strconv.Itoa(iterations)
	salted.mu.Lock()
	defer salted.mu.Unlock()
	if key, ok := salted.known[id]; ok {
		return key, nil
	}
	raw, err := base64.StdEncoding.DecodeString(salt)
	if err != nil {
		return nil, fmt.Errorf("SCRAM salt: %w", err)
	}
	key, err := pbkdf2.Key(sha256.New, benchPassword, raw, iterations, sha256.Size)
	if err != nil {
		return nil, err
	}
	if salted.known == nil || len(salted.known) > 100 {
		salted.known = map[string][]byte{}
	}
	salted.known[id] = key
	return key, nil
}

// scramSecret is what Postgres keeps as pg_authid.rolpassword for the password, and what poolers take for it.
func scramSecret() (string, error) {
	raw := make([]byte, 16) // SCRAM_DEFAULT_SALT_LEN and …_ITERATIONS of src/include/common/scram-common.h
	if _, err := rand.Read(raw); err != nil {
		return "", err
	}
	salt := base64.StdEncoding.EncodeToString(raw)
	key, err := saltedPassword(salt, 4096)
	if err != nil {
		return "", err
	}
	storedKey := sha256.Sum256(mac(key, "Client Key"))
	return fmt.Sprintf("SCRAM-SHA-256$4096:%s$%s:%s", salt, base64.StdEncoding.EncodeToString(storedKey[:]),
		base64.StdEncoding.EncodeToString(mac(key, "Server Key"))), nil
}
