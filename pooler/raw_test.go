package pooler

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

type pgQuery = pgproto3.Query

// wire is a client that speaks the protocol message by message.
type wire struct {
	t    *testing.T
	conn net.Conn
	// process and secret are its cancel key.
	process uint32
	secret  []byte
}

// raw logs a client in.
func raw(t *testing.T, r *running) *wire {
	t.Helper()
	w := dial(t, r)
	w.login()
	return w
}

// dial connects and sends nothing.
func dial(t *testing.T, r *running) *wire {
	t.Helper()
	conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(r.port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &wire{t: t, conn: conn}
}

func (w *wire) login() {
	w.t.Helper()
	w.send(&pgproto3.StartupMessage{ProtocolVersion: 196608, Parameters: map[string]string{"user": "postgres", "database": "postgres"}})
	w.until('Z')
}

func (w *wire) send(messages ...pgproto3.FrontendMessage) {
	w.t.Helper()
	if _, err := w.conn.Write(encode(messages...)); err != nil {
		w.t.Fatal(err)
	}
}

func encode(messages ...pgproto3.FrontendMessage) []byte {
	var out []byte
	for _, message := range messages {
		var err error
		if out, err = message.Encode(out); err != nil {
			panic(err)
		}
	}
	return out
}

// next reads one message.
func (w *wire) next() (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(w.conn, head[:]); err != nil {
		return 0, nil, err
	}
	body = make([]byte, binary.BigEndian.Uint32(head[1:])-4)
	_, err = io.ReadFull(w.conn, body)
	if head[0] == 'K' {
		w.process, w.secret = binary.BigEndian.Uint32(body), body[4:]
	}
	return head[0], body, err
}

// until reads up to and with a message of this type, and returns all of them in a readable form.
func (w *wire) until(last byte) string {
	w.t.Helper()
	var seen strings.Builder
	for {
		kind, body, err := w.next()
		if err != nil {
			w.t.Fatalf("waiting for %q: %v; seen %s", last, err, seen.String())
		}
		fmt.Fprintf(&seen, "%c %s\n", kind, strings.ReplaceAll(string(body), "\x00", " "))
		if kind == last {
			return seen.String()
		}
	}
}

// rest reads until the end of the connection.
func (w *wire) rest() string {
	w.t.Helper()
	all, err := io.ReadAll(w.conn)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		w.t.Fatal(err)
	}
	return string(all)
}

func parse(name, text string) pgproto3.FrontendMessage {
	return &pgproto3.Parse{Name: name, Query: text}
}
func bind(portal, name string) pgproto3.FrontendMessage {
	return &pgproto3.Bind{DestinationPortal: portal, PreparedStatement: name}
}

var (
	execute = &pgproto3.Execute{}
	syncNow = &pgproto3.Sync{}
)

// startup tries to log in with one more parameter.
func startup(t *testing.T, r *running, parameter string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := pgconn.Connect(ctx, r.dsn(parameter))
	if err == nil {
		_ = conn.Close(ctx)
	}
	return err
}
