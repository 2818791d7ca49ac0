package pool

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/config"
)

// postgres is as much of a server as a pool needs: it lets everybody in, or nobody, and answers DISCARD ALL. It lives in a bubble
// of synctest, so that hours pass in no time and every wait ends for a reason.
type postgres struct {
	mu       sync.Mutex
	refuses  bool
	refusal  error       // of connects
	code     string      // it refuses logins with this SQLSTATE
	late     bool        // it takes a while to refuse
	hangs    bool        // in DISCARD ALL
	stalls   bool        // the first write returns long after it was answered, as it does on a machine without a free core
	attempts []time.Time // of connecting
	backends []net.Conn  // in the order of their logins
	discards int
	texts    []string // all queries
}

func (f *postgres) dial(context.Context, string, string) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attempts = append(f.attempts, time.Now())
	if f.late {
		f.mu.Unlock()
		<-time.After(20 * time.Millisecond)
		f.mu.Lock()
	}
	if f.refuses {
		return nil, errors.New("the fake refuses")
	}
	if f.refusal != nil {
		return nil, f.refusal
	}
	near, far := net.Pipe()
	f.backends = append(f.backends, far)
	go f.backend(far, uint32(len(f.backends)))
	if f.stalls {
		return &stalling{Conn: near}, nil
	}
	return near, nil
}

type stalling struct {
	net.Conn
	done bool
}

func (s *stalling) Write(b []byte) (int, error) {
	n, err := s.Conn.Write(b)
	if !s.done {
		s.done = true
		<-time.After(100 * time.Millisecond)
	}
	return n, err
}

// backend ends with its connection.
func (f *postgres) backend(conn net.Conn, pid uint32) {
	defer conn.Close()
	backend := pgproto3.NewBackend(conn, conn)
	if _, err := backend.ReceiveStartupMessage(); err != nil {
		return
	}
	f.mu.Lock()
	code := f.code
	f.mu.Unlock()
	if code != "" {
		backend.Send(&pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: code, Message: "not now"})
		_ = backend.Flush()
		return
	}
	backend.Send(&pgproto3.AuthenticationOk{})
	backend.Send(&pgproto3.BackendKeyData{ProcessID: pid, SecretKey: []byte{1, 2, 3, 4}})
	backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	for backend.Flush() == nil {
		message, err := backend.Receive()
		if err != nil {
			return
		}
		text := message.(*pgproto3.Query).String
		f.mu.Lock()
		f.texts = append(f.texts, text)
		hangs := f.hangs
		if text == "DISCARD ALL" {
			f.discards++
		}
		f.mu.Unlock()
		if hangs {
			continue
		}
		if text != "DISCARD ALL" {
			backend.Send(&pgproto3.EmptyQueryResponse{})
			backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
			continue
		}
		backend.Send(&pgproto3.CommandComplete{CommandTag: []byte("DISCARD ALL")})
		backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	}
}

func (f *postgres) set(change func(*postgres)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *postgres) connects() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]time.Time(nil), f.attempts...)
}

// settings are the defaults of config/settings.go, with a small pool.
func settings(size int) config.Pooler {
	second := config.Duration(time.Second)
	return config.Pooler{
		DefaultPoolSize: size, QueryWaitTimeout: 120 * second, ServerConnectTimeout: 15 * second, ServerLoginRetry: 15 * second,
		ServerIdleTimeout: 600 * second, ServerLifetime: 3600 * second, ServerResetTimeout: 15 * second, PktBuf: 1 << 10,
		MaxPools: 2, MaxParameterSets: 2,
	}
}

// world is one pool with its server.
type world struct {
	set  *Set
	pool *Pool
	fake *postgres
}

func newWorld(t testing.TB, cfg config.Pooler) *world {
	t.Helper()
	w := &world{fake: &postgres{}}
	w.set = NewSet(cfg, "host=127.0.0.1 user=u sslmode=disable", func(string) Credentials { return Credentials{} },
		Driver{Dial: w.fake.dial, Attach: attach}, slog.New(slog.NewTextHandler(io.Discard, nil)))
	var err error
	if w.pool, err = w.set.Get("d", "u"); err != nil {
		t.Fatal(err)
	}
	return w
}

// piped drives a server with a goroutine.
type piped struct {
	server *Server
	conn   net.Conn
}

func attach(server *Server, conn net.Conn) (Wire, error) { return &piped{server, conn}, nil }

func (w *piped) Start() error {
	go w.read()
	return nil
}

func (w *piped) Post(b []byte) { w.Write(b) }

func (w *piped) Write(b []byte) {
	go func() { _, _ = w.conn.Write(b) }() // read finds out
}

func (w *piped) Shut() { w.conn.Close() }

func (w *piped) read() {
	buf := make([]byte, 1<<10)
	for have := 0; ; {
		n, err := w.conn.Read(buf[have:])
		if err == nil && w.server.Owner() == nil {
			err = ErrUnasked
		}
		used := 0
		if err == nil {
			have += n
			used, err = w.server.Deliver(buf[:have])
		}
		if err != nil {
			w.server.Fail(err)
			return
		}
		have = copy(buf, buf[used:have])
	}
}

// inBubble runs a test on a pool of so many servers. After it nothing may be left, or the bubble does not end.
func inBubble(t *testing.T, cfg config.Pooler, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, cfg)
		defer w.set.Close()
		test(t, w)
	})
}

// pass lets time pass, and everything happen that happens meanwhile.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func (w *world) stats() Stats { return w.pool.stats(time.Now()) }

// borrower is a client as far as a pool knows one.
type borrower struct {
	pool   *Pool
	waiter *Waiter
	begun  time.Time

	mu     sync.Mutex
	done   bool // the wait has ended
	server *Server
	err    error
	waited time.Duration
	lost   bool
}

func (b *borrower) FromServer(*Server, []byte) (int, error) { return 0, ErrUnasked }

func (b *borrower) ServerLost(*Server, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lost = true
}

func (b *borrower) Granted(server *Server, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.done {
		panic("granted twice")
	}
	b.done, b.server, b.err, b.waited = true, server, err, time.Since(b.begun)
}

// errQuit stands for a wait that its owner has given up.
var errQuit = errors.New("the wait was given up")

func (b *borrower) quit() {
	if b.pool.Quit(b.waiter) {
		b.Granted(nil, errQuit)
	}
}

// borrow begins to acquire, and returns when that is done or waits.
func (w *world) borrow() *borrower {
	b := &borrower{pool: w.pool, begun: time.Now()}
	b.waiter = NewWaiter(b)
	w.again(b)
	return b
}

func (w *world) again(b *borrower) {
	b.done = false
	if server, err := w.pool.Acquire(b.waiter); server != nil || err != nil {
		b.Granted(server, err)
	}
	synctest.Wait()
}

// outcome is what has come of it so far: all zero while it waits.
func (b *borrower) outcome() (server *Server, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.server, b.err
}

func (b *borrower) waits() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.done
}

// must returns the server that was lent.
func (b *borrower) must(t testing.TB) *Server {
	t.Helper()
	server, err := b.outcome()
	if server == nil || err != nil {
		t.Fatalf("no server was lent: %v, waiting %v", err, b.waits())
	}
	return server
}
