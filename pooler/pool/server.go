package pool

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pitr/pooler/session"
)

// Owner is whom a server is lent to. FromServer and ServerLost are called by whoever reads the server.
type Owner interface {
	// Granted ends a wait: with a server that is lent to the owner now, or with an error of Acquire, or ErrWaitTimeout. It is called by
	// anybody, under a lock of the pool, so that it only notes what has come and returns.
	Granted(server *Server, err error)
	// FromServer takes what server has sent and returns how many bytes it has used; the others come again with more behind them. An
	// error closes the server. It is ErrUnasked when the owner has not linked the server, or no longer has.
	FromServer(server *Server, in []byte) (n int, err error)
	// ServerLost says that the connection has ended. If the server is linked the owner has to release it.
	ServerLost(server *Server, err error)
}

// Wire is how a server is written to. Whoever drives it calls Server.Deliver and Server.Fail.
type Wire interface {
	Start() error   // begins to read
	Write(b []byte) // takes all; what goes wrong is told by Server.Fail
	Post(b []byte)  // does the same on any goroutine, while nobody has the server
	Shut()          // closes, on any goroutine, without waiting
}

// state is the life of a server.
type state uint8

const (
	stateNew      state = iota // logged in, nobody's yet
	stateIdle                  // nobody's
	stateUsed                  // nobody's for so long that it is tested before it is lent
	stateTesting               // on its way from there
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
	wire   Wire
	origin *pgconn.PgConn // hijacked; knows how to send a cancel
	at     Address        // as it is configured
	remote net.Addr
	born   time.Time
	dies   time.Time // it is closed when it is next given back; zero: never

	// Guarded by Pool.mu.
	state     state
	idleSince time.Time
	cleanBy   time.Time
	cancels   int
	suspect   bool   // a cancel was sent that may still arrive
	leaves    string // why it is closed when it is next given back; empty: it is not

	// mu guards who gets what the server sends.
	mu    sync.Mutex
	owner Owner
	err   error // why the connection has ended
}

func (s *Server) tooOld(now time.Time) bool { return !s.dies.IsZero() && now.After(s.dies) }

// move is the only place where a server's state changes. The caller holds Pool.mu.
func (s *Server) move(to state) {
	legal := false
	switch to {
	case stateIdle, stateActive:
		legal = s.state == stateNew || s.state == stateActive || s.state == stateCleaning || s.state == stateTesting || s.state == stateIdle && to == stateActive
	case stateUsed:
		legal = s.state == stateNew || s.state == stateActive || s.state == stateCleaning || s.state == stateTesting || s.state == stateIdle
	case stateTesting:
		legal = s.state == stateUsed
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

// Leaves reports whether the server is closed when it is next given back.
func (s *Server) Leaves() bool {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	return s.leaves != ""
}

// Write sends to the server. Only the owner may.
func (s *Server) Write(b []byte) { s.wire.Write(b) }

// Wire returns what Set.Attach has made of the connection.
func (s *Server) Wire() Wire { return s.wire }

// Owner returns to whom the server is lent, nil when to nobody.
func (s *Server) Owner() Owner { return s.currentOwner() }

// Cancel asks Postgres to cancel what the server does, and returns once Postgres has taken notice. The caller has it on Hold.
func (s *Server) Cancel(ctx context.Context) error { return s.origin.CancelRequest(ctx) }

func (s *Server) close() { s.wire.Shut() }

// Fail ends the connection, whoever has it. Whoever reads the server calls it when there is nothing more to be read.
func (s *Server) Fail(err error) {
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

// Unasked says that something has come while the server has no owner. It is then closed, unless it was lent meanwhile.
func (s *Server) Unasked() { s.pool.unasked(s) }

// ErrUnasked says that a server has sent something while nobody was linked to it: there is no telling what it thinks.
var ErrUnasked = errors.New("the server sent something that nobody asked for")

// Deliver hands what the server has sent to its owner and returns how many bytes were used; the others come again with more behind
// them. An error ends the connection: the caller closes it with Fail.
func (s *Server) Deliver(in []byte) (used int, err error) {
	owner := s.currentOwner()
	if owner == nil {
		return 0, ErrUnasked
	}
	return owner.FromServer(s, in)
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

func (cleaner) Granted(*Server, error) {}

func (cleaner) ServerLost(*Server, error) {}
