package pooler

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"pitr/internal/pgwire"
)

// fakeServer speaks as Postgres does, as far as a fuzz target needs it: it answers every query with its text. When it is asked something
// evil it sends what it was told to.
type fakeServer struct {
	listener net.Listener
	work     sync.WaitGroup

	// mu guards the fields below.
	mu    sync.Mutex
	evil  []byte        // the answer to what contains evilWord
	whole bool          // that is a whole answer, after which it goes on as if nothing had been
	conns []net.Conn    // that are open
	ended chan struct{} // gets one when the pooler has closed a connection on which something evil was said that is not whole
}

const evilWord = "evil"

func startFake(t testing.TB) *fakeServer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeServer{listener: listener, ended: make(chan struct{}, 100)}
	f.work.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			f.work.Go(func() { defer conn.Close(); _ = f.serve(conn) })
		}
	})
	t.Cleanup(func() { // comes after the pooler's, which closes all connections
		listener.Close()
		f.work.Wait()
	})
	return f
}

func (f *fakeServer) port() int { return f.listener.Addr().(*net.TCPAddr).Port }

// says sets what it does when it is asked something evil.
func (f *fakeServer) says(evil []byte, whole bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.evil, f.whole = evil, whole
}

func (f *fakeServer) serve(conn net.Conn) error {
	var length [4]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return err
	}
	startup := make([]byte, binary.BigEndian.Uint32(length[:])-4)
	if _, err := io.ReadFull(conn, startup); err != nil {
		return err
	}
	if binary.BigEndian.Uint32(startup) != pgwire.Version30 {
		return nil // a cancel request
	}
	out := append(pgwire.AppendHeader(nil, 'R', 4), 0, 0, 0, 0)
	for _, param := range []pgwire.Param{{Name: "server_encoding", Value: "UTF8"}, {Name: "client_encoding", Value: "UTF8"}, {Name: "TimeZone", Value: "UTC"}} {
		out = pgwire.AppendParameterStatus(out, param)
	}
	out = append(pgwire.AppendHeader(out, 'K', 8), 0, 0, 0, 1, 0, 0, 0, 2)
	if _, err := conn.Write(pgwire.AppendReady(out, pgwire.Idle)); err != nil {
		return err
	}
	b := &fakeBackend{server: f, conn: conn, statements: map[string]string{}, portals: map[string]string{}}
	for {
		kind, body, err := readFrontend(conn)
		if err != nil {
			return err
		}
		if err := b.message(kind, body); err != nil {
			return err
		}
	}
}

func readFrontend(conn net.Conn) (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return 0, nil, err
	}
	body = make([]byte, binary.BigEndian.Uint32(head[1:])-4)
	_, err = io.ReadFull(conn, body)
	return head[0], body, err
}

// fakeBackend is one connection.
type fakeBackend struct {
	server              *fakeServer
	conn                net.Conn
	out                 []byte
	statements, portals map[string]string // name to text
	skip, copyIn        bool
	heard               bool // something evil, in this batch
}

func (b *fakeBackend) say(kind byte, body string) {
	b.out = append(pgwire.AppendHeader(b.out, kind, len(body)), body...)
}

func (b *fakeBackend) refuse(code string) {
	b.out = pgwire.AppendError(b.out, &pgwire.Failure{Severity: "ERROR", Code: code, Message: code})
}

func (b *fakeBackend) message(kind byte, body []byte) error {
	first, rest, _ := bytes.Cut(body, []byte{0})
	second, _, _ := bytes.Cut(rest, []byte{0})
	if b.copyIn && kind != 'd' && kind != 'S' && kind != 'H' {
		b.copyIn = false
		if kind == 'c' {
			b.say('C', "COPY 0\x00")
		} else {
			b.refuse("57014")
		}
		b.out = pgwire.AppendReady(b.out, pgwire.Idle)
		return b.flush()
	}
	if b.copyIn || b.skip && kind != 'S' {
		return nil
	}
	switch kind {
	case 'Q':
		b.query(string(first))
	case 'F':
		b.say('V', "\xff\xff\xff\xff")
		b.out = pgwire.AppendReady(b.out, pgwire.Idle)
	case 'S':
		b.skip = false
		b.out = pgwire.AppendReady(b.out, pgwire.Idle)
	case 'X':
		return io.EOF
	case 'P', 'B', 'D', 'E', 'C':
		b.extended(kind, string(first), string(second))
	}
	if kind == 'Q' || kind == 'S' || kind == 'F' || kind == 'H' {
		return b.flush()
	}
	return nil
}

func (b *fakeBackend) query(text string) {
	switch {
	case strings.Contains(text, evilWord):
		b.heard = true
		return
	case strings.HasPrefix(text, "copy"):
		b.copyIn = true
		b.say('G', "\x00\x00\x00")
		return
	case strings.HasPrefix(text, "DISCARD ALL"):
		b.say('C', "DISCARD ALL\x00")
	default:
		b.say('T', "\x00\x00")
		b.row(text)
	}
	b.out = pgwire.AppendReady(b.out, pgwire.Idle)
}

// row answers with the text that was asked.
func (b *fakeBackend) row(text string) {
	b.say('D', "\x00\x01"+string(binary.BigEndian.AppendUint32(nil, uint32(len(text))))+text)
	b.say('C', "SELECT 1\x00")
}

func (b *fakeBackend) extended(kind byte, first, second string) {
	text, found := "", true
	switch kind {
	case 'P':
		b.statements[first] = second
		b.say('1', "")
	case 'B':
		if text, found = b.statements[second]; found {
			b.portals[first] = text
			b.say('2', "")
		}
	case 'D':
		b.say('n', "")
	case 'E':
		if text, found = b.portals[first]; found && strings.Contains(text, evilWord) {
			b.heard = true
		} else if found {
			b.row(text)
		}
	case 'C':
		b.say('3', "")
	}
	if !found {
		b.refuse("26000")
		b.skip = true
	}
}

// flush sends the answers, or what is evil.
func (b *fakeBackend) flush() error {
	out := b.out
	b.out = nil
	if !b.heard {
		_, err := b.conn.Write(out)
		return err
	}
	b.heard = false
	b.server.mu.Lock()
	evil, whole := b.server.evil, b.server.whole
	b.server.mu.Unlock()
	if _, err := b.conn.Write(evil); err != nil || whole {
		return err
	}
	_ = b.conn.(*net.TCPConn).CloseWrite()
	_, _ = io.Copy(io.Discard, b.conn)
	b.server.ended <- struct{}{}
	return io.EOF
}
