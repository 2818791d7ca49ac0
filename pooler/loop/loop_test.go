package loop

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// started returns a loop that runs until the test ends.
func started(t testing.TB, cfg Config) *Loop {
	t.Helper()
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Run() }()
	t.Cleanup(func() {
		l.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l
}

// pair returns both ends of a TCP connection.
func pair(t testing.TB) (near, far net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if near, err = net.Dial("tcp", listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	return near, far
}

// on runs a function on the loop's thread and waits for it.
func on(t testing.TB, l *Loop, do func()) {
	t.Helper()
	done := make(chan struct{})
	if !l.Post(Func(func() { do(); close(done) })) {
		t.Fatal("the loop has stopped")
	}
	<-done
}

// echo sends back what it gets, in pieces that are a multiple of unit bytes.
type echo struct {
	conn  *Conn
	unit  int
	ended chan error // has room for one
}

func (e *echo) Ready() bool { return true }

func (e *echo) Input(in []byte) (used, want int) {
	if e.conn.Blocked() {
		e.conn.Pause()
		return 0, 0
	}
	used = len(in) / e.unit * e.unit
	e.conn.Write(in[:used])
	return used, e.unit
}

func (e *echo) Flushed() { e.conn.Resume() }

func (e *echo) Ended(err error) {
	e.ended <- err
	e.conn.Finish(time.Second)
}

func attachEcho(t testing.TB, l *Loop, conn net.Conn, unit int, options Options) *echo {
	t.Helper()
	taken, err := NewConn(conn, options)
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{conn: taken, unit: unit, ended: make(chan error, 1)}
	if err := l.Add(taken, e); err != nil {
		t.Fatal(err)
	}
	return e
}

// checkEcho sends n random bytes in random pieces and compares what comes back.
func checkEcho(t *testing.T, conn net.Conn, n int, seed uint64) {
	t.Helper()
	random := mathrand.New(mathrand.NewPCG(seed, 1))
	sent := make([]byte, n)
	for i := range sent {
		sent[i] = byte(random.Uint32())
	}
	var wait sync.WaitGroup
	wait.Go(func() {
		for rest := sent; len(rest) > 0; {
			k := min(len(rest), 1+random.IntN(200_000))
			if _, err := conn.Write(rest[:k]); err != nil {
				t.Error(err)
				return
			}
			rest = rest[k:]
		}
	})
	got := make([]byte, n)
	if _, err := io.ReadFull(conn, got); err != nil {
		t.Error(err)
	}
	wait.Wait()
	if !bytes.Equal(got, sent) {
		t.Error("what came back is not what was sent")
	}
}

func TestEverythingComesBackInOrder(t *testing.T) {
	l := started(t, Config{})
	for n, unit := range []int{1, 7, 4096, 100_000} {
		near, far := pair(t)
		e := attachEcho(t, l, NewStream(far), unit, Options{})
		checkEcho(t, near, unit*(8<<20/unit), uint64(n))
		near.Close()
		if err := <-e.ended; err != io.EOF {
			t.Error(err)
		}
	}
}

func TestManySocketsAtOnce(t *testing.T) {
	l := started(t, Config{})
	var wait sync.WaitGroup
	for n := range 50 {
		near, far := pair(t)
		attachEcho(t, l, NewStream(far), 1, Options{First: n%2 == 0})
		wait.Go(func() { checkEcho(t, near, 200_000, uint64(n)) })
	}
	wait.Wait()
}

func TestWhatWasReadBeforeComesFirst(t *testing.T) {
	l := started(t, Config{})
	near, far := pair(t)
	attachEcho(t, l, NewStream(far), 1, Options{Early: []byte("early ")})
	if _, err := near.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("early late"))
	if _, err := io.ReadFull(near, got); err != nil || string(got) != "early late" {
		t.Errorf("%q, %v", got, err)
	}
}

func certificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestEncryptedSocketsEchoToo(t *testing.T) {
	l := started(t, Config{})
	cfg := &tls.Config{Certificates: []tls.Certificate{certificate(t)}}
	for n, unit := range []int{1, 7, 100_000} {
		near, far := pair(t)
		secure := tls.Server(NewStream(far), cfg)
		client := tls.Client(near, &tls.Config{InsecureSkipVerify: true})
		handshake := make(chan error, 1)
		go func() { handshake <- client.Handshake() }()
		if err := errors.Join(secure.Handshake(), <-handshake); err != nil {
			t.Fatal(err)
		}
		e := attachEcho(t, l, secure, unit, Options{Limited: true})
		checkEcho(t, client, unit*(4<<20/unit), uint64(n))
		if err := client.Close(); err != nil { // says so before it closes
			t.Error(err)
		}
		if err := <-e.ended; err != io.EOF {
			t.Error(err)
		}
	}
}

// keeper takes nothing until it is told to.
type keeper struct {
	conn  *Conn
	ready bool
	got   []byte
	ended error
}

func (k *keeper) Ready() bool { return k.ready }

func (k *keeper) Input(in []byte) (used, want int) {
	k.got = append(k.got, in...)
	return len(in), 0
}

func (k *keeper) Flushed() {}

func (k *keeper) Ended(err error) {
	k.ended = err
	k.conn.Close()
}

func attachKeeper(t testing.TB, l *Loop, options Options) (*keeper, net.Conn) {
	t.Helper()
	near, far := pair(t)
	conn, err := NewConn(NewStream(far), options)
	if err != nil {
		t.Fatal(err)
	}
	k := &keeper{conn: conn, ready: true}
	conn.Pause()
	if err := l.Add(conn, k); err != nil {
		t.Fatal(err)
	}
	return k, near
}

func until(t testing.TB, l *Loop, what string, condition func() bool) {
	t.Helper()
	timeout := time.NewTimer(10 * time.Second)
	defer timeout.Stop()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		done := false
		on(t, l, func() { done = condition() })
		if done {
			return
		}
		select {
		case <-timeout.C:
			t.Fatalf("never: %s", what)
		case <-ticker.C:
		}
	}
}

