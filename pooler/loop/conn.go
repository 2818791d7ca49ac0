package loop

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Handler decides what becomes of what a socket sends. The loop that has the socket calls it, on its thread.
type Handler interface {
	// Ready is asked before the socket is read; if the answer is false it is read after the next Resume.
	Ready() bool
	// Input takes what has arrived, with what was not used last time in front of it, and returns how many bytes it has used. want is
	// how many bytes must be there next time, where that is known. in is only valid during the call.
	Input(in []byte) (used, want int)
	// Flushed says that everything was taken by the kernel after Blocked had been true.
	Flushed()
	// Ended says that nothing more will come: io.EOF, ErrWriteTimeout or what the kernel said. The handler closes the Conn.
	Ended(err error)
}

// ErrWriteTimeout says that a socket took nothing of what it was sent for too long.
var ErrWriteTimeout = errors.New("nothing of what was sent was taken for too long")

// Conn is a socket that a loop drives. Its methods belong to the thread of its loop, where nothing else is said.
type Conn struct {
	loop atomic.Pointer[Loop]
	fd   int32
	gen  uint32
	// mu guards a Conn that is First against being taken by one loop while another looks at an event of it. It is held while an event
	// is dealt with, and no other Conn's is taken then.
	mu      sync.Mutex
	handler Handler
	tls     *encryption // nil without TLS
	in      []byte      // arrived, and not used yet; nil when there is none
	out     []byte      // due, and not with the kernel yet; nil when there is none
	window  int32       // the most that is read at once

	paused  bool // nothing is read
	ready   bool // something may be there to be read
	hup     bool // the other side may have closed
	queued  bool // it is in Loop.again
	dirty   bool // it is in Loop.first or last
	stuck   bool // the kernel has not taken everything
	broken  bool // the kernel takes nothing any more
	ending  bool // it is closed once everything was sent
	closed  bool
	first   bool
	limited bool
}

// Options say how a Conn is treated.
type Options struct {
	First   bool   // it is written to before the others, since it then has work to do: a server
	Limited bool   // Config.WriteTimeout holds for it, and its end is noticed while it is paused: a client
	Early   []byte // has already been read from it
}

// NewConn takes a socket over, for Loop.Add. conn is a Stream, or a *tls.Conn over one, and is not to be used any more. It may be
// called on any thread.
func NewConn(conn net.Conn, options Options) (*Conn, error) {
	fd, encrypted, err := detach(conn)
	if err != nil {
		return nil, err
	}
	c := &Conn{fd: int32(fd), gen: generations.Add(1), tls: encrypted, window: bufferLen, first: options.First, limited: options.Limited}
	if encrypted != nil {
		encrypted.stream.conn = c
		encrypted.ahead = true
	}
	if len(options.Early) > 0 {
		c.in = append([]byte(nil), options.Early...)
	}
	return c, nil
}

// Discard closes a socket that was not added to a loop.
func (c *Conn) Discard() error { return syscall.Close(int(c.fd)) }

// Add gives a socket to the loop, which calls the handler from then on. It may be called on any thread. After an error the socket is
// closed.
func (l *Loop) Add(c *Conn, handler Handler) error {
	c.handler = handler
	c.loop.Store(l)
	begin := len(c.in) > 0 || c.tls != nil // something that was read before will not be reported
	enter(c)
	err := l.poll.add(c.fd, c.gen)
	if err == nil && begin && !l.Post(Func(func() { c.begin(l) })) {
		err = net.ErrClosed
	}
	if err != nil {
		c.closed = true
		remove(c)
		syscall.Close(int(c.fd))
		return fmt.Errorf("watch a socket: %w", err)
	}
	return nil
}

// begin looks at what was read before the loop had the socket.
func (c *Conn) begin(l *Loop) {
	if c.first {
		c.mu.Lock()
		defer c.mu.Unlock()
	}
	if c.loop.Load() == l {
		c.schedule()
	}
}

// Loop returns the loop that has the socket. It may be called on any thread.
func (c *Conn) Loop() *Loop { return c.loop.Load() }

// Take gives a socket that nobody uses to a loop, on whose thread it is called. What has arrived meanwhile is read there, and what was due is
// sent there. A socket that cannot be given on is an error: the caller closes it.
func (l *Loop) Take(c *Conn) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.loop.Load()
	if old == l {
		if c.ready {
			c.schedule()
		}
		return nil
	}
	if len(c.in) > 0 || c.stuck {
		return errInUse
	}
	if err := old.poll.remove(c.fd); err != nil {
		return fmt.Errorf("move a socket: %w", err)
	}
	c.loop.Store(l)
	c.ready, c.queued = false, false
	if c.tls != nil && c.tls.ahead {
		c.schedule()
	}
	if err := l.poll.add(c.fd, c.gen); err != nil { // reports what is there as an edge
		return fmt.Errorf("move a socket: %w", err)
	}
	if c.dirty { // something became due in the batch in which it was given back; the old loop passes it over
		c.dirty = false
		c.soil(l)
	}
	return nil
}

