package loop

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"syscall"
)

// Stream is a net.Conn that can be given to a loop later, alone or under a *tls.Conn. Until then it is what it wraps.
type Stream struct {
	net.Conn
	early []byte // was read and given back
	conn  *Conn  // once a loop drives it; it is then used by TLS only
}

// NewStream wraps a TCP or Unix socket.
func NewStream(conn net.Conn) *Stream { return &Stream{Conn: conn} }

// Unread makes the next reads return these bytes, which it copies. It is called before a loop has the Stream.
func (s *Stream) Unread(b []byte) { s.early = append([]byte(nil), b...) }

// Read implements net.Conn.
func (s *Stream) Read(b []byte) (int, error) {
	if len(s.early) > 0 {
		n := copy(b, s.early)
		s.early = s.early[n:]
		return n, nil
	}
	if s.conn == nil {
		return s.Conn.Read(b)
	}
	e := s.conn.tls
	if len(e.cipher) == 0 {
		return 0, errNothing
	}
	n := copy(b, e.cipher)
	e.cipher = e.cipher[n:]
	return n, nil
}

// Write implements net.Conn.
func (s *Stream) Write(b []byte) (int, error) {
	if s.conn == nil {
		return s.Conn.Write(b)
	}
	c := s.conn
	l := c.loop.Load()
	if c.out == nil {
		c.out = l.free.get(len(b))
	}
	c.out = append(c.out, b...)
	c.soil(l)
	return len(b), nil
}

// nothing is the error of a read that would have to wait. crypto/tls goes on after an error that is temporary.
type nothing struct{}

func (nothing) Error() string   { return "nothing to be read now" }
func (nothing) Timeout() bool   { return true }
func (nothing) Temporary() bool { return true }

var errNothing net.Error = nothing{}

// detach takes the file descriptor out of a net.Conn.
func detach(conn net.Conn) (fd int, encrypted *encryption, err error) {
	stream, isStream := conn.(*Stream)
	if secure, isTLS := conn.(*tls.Conn); isTLS {
		if stream, isStream = secure.NetConn().(*Stream); isStream {
			encrypted = &encryption{stream: stream, conn: secure}
		}
	}
	if !isStream {
		return 0, nil, fmt.Errorf("a connection of type %T cannot be driven by a loop", conn)
	}
	socket, hasFD := stream.Conn.(syscall.Conn)
	if !hasFD {
		return 0, nil, fmt.Errorf("a connection of type %T has no descriptor", stream.Conn)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0, nil, err
	}
	var failed error
	err = raw.Control(func(original uintptr) { fd, failed = duplicate(original) })
	if err = errors.Join(err, failed); err != nil {
		return 0, nil, err
	}
	if err := stream.Conn.Close(); err != nil {
		syscall.Close(fd)
		return 0, nil, err
	}
	return fd, encrypted, nil
}

func duplicate(fd uintptr) (int, error) {
	n, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_DUPFD_CLOEXEC, 0)
	if errno != 0 {
		return 0, fmt.Errorf("duplicate a socket: %w", errno)
	}
	return int(n), nil
}
