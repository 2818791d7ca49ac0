package replication

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// pacedReader reads what has come in larger bites. A walsender sends each flush of the server by itself; to wake up for each costs the machine
// of a busy server more than all that is done with the WAL. So whoever has read everything looks again only a pause later, unless the
// pause says that somebody waits.
type pacedReader struct {
	source io.Reader
	conn   net.Conn // of source; nil until streaming begins: nothing is buffered or delayed before
	pause  func() time.Duration
	wake   chan struct{} // ends a pause

	buf     []byte
	unread  []byte    // of buf
	began   time.Time // of the last pause: nothing had been left unread
	arrived time.Time // no byte of unread has come before
	off     atomic.Bool
}

const (
	// biteSize is how much is read at once, at most.
	biteSize = 512 << 10
	// biteLarge is a read that needs no buffer between: somebody reads a message of that size.
	biteLarge = 64 << 10
	// receiveTimeout is how long the server may be silent. It is asked for a keepalive every few seconds.
	receiveTimeout = 60 * time.Second
	// pauseMin is the shortest pause that saves anything.
	pauseMin = 500 * time.Microsecond
)

func newPacedReader(source io.Reader) *pacedReader {
	return &pacedReader{source: source, wake: make(chan struct{}, 1)}
}

// begin buffers and pauses from now on.
func (r *pacedReader) begin(conn net.Conn, pause func() time.Duration) {
	r.conn, r.pause, r.buf = conn, pause, make([]byte, biteSize)
}

// interrupt ends a pause, and lets no other begin.
func (r *pacedReader) interrupt() {
	r.off.Store(true)
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Read implements io.Reader.
func (r *pacedReader) Read(p []byte) (int, error) {
	if r.conn == nil {
		return r.source.Read(p)
	}
	if len(r.unread) == 0 && len(p) >= biteLarge {
		return r.fill(p)
	}
	if len(r.unread) == 0 {
		n, err := r.fill(r.buf)
		if err != nil {
			return 0, err
		}
		r.unread = r.buf[:n]
	}
	n := copy(p, r.unread)
	r.unread = r.unread[n:]
	return n, nil
}

// fill reads what there is into a buffer, after a pause if there is nothing.
func (r *pacedReader) fill(buf []byte) (int, error) {
	pause := r.pause()
	if pause >= pauseMin && !r.off.Load() && r.pending() == 0 {
		if err := r.rest(pause); err != nil {
			return 0, fmt.Errorf("end a pause: %w", err)
		}
	}
	if err := r.conn.SetReadDeadline(time.Now().Add(receiveTimeout)); err != nil {
		return 0, err
	}
	if r.off.Load() { // asked behind the deadline: Interrupt sets one that is over
		return 0, ErrInterrupted
	}
	begin := time.Now()
	n, err := r.source.Read(buf)
	if r.arrived = time.Now(); r.arrived.Sub(begin) < pauseMin {
		// It was there: what the socket has not held during the pause waited in the server.
		r.arrived = latest(r.began, r.arrived.Add(-2*pause))
	}
	if n > 0 {
		return n, nil // an error that belongs to the next read comes again
	}
	return 0, err
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// rest pauses, unless it is woken. What comes meanwhile is not told to the runtime, which would wake up for it.
func (r *pacedReader) rest(pause time.Duration) error {
	r.began = time.Now()
	held := r.control(func(fd int) error { return setLowWater(fd, biteSize) }) == nil
	timer := time.NewTimer(pause)
	select {
	case <-timer.C:
	case <-r.wake:
		timer.Stop()
	}
	if !held {
		return nil
	}
	return r.control(func(fd int) error { return setLowWater(fd, 1) })
}

// pending is how many bytes the kernel holds for us; zero when it does not tell.
func (r *pacedReader) pending() (n int) {
	err := r.control(func(fd int) (err error) {
		n, err = unreadBytes(fd)
		return err
	})
	if err != nil {
		return 0
	}
	return n
}

var errNoSocket = errors.New("the connection is no socket of the system")

// control calls f with the socket below the connection.
func (r *pacedReader) control(f func(fd int) error) error {
	conn := r.conn
	if encrypted, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = encrypted.NetConn()
	}
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return errNoSocket
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	err = raw.Control(func(fd uintptr) { ferr = f(int(fd)) })
	return errors.Join(err, ferr)
}