func TestPausedSocketIsNotReadUntilItIsResumed(t *testing.T) {
	l := started(t, Config{})
	k, near := attachKeeper(t, l, Options{})
	if _, err := near.Write([]byte("wait")); err != nil {
		t.Fatal(err)
	}
	until(t, l, "the event", func() bool { return k.conn.ready })
	on(t, l, func() {
		if len(k.got) > 0 {
			t.Errorf("a paused socket was read: %q", k.got)
		}
		k.conn.Resume()
	})
	until(t, l, "the input", func() bool { return string(k.got) == "wait" })
}

func TestEndOfPausedSocketIsNoticedIfNothingIsLeft(t *testing.T) {
	l := started(t, Config{})
	gone, near := attachKeeper(t, l, Options{Limited: true})
	near.Close()
	until(t, l, "the end", func() bool { return gone.ended == io.EOF })
	wants, near := attachKeeper(t, l, Options{Limited: true})
	if _, err := near.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	near.Close()
	until(t, l, "the event", func() bool { return wants.conn.hup })
	on(t, l, func() {
		if wants.ended != nil {
			t.Errorf("ended with something unread: %v", wants.ended)
		}
		wants.conn.Resume()
	})
	until(t, l, "both", func() bool { return string(wants.got) == "last words" && wants.ended == io.EOF })
}

func TestSocketThatTakesNothingIsEnded(t *testing.T) {
	l := started(t, Config{WriteTimeout: 300 * time.Millisecond})
	limited, _ := attachKeeper(t, l, Options{Limited: true})
	other, _ := attachKeeper(t, l, Options{})
	on(t, l, func() {
		for range 200 {
			limited.conn.Write(make([]byte, 100_000))
			other.conn.Write(make([]byte, 100_000))
		}
		if !limited.conn.Blocked() || !other.conn.Blocked() {
			t.Error("the kernel took everything")
		}
	})
	until(t, l, "the end", func() bool { return errors.Is(limited.ended, ErrWriteTimeout) })
	on(t, l, func() {
		if other.ended != nil {
			t.Error("one without a limit was ended:", other.ended)
		}
	})
}

func TestFinishSendsWhatIsDueAndNotForEver(t *testing.T) {
	l := started(t, Config{})
	k, near := attachKeeper(t, l, Options{})
	if _, err := near.Write([]byte("unread, which would take away what is sent last")); err != nil {
		t.Fatal(err)
	}
	until(t, l, "the event", func() bool { return k.conn.ready })
	on(t, l, func() {
		k.conn.Write([]byte("goodbye"))
		k.conn.Finish(time.Second)
		k.conn.Write([]byte("nobody hears this"))
	})
	if got, err := io.ReadAll(near); err != nil || string(got) != "goodbye" {
		t.Errorf("%q, %v", got, err)
	}
	stuck, _ := attachKeeper(t, l, Options{})
	on(t, l, func() {
		stuck.conn.Write(make([]byte, 20<<20))
		stuck.conn.Finish(200 * time.Millisecond)
	})
	until(t, l, "the end of patience", func() bool { return stuck.conn.closed })
}

