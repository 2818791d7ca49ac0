package pooler

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/config"
	"pitr/internal/pgwire"
)

// fuzzed is a pooler of each mode in front of a fake server, with one server connection that all clients share.
type fuzzed struct {
	fake    *fakeServer
	poolers map[bool]*running // by whether it is in transaction mode
}

func startFuzzed(f *testing.F) *fuzzed {
	f.Helper()
	z := &fuzzed{fake: startFake(f), poolers: map[bool]*running{}}
	for _, mode := range []string{"session", "transaction"} {
		z.poolers[mode == "transaction"] = startLogging(f, &postgres{port: z.fake.port()}, func(cfg *config.Config) {
			onePerPool(cfg)
			cfg.Pooler.PoolMode, cfg.Pooler.LazyBegin, cfg.Pooler.MaxPreparedStatements, cfg.Pooler.Workers = mode, "on", 2, 1
			cfg.Pooler.MaxPipelineMessages, cfg.Pooler.PreparedStatementSizeMax = 100, 1<<10
		}, slog.New(slog.DiscardHandler))
	}
	return z
}

// fuzzTimeout is when a target says that something hangs.
const fuzzTimeout = 10 * time.Second

func (z *fuzzed) login(t *testing.T, transaction bool) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", z.poolers[transaction].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(fuzzTimeout)); err != nil {
		t.Fatal(err)
	}
	startup := &pgproto3.StartupMessage{ProtocolVersion: 196608, Parameters: map[string]string{"user": "postgres"}}
	if _, err := conn.Write(encode(startup)); err != nil {
		t.Fatal(err)
	}
	if _, err := untilReady(conn); err != nil {
		t.Fatalf("login: %v", err)
	}
	return conn.(*net.TCPConn)
}

// untilReady returns all up to and with ReadyForQuery.
func untilReady(conn net.Conn) (seen []byte, err error) {
	for {
		var head [5]byte
		n, err := io.ReadFull(conn, head[:])
		seen = append(seen, head[:n]...)
		if err != nil {
			return seen, err
		}
		body := make([]byte, min(binary.BigEndian.Uint32(head[1:])-4, 1<<20))
		n, err = io.ReadFull(conn, body)
		if seen = append(seen, body[:n]...); err != nil || head[0] == 'Z' {
			return seen, err
		}
	}
}

// witness is a client that was not there, and gets its own answer and nothing else. It may find that its server has gone.
func (z *fuzzed) witness(t *testing.T, transaction bool, n int) {
	t.Helper()
	text := fmt.Sprintf("select 'witness %d'", n)
	b := &fakeBackend{statements: map[string]string{}, portals: map[string]string{}}
	b.say('T', "\x00\x00")
	b.row(text)
	want := pgwire.AppendReady(b.out, pgwire.Idle)
	for range 3 {
		conn := z.login(t, transaction)
		if _, err := conn.Write(encode(&pgQuery{String: text})); err != nil {
			t.Fatal(err)
		}
		got, err := untilReady(conn)
		conn.Close()
		switch {
		case err == nil && bytes.Equal(got, want):
			return
		case err == nil || !bytes.Contains(got, []byte("C08006\x00")) || bytes.Contains(got, []byte("witness")):
			t.Fatalf("another client got %q, want %q, err %v", got, want, err)
		}
	}
	t.Fatal("another client gets no server that answers")
}