// errInUse says that a socket has something that belongs to who had it before.
var errInUse = errors.New("a socket is taken that is still in use")

// SetWindow bounds what is read at once.
func (c *Conn) SetWindow(n int) { c.window = int32(min(n, bufferLen)) }

// Pause stops reading.
func (c *Conn) Pause() { c.paused = true }

// Resume goes on reading, with what has not been used yet, before the present batch ends.
func (c *Conn) Resume() {
	if c.paused {
		c.paused = false
		c.schedule()
	}
}

// Paused reports whether the Conn is not being read.
func (c *Conn) Paused() bool { return c.paused }

// Blocked reports whether the kernel has not taken everything; Handler.Flushed is called when it has.
func (c *Conn) Blocked() bool { return c.stuck }

// Pending returns how many bytes are due and not with the kernel yet.
func (c *Conn) Pending() int {
	if c.tls != nil {
		return len(c.out) + len(c.tls.plain)
	}
	return len(c.out)
}

func (c *Conn) schedule() {
	if !c.queued && !c.closed {
		c.queued = true
		l := c.loop.Load()
		l.again = append(l.again, c)
	}
}

// event is told by the poller of l.
func (c *Conn) event(l *Loop, ready readiness) {
	if c.first {
		c.mu.Lock()
		defer c.mu.Unlock()
	}
	if c.loop.Load() != l {
		return // it was taken
	}
	if ready&writable != 0 && c.stuck {
		c.flush()
	}
	if ready&(readable|hungUp) == 0 || c.closed {
		return
	}
	c.ready = true
	c.hup = c.hup || ready&hungUp != 0
	c.look()
}

// look reads what there is, if it may be read.
func (c *Conn) look() {
	switch {
	case c.ending:
		c.discard()
	case c.paused:
		if c.hup && c.limited {
			c.notice()
		}
	case c.handler.Ready():
		c.read()
	}
}

// resumed looks at a socket without an event.
func (c *Conn) resumed(l *Loop) {
	if c.first {
		c.mu.Lock()
		defer c.mu.Unlock()
	}
	if c.loop.Load() != l {
		return
	}
	c.queued = false
	if c.closed {
		return
	}
	if c.broken && c.paused {
		c.handler.Ended(io.ErrClosedPipe)
		return
	}
	if len(c.in) > 0 && !c.paused && !c.ending {
		if !c.handler.Ready() {
			return
		}
		c.deliver(c.in)
	}
	if (c.ready || c.tls != nil && c.tls.ahead) && !c.closed {
		c.look()
	}
}

// notice ends a socket that is not read if there is nothing left that could be read.
func (c *Conn) notice() {
	switch n, errno := peek(c.fd); {
	case errno == syscall.EAGAIN:
		c.hup = false
	case errno != 0:
		c.handler.Ended(errno)
	case n == 0:
		c.handler.Ended(io.EOF)
	}
}

// discard reads what nobody wants any more, since closing a socket with something unread takes away what was sent last.
func (c *Conn) discard() {
	l := c.loop.Load()
	for range readRounds {
		if n, errno := receive(c.fd, l.input); n <= 0 || errno != 0 {
			break
		}
	}
}

// readRounds is how often one socket is read before the others have their turn.
const readRounds = 4

// read reads until there is nothing more, or until it is enough.
func (c *Conn) read() {
	l := c.loop.Load()
	for round := range readRounds {
		if c.first && round > 0 && (c.closed || !c.handler.Ready()) {
			return // the handler has passed it on, and what is left, its end included, is for who has it now
		}
		if c.tls != nil {
			if more := c.readEncrypted(l); !more {
				return
			}
			continue
		}
		buf, have := c.space(l.input)
		window := buf[have:min(len(buf), have+int(c.window))]
		n, ok := c.receive(l, window)
		if !ok {
			return
		}
		drained := n < len(window) && !c.hup
		c.ready = !drained
		c.deliver(buf[:have+n])
		if drained || c.closed || c.paused || c.ending {
			return
		}
	}
	c.schedule()
}

// receive reads once. ok is false when there was nothing, or when the handler was told that there will be nothing any more.
func (c *Conn) receive(l *Loop, window []byte) (n int, ok bool) {
	n, errno := receive(c.fd, window)
	l.counter.Reads.Add(1)
	switch {
	case errno == syscall.EAGAIN:
		l.counter.EmptyReads.Add(1)
		c.ready = false
	case errno != 0:
		c.handler.Ended(errno)
	case n == 0:
		c.handler.Ended(io.EOF)
	default:
		return n, true
	}
	return 0, false
}

// space returns where to read to: after what was not used yet, have bytes. That is common when there is none of it, or little.
func (c *Conn) space(common []byte) (buf []byte, have int) {
	if cap(c.in) > len(common)/2 {
		if len(c.in) == cap(c.in) {
			c.in = slices.Grow(c.in, len(c.in))
		}
		return c.in[:cap(c.in)], len(c.in)
	}
	return common, copy(common, c.in)
}