// TestIdleSocketMovesBetweenLoops lets sockets wander at random while the other side talks to them: each byte must come, once.
func TestIdleSocketMovesBetweenLoops(t *testing.T) {
	loops := []*Loop{started(t, Config{}), started(t, Config{})}
	wanderer := &wanderer{}
	near, far := pair(t)
	conn, err := NewConn(NewStream(far), Options{First: true})
	if err != nil {
		t.Fatal(err)
	}
	wanderer.conn = conn
	if err := loops[0].Add(conn, wanderer); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 1)
	for n := range 2000 {
		l := loops[mathrand.IntN(2)]
		before, after := n%3 == 0, n%3 == 1
		if before {
			send(t, near)
		}
		on(t, l, func() {
			wanderer.hold(l)
			if err := l.Take(conn); err != nil {
				t.Error(err)
			}
		})
		if after || !before {
			send(t, near)
		}
		if _, err := io.ReadFull(near, answer); err != nil {
			t.Fatal(err)
		}
		on(t, l, func() { wanderer.hold(nil) })
	}
	on(t, conn.Loop(), conn.Close)
}

func send(t testing.TB, conn net.Conn) {
	t.Helper()
	if _, err := conn.Write([]byte{'x'}); err != nil {
		t.Fatal(err)
	}
}

// wanderer answers each byte, on the loop that holds it.
type wanderer struct {
	conn *Conn

	mu     sync.Mutex // guards holder
	holder *Loop
}

func (w *wanderer) hold(l *Loop) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holder = l
}

func (w *wanderer) Ready() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.holder == w.conn.Loop()
}

func (w *wanderer) Input(in []byte) (used, want int) {
	w.conn.Write(in)
	return len(in), 0
}

func (w *wanderer) Flushed()    {}
func (w *wanderer) Ended(error) { w.conn.Close() }

func TestStopDoesWhatWasPostedAndNothingMore(t *testing.T) {
	l, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	k, near := attachKeeper(t, l, Options{})
	done := 0
	l.Post(Func(func() { done++ }))
	l.Stop()
	if l.Post(Func(func() { done++ })) {
		t.Error("a loop that was stopped took a task")
	}
	if err := l.Run(); err != nil || done != 1 {
		t.Errorf("%v, %d tasks were done", err, done)
	}
	if _, err := near.Read(make([]byte, 1)); err != io.EOF || !k.conn.closed {
		t.Errorf("the socket is open: %v", err)
	}
}

// TestNothingIsAllocatedPerMessage is law for the hot path.
func TestNothingIsAllocatedPerMessage(t *testing.T) {
	l := started(t, Config{})
	near, far := pair(t)
	attachEcho(t, l, NewStream(far), 1, Options{})
	buf := make([]byte, 100)
	roundTrip := func() {
		if _, err := near.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(near, buf); err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(1000, roundTrip); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkEcho(b *testing.B) {
	l := started(b, Config{})
	near, far := pair(b)
	attachEcho(b, l, NewStream(far), 1, Options{})
	buf := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := near.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(near, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// giver passes its socket on as soon as it has read something.
type giver struct {
	conn  *Conn
	mine  bool
	ended bool
}

func (g *giver) Ready() bool { return g.mine }

func (g *giver) Input(in []byte) (used, want int) {
	g.mine = false
	return len(in), 0
}

func (g *giver) Flushed() {}

func (g *giver) Ended(error) { g.ended = true }

// TestSocketThatWasPassedOnIsNotReadOn lets the other side's end come together with what makes the handler pass its socket on.
func TestSocketThatWasPassedOnIsNotReadOn(t *testing.T) {
	l := started(t, Config{})
	near, far := pair(t)
	conn, err := NewConn(NewStream(far), Options{First: true})
	if err != nil {
		t.Fatal(err)
	}
	g := &giver{conn: conn, mine: true}
	conn.Pause()
	if err := l.Add(conn, g); err != nil {
		t.Fatal(err)
	}
	send(t, near)
	near.Close()
	until(t, l, "both events", func() bool { return conn.hup })
	on(t, l, conn.Resume)
	until(t, l, "the input", func() bool { return !g.mine })
	on(t, l, func() {
		if g.ended || !conn.ready {
			t.Errorf("ended %v, to be read by the next %v", g.ended, conn.ready)
		}
		conn.Close()
	})
}