// timedOut reports whether an end is none.
func timedOut(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// secretOf the witness is what no other client may see.
const secretOf = "witness"

// FuzzClientBytes lets a client that has logged in send anything, in pieces. It must come to an end, see nothing of another client, and
// leave a pool behind that works.
func FuzzClientBytes(f *testing.F) {
	z := startFuzzed(f)
	f.Add(encode(&pgQuery{String: "select 1"}, &pgproto3.Terminate{}), uint8(3), true)                                                                  // a polite client
	f.Add(encode(parse("s1", "select 1"), bind("", "s1"), execute, syncNow), uint8(1), true)                                                            // a statement
	f.Add(encode(parse("s1", "x"), parse("s1", "y"), syncNow, bind("", "nowhere"), execute, syncNow, syncNow), uint8(7), true)                          // errors in a pipeline
	f.Add(encode(&pgQuery{String: "copy x from stdin"}, &pgproto3.CopyData{Data: []byte("x")}, &pgproto3.CopyDone{}), uint8(50), false)                 // a COPY
	f.Add(encode(&pgQuery{String: "copy x from stdin"}, syncNow, &pgproto3.CopyFail{Message: "no"}, syncNow), uint8(2), true)                           // a COPY that fails, with a Sync that is ignored
	f.Add(encode(&pgQuery{String: "begin"}, &pgQuery{String: "set a.b = 'c'"}, &pgQuery{String: "commit"}, &pgQuery{String: "select"}), uint8(9), true) // a transaction that begins late
	f.Add([]byte("Q\x00\x00\x00\x03"), uint8(200), true)                                                                                                // a length that is too small
	f.Add([]byte("P\xff\xff\xff\xffx"), uint8(0), false)                                                                                                // a length that is negative
	f.Add([]byte("B\x00\x00\x00\x06\x00\x00"), uint8(0), true)                                                                                          // a Bind without numbers
	f.Add([]byte("d\x00\x00\x00\x05xS\x00\x00\x00\x05xH\x00\x00\x00\x04"), uint8(4), true)                                                              // data that nobody wants, a Sync with a body
	f.Add([]byte("Q\x00\x01\x00\x00select"), uint8(4), false)                                                                                           // half a message, and the end
	count := 0
	f.Fuzz(func(t *testing.T, in []byte, piece uint8, transaction bool) {
		if bytes.Contains(in, []byte(secretOf)) || bytes.Contains(in, []byte(evilWord)) || len(in) > 1<<16 {
			return
		}
		count++
		conn := z.login(t, transaction)
		answered := make(chan error, 1)
		var seen []byte
		go func() {
			var err error
			seen, err = io.ReadAll(conn)
			answered <- err
		}()
		size := max(1, int(piece), len(in)/50)
		for rest := in; len(rest) > 0; {
			n := min(size, len(rest))
			if _, err := conn.Write(rest[:n]); err != nil {
				break // it was thrown out
			}
			rest = rest[n:]
		}
		_ = conn.CloseWrite()
		if err := <-answered; timedOut(err) {
			t.Fatalf("a client that has gone is still there; it has got %q", seen)
		}
		if bytes.Contains(seen, []byte(secretOf)) {
			t.Fatalf("the client has seen another's bytes: %q", seen)
		}
		z.witness(t, transaction, count)
	})
}

// FuzzServerBytes lets a server answer anything. The client that has asked comes to an end or to its ReadyForQuery; the server
// is used again only if its answer was whole; and no other client sees a byte of it.
func FuzzServerBytes(f *testing.F) {
	z := startFuzzed(f)
	good := func(tail string) []byte {
		b := &fakeBackend{}
		b.row("something")
		return append(pgwire.AppendReady(b.out, pgwire.Idle), tail...)
	}
	f.Add(good(""), true, false)                                                      // what is right
	f.Add(good("D\x00\x00\x00\x06\x00\x00"), true, false)                             // a row behind it
	f.Add(good("Z\x00\x00\x00\x05I"), false, false)                                   // two ends
	f.Add(good("N"), true, true)                                                      // the first byte of something
	f.Add([]byte("D\x00\x00\x00\x06\x00\x00"), true, false)                           // a row, and the end of the connection
	f.Add([]byte("Z\x00\x00\x00\x05T"), true, false)                                  // a transaction that nobody has begun
	f.Add([]byte("Z\x00\x00\x00\x05?"), true, true)                                   // a state that does not exist
	f.Add([]byte("E\x00\x00\x00\x05\x00"), true, true)                                // an error without fields
	f.Add([]byte("S\x00\x00\x00\x09a\x00b\x00Z\x00\x00\x00\x05I"), true, false)       // a setting that nobody knows
	f.Add([]byte("C\x00\x00\x00\x06x\x00C\x00\x00\x00\x04"), true, false)             // a tag without its end
	f.Add([]byte("D\x7f\xff\xff\xff"+strings.Repeat("x", 1000)), false, false)        // a row that does not end
	f.Add([]byte("E\x00\xff\xff\xff"+strings.Repeat("x", 70000)), true, true)         // an error that does not end
	f.Add([]byte("?\x00\x00\x00\x04"), true, false)                                   // a type that no server sends
	f.Add([]byte("Z\x00\x00\x00\x03"), false, true)                                   // a length that is too small
	f.Add([]byte("G\x00\x00\x00\x07\x00\x00\x00Z\x00\x00\x00\x05I"), true, false)     // a COPY that ends by itself
	f.Add([]byte("1\x00\x00\x00\x042\x00\x00\x00\x04Z\x00\x00\x00\x05I"), true, true) // too little of an answer
	f.Add([]byte{}, true, false)                                                      // nothing
	count := 0
	f.Fuzz(func(t *testing.T, answer []byte, transaction, extended bool) {
		if bytes.Contains(answer, []byte(secretOf)) || len(answer) > 1<<17 {
			return
		}
		count++
		whole := wholeAnswer(answer)
		z.fake.says(answer, whole)
		conn := z.login(t, transaction)
		ask := encode(&pgQuery{String: evilWord})
		if extended {
			ask = encode(parse("", evilWord), bind("", ""), execute, syncNow)
		}
		if _, err := conn.Write(ask); err != nil {
			t.Fatal(err)
		}
		seen, err := untilReady(conn)
		if timedOut(err) {
			t.Fatalf("the client of a server that has gone still waits; it has got %q", seen)
		}
		conn.Close()
		if !whole {
			select {
			case <-z.fake.ended:
			case <-time.After(fuzzTimeout):
				t.Fatalf("a server that has answered %q, and has closed its side, is kept", answer)
			}
		}
		z.witness(t, transaction, count)
	})
}

// wholeAnswer reports whether these are messages up to one ReadyForQuery, and nothing else.
func wholeAnswer(in []byte) bool {
	for len(in) >= 5 {
		length := uint64(binary.BigEndian.Uint32(in[1:])) + 1
		if length < 5 || length > uint64(len(in)) {
			return false
		}
		if in[0] == 'Z' {
			return length == uint64(len(in))
		}
		in = in[length:]
	}
	return false
}