// deliver hands in to the handler and keeps what that does not use.
func (c *Conn) deliver(in []byte) {
	used, want := c.handler.Input(in)
	if !c.closed {
		c.keep(in[used:], want)
	}
}

// keep holds on to rest, which may lie in c.in itself.
func (c *Conn) keep(rest []byte, want int) {
	l := c.loop.Load()
	switch {
	case len(rest) == 0:
		l.free.put(c.in)
		c.in = nil
	case max(want, len(rest)) <= cap(c.in):
		c.in = append(c.in[:0], rest...)
	default:
		old := c.in
		c.in = append(l.free.get(max(want, len(rest))), rest...)
		l.free.put(old)
	}
}

// directMin is the length from which something is sent at once, instead of being copied to be sent with what follows.
const directMin = 16 << 10

// Write makes b due. It takes all of it, and copies what it keeps; a caller that sees Blocked or much Pending brings no more.
func (c *Conn) Write(b []byte) {
	if c.closed || c.broken || len(b) == 0 {
		return
	}
	l := c.loop.Load()
	if c.tls != nil {
		if c.tls.plain == nil {
			c.tls.plain = l.free.get(len(b))
		}
		c.tls.plain = append(c.tls.plain, b...)
		c.soil(l)
		if len(c.tls.plain) >= directMin && !c.stuck {
			c.flush()
		}
		return
	}
	if len(b) >= directMin && len(c.out) == 0 {
		b = b[c.transmit(l, b):]
	}
	if len(b) == 0 || c.broken {
		return
	}
	if c.out == nil {
		c.out = l.free.get(len(b))
	}
	c.out = append(c.out, b...)
	c.soil(l)
	if len(c.out) >= directMin && !c.stuck {
		c.flush()
	}
}

// soil puts the Conn on the list of those that are flushed at the end of the batch.
func (c *Conn) soil(l *Loop) {
	if c.dirty || c.stuck {
		return
	}
	c.dirty = true
	if c.first {
		l.first = append(l.first, c)
	} else {
		l.last = append(l.last, c)
	}
}

// transmit writes once and returns how much was taken.
func (c *Conn) transmit(l *Loop, b []byte) int {
	n, errno := transmit(c.fd, b)
	l.counter.Writes.Add(1)
	switch {
	case errno == syscall.EAGAIN:
		n = 0
	case errno != 0:
		c.fail(l)
		return len(b)
	}
	if n < len(b) && (!c.stuck || n > 0) {
		c.stuck = true
		l.blocked[c] = l.now
	}
	return n
}

// fail notes that nothing can be sent any more. What the other side has sent before it closed is still to be read, and the end is
// found there.
func (c *Conn) fail(l *Loop) {
	c.broken, c.hup, c.ready = true, true, true
	c.unblock(l)
	c.schedule()
}

func (c *Conn) unblock(l *Loop) {
	if c.stuck {
		c.stuck = false
		delete(l.blocked, c)
	}
}

// due flushes at the end of a batch of l. What was due may have been sent before, and the socket taken by another loop since then.
func (c *Conn) due(l *Loop) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.loop.Load() == l {
		c.flush()
	}
}

// flush writes what is due.
func (c *Conn) flush() {
	if c.closed {
		return
	}
	l := c.loop.Load()
	if c.tls != nil && len(c.tls.plain) > 0 && !c.broken {
		c.encrypt(l)
	}
	c.dirty = false
	if len(c.out) > 0 && !c.broken {
		n := c.transmit(l, c.out)
		if n < len(c.out) {
			c.out = c.out[:copy(c.out, c.out[n:])]
			return
		}
	}
	l.free.put(c.out)
	c.out = nil
	if c.ending {
		c.Close()
		return
	}
	if c.stuck {
		c.unblock(l)
		c.handler.Flushed()
	}
}

// Finish closes the socket once everything that is due was sent, or after so long. Its handler is not called any more.
func (c *Conn) Finish(within time.Duration) {
	if c.closed || c.ending {
		return
	}
	l := c.loop.Load()
	c.ending = true
	c.handler = nobody{}
	c.discard()
	if c.tls != nil {
		c.farewell(l)
	}
	l.ending[c] = l.now.Add(within)
	if !c.stuck {
		c.flush()
	}
}

// Shut closes the socket, on any thread.
func (c *Conn) Shut() {
	l := c.loop.Load()
	if !l.Post(Func(c.Close)) {
		return // the loop closes it at its end
	}
}

// Close closes the socket at once. Its handler is not called any more.
func (c *Conn) Close() {
	if c.closed {
		return
	}
	l := c.loop.Load()
	c.closed = true
	c.handler = nobody{}
	delete(l.ending, c)
	c.unblock(l)
	remove(c)
	syscall.Close(int(c.fd))
	l.free.put(c.out)
	c.in, c.out, c.tls = nil, nil, nil // in may be what the handler is looking at
}

// nobody handles what a socket that is being closed still says.
type nobody struct{}

func (nobody) Ready() bool                { return false }
func (nobody) Input(in []byte) (int, int) { return len(in), 0 }
func (nobody) Flushed()                   {}
func (nobody) Ended(error)                {}
