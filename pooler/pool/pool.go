// Package pool owns the connections to Postgres: it dials them, lends each to one owner at a time, and decides who is next. Its
// limits, its queue (first in, first out over clients; last in, first out over servers) and its statistics are those of the
// whole process. It never looks into what a client and a server say to each other; package session does.
package pool

import (
	"container/list"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"pitr/internal/pgwire"
	"pitr/pooler/session"
)

// Errors of Acquire that callers decide on. A *ConnectError is the third.
var (
	ErrWaitTimeout = errors.New("query_wait_timeout")
	ErrQuit        = errors.New("the wait for a server was given up")
	ErrClosed      = errors.New("the pool is closed")
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

	queries, transactions atomic.Uint64

	// mu guards everything below and the life of every server in the pool. Nothing is read, written, dialled or waited for while it
	// is held; Server.mu and nothing else may be taken under it.
	mu         sync.Mutex
	servers    map[*Server]struct{}
	idle       []*Server // the last one is given first
	waiters    list.List // of *Waiter; the first one is served first
	connecting int
	closed     bool
	failures   int       // consecutive failed connects
	retryAt    time.Time // no connect before that
	lastErr    *ConnectError
	welcomes   map[string][]pgwire.Param // what a login with these settings reports
	baseline   []pgwire.Param            // what a login without settings reported last
	users      int                       // clients that have this pool
	emptySince time.Time
	counters   Counters
}

// Waiter is one client's place in the queue. It is reused; one at a time.
type Waiter struct {
	owner Owner
	since time.Time
	ready chan outcome
	place *list.Element
	timer *time.Timer
}

type outcome struct {
	server *Server
	err    error
}

// NewWaiter returns a place in queues for owner.
func NewWaiter(owner Owner) *Waiter {
	return &Waiter{owner: owner, ready: make(chan outcome, 1)}
}

// Key returns the pool's key.
func (p *Pool) Key() Key { return p.key }

// Acquire lends a server to the waiter's owner, and waits for one as long as query_wait_timeout allows or until quit is closed.
// The error is ErrWaitTimeout, ErrQuit, ErrClosed or a *ConnectError.
func (p *Pool) Acquire(w *Waiter, quit <-chan struct{}) (*Server, error) {
	now := time.Now()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, ErrClosed
	}
	if n := len(p.idle); n > 0 && p.waiters.Len() == 0 {
		server := p.idle[n-1]
		p.idle[n-1] = nil
		p.idle = p.idle[:n-1]
		server.lend(w.owner)
		p.counters.observe(0)
		p.mu.Unlock()
		return server, nil
	}
	if len(p.servers)+p.connecting == 0 && now.Before(p.retryAt) {
		err := p.lastErr
		p.counters.ConnectRefusals++
		p.mu.Unlock()
		return nil, err
	}
	w.since = now
	w.place = p.waiters.PushBack(w)
	p.launch(now)
	p.mu.Unlock()
	return p.wait(w, quit)
}

func (p *Pool) wait(w *Waiter, quit <-chan struct{}) (*Server, error) {
	var timeout <-chan time.Time
	if limit := p.set.cfg.QueryWaitTimeout.D(); limit > 0 {
		if w.timer == nil {
			w.timer = time.NewTimer(limit)
		} else {
			w.timer.Reset(limit)
		}
		defer w.timer.Stop()
		timeout = w.timer.C
	}
	var err error
	select {
	case got := <-w.ready:
		return got.server, got.err
	case <-timeout:
		err = ErrWaitTimeout
	case <-quit:
		err = ErrQuit
	}
	p.mu.Lock()
	if w.place != nil {
		p.waiters.Remove(w.place)
		w.place = nil
		if err == ErrWaitTimeout {
			p.counters.WaitTimeouts++
		}
		p.counters.observe(time.Since(w.since))
		p.mu.Unlock()
		return nil, err
	}
	p.mu.Unlock()
	got := <-w.ready // it came in the same moment
	return got.server, got.err
}

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
	if p.closed || server.isLost() || p.set.tooOld(server, time.Now()) {
		p.remove(server)
		return
	}
	first := p.waiters.Front()
	if first == nil {
		server.move(stateIdle)
		server.idleSince = time.Now()
		server.setOwner(nil)
		p.idle = append(p.idle, server)
		return
	}
	w := p.dequeue(first)
	p.counters.observe(time.Since(w.since))
	server.lend(w.owner)
	w.ready <- outcome{server: server}
}

func (p *Pool) dequeue(place *list.Element) *Waiter {
	w := p.waiters.Remove(place).(*Waiter)
	w.place = nil
	return w
}

// cleanAndUnlock makes a dirty server clean before it is given on. The caller holds mu, which is released.
func (p *Pool) cleanAndUnlock(server *Server) {
	clean := server.State.AppendClean(nil) // before the cleaner, whose State it then is, can be called
	server.move(stateCleaning)
	server.setOwner(cleaner{})
	server.cleanBy = time.Now().Add(p.set.cfg.ServerResetTimeout.D())
	p.counters.Cleanings++
	p.mu.Unlock()
	if _, err := server.conn.Write(clean); err != nil {
		server.fail(err)
	}
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

// Add adds to the counters of what clients did.
func (p *Pool) Add(queries, transactions uint64) {
	p.queries.Add(queries)
	p.transactions.Add(transactions)
}
