// Package pool owns the connections to Postgres: it dials them, lends each to one owner at a time, and decides who is next. Its
// limits, its queue (first in, first out over clients; last in, first out over servers) and its statistics are those of the
// whole process. It never looks into what a client and a server say to each other; package session does.
package pool

import (
	"log/slog"
	"sync"
	"time"

	"pitr/internal/pgwire"
	"pitr/pooler/session"
)

// Key names a pool: the database as clients call it, and the user that logs in to the server.
type Key struct{ Database, User string }

// Pool holds the server connections of one key.
type Pool struct {
	key  Key
	set  *Set
	size int // most connections
	dial dialer
	log  *slog.Logger

	queries, transactions histogram

	// mu guards everything below and the life of every server in the pool. Nothing is read, written, dialled or waited for while it
	// is held; Server.mu and nothing else may be taken under it.
	mu         sync.Mutex
	servers    map[*Server]struct{}
	idle       []*Server // the last one is given first
	waiters    queue
	timeout    *time.Timer // ends waits that have lasted for too long
	watching   bool        // it runs
	connecting int
	closed     bool
	paused     bool        // nobody is lent a server
	listeners  []*Listener // that log in as the pool's clients do
	failures   int         // consecutive failed connects
	retryAt    time.Time   // no connect before that
	lastErr    *ConnectError
	welcomes   map[string][]pgwire.Param // what a login with these settings reports
	baseline   []pgwire.Param            // what a login without settings reported last
	users      int                       // clients that have this pool
	emptySince time.Time
	counters   Counters
}

// Key returns the pool's key.
func (p *Pool) Key() Key { return p.key }

// Release takes a server back from its owner, in the condition that the owner's session says it is in.
func (p *Pool) Release(server *Server, condition session.Condition) {
	p.mu.Lock()
	switch {
	case condition == session.Broken || p.closed || server.suspect || server.isLost():
		p.remove(server)
		p.mu.Unlock()
	case server.cancels > 0:
		server.move(stateHeld)
		server.setOwner(nil)
		p.mu.Unlock()
	case condition == session.Dirty:
		p.cleanAndUnlock(server)
	default:
		p.give(server)
		p.mu.Unlock()
	}
}

// give hands a clean server to who is first in the queue, or keeps it. The caller holds mu.
func (p *Pool) give(server *Server) {
	if server.state == stateClosed {
		return // it was lost in the moment in which it came
	}
	now := time.Now()
	if p.closed || p.paused || server.suspect || server.isLost() || p.set.tooOld(server, now) {
		p.remove(server)
		return
	}
	w := p.waiters.first
	if w == nil {
		server.move(stateIdle)
		server.idleSince = now
		server.setOwner(nil)
		p.idle = append(p.idle, server)
		return
	}
	server.lend(w.owner)
	p.settle(w, now, server, nil)
}

// cleanAndUnlock makes a dirty server clean before it is given on. The caller holds mu, which is released.
func (p *Pool) cleanAndUnlock(server *Server) {
	clean := server.State.AppendClean(nil) // before the cleaner, whose State it then is, can be called
	server.move(stateCleaning)
	server.setOwner(cleaner{})
	server.cleanBy = time.Now().Add(p.set.cfg.ServerResetTimeout.D())
	p.counters.Cleanings++
	p.mu.Unlock()
	server.wire.Write(clean)
}

// remove closes a server and forgets it. The caller holds mu.
func (p *Pool) remove(server *Server) {
	if server.state == stateClosed {
		return
	}
	if server.state == stateIdle {
		for i, idle := range p.idle {
			if idle == server {
				p.idle = append(p.idle[:i], p.idle[i+1:]...)
				break
			}
		}
	}
	server.move(stateClosed)
	server.setOwner(nil)
	delete(p.servers, server)
	p.counters.Closed++
	server.close()
	p.launch(time.Now())
}

// unasked deals with something that a server has sent while it seemed to be nobody's.
func (p *Pool) unasked(server *Server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch server.state {
	case stateIdle:
		p.log.Warn("server connection lost", "database", p.key.Database, "user", p.key.User, "pid", server.Process(), "error", ErrUnasked)
		p.remove(server)
	case stateNew, stateHeld:
		server.suspect = true
	}
}

// lost deals with a connection that has ended by itself. An owner is told, and gives the server back in its own time.
func (p *Pool) lost(server *Server, err error) {
	p.mu.Lock()
	owner := server.currentOwner()
	if _, cleaning := owner.(cleaner); cleaning || owner == nil {
		if server.state != stateClosed {
			p.log.Warn("server connection lost", "database", p.key.Database, "user", p.key.User, "pid", server.Process(), "error", err)
		}
		p.remove(server)
		owner = nil
	}
	p.mu.Unlock()
	if owner != nil {
		owner.ServerLost(server, err)
	}
}

// cleaned takes back a server whose cleaning has come to its end.
func (p *Pool) cleaned(server *Server) {
	p.mu.Lock()
	if server.state == stateCleaning {
		p.give(server)
	}
	p.mu.Unlock()
}

// Hold keeps a server from being handed on while a cancel is on its way to it. The caller must know that the server is lent to
// the client that is meant. Every Hold is followed by one Unhold.
func (p *Pool) Hold(server *Server) {
	p.mu.Lock()
	server.cancels++
	p.mu.Unlock()
}

// Unhold ends a Hold. A server that was given back meanwhile goes on to the next client only after a cleaning, so that a cancel
// that is still on its way from postmaster to backend hits that. If it is not known whether the cancel was delivered, the server
// never goes on.
func (p *Pool) Unhold(server *Server, delivered bool) {
	p.mu.Lock()
	server.cancels--
	server.suspect = server.suspect || !delivered
	if server.cancels > 0 || server.state != stateHeld {
		p.mu.Unlock()
		return
	}
	if server.suspect {
		p.remove(server)
		p.mu.Unlock()
		return
	}
	p.cleanAndUnlock(server)
}

// Welcome returns what a server reports to a client with these settings, if that is known.
func (p *Pool) Welcome(params *session.Params) ([]pgwire.Param, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	welcome, found := p.welcomes[params.Key()]
	return welcome, found
}

// SetWelcome notes what a server has reported after these settings were applied to it.
func (p *Pool) SetWelcome(params *session.Params, reported []pgwire.Param) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.welcomes) >= p.set.cfg.MaxParameterSets {
		clear(p.welcomes)
		p.counters.ParameterSetOverflows++
	}
	p.welcomes[params.Key()] = reported
}

// Join counts a client of this pool, so that the pool stays while it has any.
func (p *Pool) Join() {
	p.mu.Lock()
	p.users++
	p.mu.Unlock()
}

// Leave ends a Join.
func (p *Pool) Leave() {
	p.mu.Lock()
	p.users--
	p.emptySince = time.Now()
	p.mu.Unlock()
}

// CountQueries counts queries that took so long together.
func (p *Pool) CountQueries(n uint64, took time.Duration) { p.queries.observe(n, took) }

// CountTransactions counts transactions that took so long together, without the wait for a server.
func (p *Pool) CountTransactions(n uint64, took time.Duration) { p.transactions.observe(n, took) }
