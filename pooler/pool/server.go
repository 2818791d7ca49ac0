package pool

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pitr/pooler/session"
)

// Owner is whom a server is lent to. The server's own goroutine calls it.
type Owner interface {
	// FromServer takes what server has sent and returns how many bytes it has used; the others come again with more behind them. An
	// error closes the server. It is ErrUnasked when the owner has not linked the server, or no longer has.
	FromServer(server *Server, in []byte) (n int, err error)
	// ServerLost says that the connection has ended. If the server is linked the owner has to release it.
	ServerLost(server *Server, err error)
}

// state is the life of a server.
type state uint8

const (
	stateNew      state = iota // logged in, nobody's yet
	stateIdle                  // nobody's
	stateActive                // lent
	stateHeld                  // given back while a cancel is on its way
	stateCleaning              // given back dirty
	stateClosed
)

// Server is one connection to Postgres.
type Server struct {
	// State is what its session knows of it. The owner owns it.
	State *session.Server

	pool   *Pool
	conn   net.Conn
	origin *pgconn.PgConn // hijacked; knows how to send a cancel
	born   time.Time

	// Guarded by Pool.mu.
	state     state
	idleSince time.Time
	cleanBy   time.Time
	cancels   int
	suspect   bool // a cancel was sent that may still arrive

	// mu guards who gets what the server sends.
	mu    sync.Mutex
	owner Owner
	err   error // why the connection has ended
}

// move is the only place where a server's state changes. The caller holds Pool.mu.
func (s *Server) move(to state) {
	legal := false
	switch to {
	case stateIdle, stateActive:
		legal = s.state == stateNew || s.state == stateActive || s.state == stateCleaning || s.state == stateIdle && to == stateActive
	case stateHeld:
		legal = s.state == stateActive
	case stateCleaning:
		legal = s.state == stateActive || s.state == stateHeld
	case stateClosed:
		legal = s.state != stateClosed
	}
	if !legal {
		panic("pool: illegal change of a server's state")
	}
	s.state = to
}

func (s *Server) lend(owner Owner) {
	s.move(stateActive)
	s.setOwner(owner)
}

func (s *Server) setOwner(owner Owner) {
	s.mu.Lock()
	s.owner = owner
	s.mu.Unlock()
}

func (s *Server) currentOwner() Owner {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.owner
}

func (s *Server) isLost() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err != nil
}

// Lost returns why the connection has ended, nil as long as it has not. An owner asks after it has linked the server.
func (s *Server) Lost() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Process returns the process id of the server's backend.
func (s *Server) Process() uint32 { return s.origin.PID() }

// Write sends to the server. Only the owner may.
func (s *Server) Write(b []byte) error {
	_, err := s.conn.Write(b)
	return err
}

// Cancel asks Postgres to cancel what the server does, and returns once Postgres has taken notice. The caller has it on Hold.
func (s *Server) Cancel(ctx context.Context) error { return s.origin.CancelRequest(ctx) }

// close closes the socket itself: the farewell of TLS could block.
func (s *Server) close() {
	if encrypted, ok := s.conn.(*tls.Conn); ok {
		encrypted.NetConn().Close()
		return
	}
	s.conn.Close()
}

// fail ends the connection, whoever has it.
func (s *Server) fail(err error) {
	s.mu.Lock()
	first := s.err == nil
	if first {
		s.err = err
	}
	s.mu.Unlock()
	s.close()
	if first {
		s.pool.lost(s, err)
	}
}

// ErrUnasked says that a server has sent something while nobody was linked to it: there is no telling what it thinks.
var ErrUnasked = errors.New("the server sent something that nobody asked for")

var errOverlong = errors.New("the server sent a message that is too long to be read as a whole")

// read is the server's goroutine: it passes on what comes until the connection ends.
func (s *Server) read(bufferLen int) {
	buf := make([]byte, bufferLen)
	have := 0
	for {
		n, err := s.conn.Read(buf[have:])
		if err != nil {
			s.fail(err)
			return
		}
		have += n
		owner := s.currentOwner()
		if owner == nil {
			s.fail(ErrUnasked)
			return
		}
		used, err := owner.FromServer(s, buf[:have])
		if err != nil {
			s.fail(err)
			return
		}
		have = copy(buf, buf[used:have])
		if have == len(buf) {
			s.fail(errOverlong)
			return
		}
	}
}

// cleaner owns a server while it is made clean.
type cleaner struct{}

func (cleaner) FromServer(server *Server, in []byte) (n int, err error) {
	n, done, err := server.State.Clean(in)
	if done {
		server.pool.cleaned(server)
	}
	return n, err
}

func (cleaner) ServerLost(*Server, error) {}
