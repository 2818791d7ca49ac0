// Package pool owns the connections to Postgres: it dials them, lends each to one owner at a time, and decides who is next. Its
// limits, its queue (first in, first out over clients; last in, first out over servers) and its statistics are those of the
// whole process. It never looks into what a client and a server say to each other; package session does.
package pool

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"pitr/internal/pgwire"
	"pitr/pooler/session"
)

// Key names a pool: the database as clients call it, and the user that logs in to the server.
type Key struct{ Database, User string }

// Pool holds the server connections of one key.
type Pool struct {
	key Key
	set *Set
	log *slog.Logger

	perDatabase, perUser          *quota // shared with other pools
	queries, transactions, logins histogram
	connects                      histogram
	traffic                       traffic

	// mu guards everything below and the life of every server in the pool. Nothing is read, written, dialled or waited for while it
	// is held; Server.mu and nothing else may be taken under it.
	mu         sync.Mutex
	limits     limits
	dial       dialer
	moves      int                // counts changes of dial
	turn       uint64             // counts connects: hosts take turns
	fits       []fit              // how the hosts suited when that was last looked at
	proven     bool               // dial has let us in
	attempts   context.Context    // of the connects that are on their way; ends with abandon
	abandon    context.CancelFunc // ends them: see giveUp
	starved    bool               // see starve
	servers    map[*Server]struct{}
	idle       []*Server // the last one is given first
	used       []*Server // idle too, but for so long that they are tested first
	testing    int
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
	case condition == session.Broken || p.closed || server.suspect || server.isLost() || server.leaves != "":
		p.remove(server, p.broken(server))
		p.mu.Unlock()
	case server.cancels > 0:
		server.move(stateHeld)
		server.setOwner(nil)
		p.mu.Unlock()
	case condition == session.Dirty || p.limits.resetAlways:
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
	switch {
	case p.closed || p.paused || server.suspect || server.isLost() || server.leaves != "":
		p.remove(server, p.broken(server))
		return
	case server.tooOld(now):
		p.remove(server, becauseOld)
		return
	case len(p.servers) > p.limits.size+p.limits.reserve:
		p.remove(server, becauseMany)
		return
	}
	w := p.waiters.first
	if w == nil {
		server.idleSince = now
		if p.limits.check != "" && p.limits.checkDelay == 0 {
			server.move(stateUsed)
			p.used = append(p.used, server)
		} else {
			server.move(stateIdle)
			p.idle = append(p.idle, server)
		}
		server.setOwner(nil)
		p.freed()
		return
	}
	server.lend(w.owner)
	p.counters.Assignments++
	p.settle(w, now, server, nil)
}

// cleanAndUnlock makes a dirty server clean before it is given on. The caller holds mu, which is released.
func (p *Pool) cleanAndUnlock(server *Server) {
	clean := server.State.AppendReset(nil, p.limits.reset) // before the cleaner, whose State it then is, can be called
	server.move(stateCleaning)
	server.setOwner(cleaner{})
	server.cleanBy = time.Now().Add(p.set.now().ServerResetTimeout.D())
	p.counters.Cleanings++
	p.mu.Unlock()
	server.wire.Write(clean)
}

// Why servers are closed, in PgBouncer's words (src/janitor.c, src/server.c, src/objects.c).
const (
	becauseIdle    = "server idle timeout"
	becauseOld     = "server lifetime over"
	becauseMany    = "too many servers in the pool"
	becauseAsked   = "reconnect"
	becauseMoved   = "database configuration changed"
	becauseLost    = "server conn crashed?"
	becauseUnclean = "unclean server"
	becauseSlow    = "test query failed"
	becauseEvicted = "evicted"
	becausePaused  = "pause"
	becauseEnd     = "shutdown"
)

// And two that PgBouncer has no words for.
const (
	becauseUnfit   = "the server is not fit for target_session_attrs or max_replica_lag any more"
	becauseRenamed = "the server's name has another address"
)

// broken says why a server that its owner gives back cannot be used again. The caller holds mu.
func (p *Pool) broken(server *Server) string {
	switch {
	case p.closed:
		return becauseEnd
	case server.isLost():
		return becauseLost
	case server.leaves != "":
		return server.leaves
	case p.paused:
		return becausePaused
	}
	return becauseUnclean
}

// remove closes a server and forgets it. The caller holds mu.
func (p *Pool) remove(server *Server, because string) {
	if server.state == stateClosed {
		return
	}
	switch server.state {
	case stateIdle:
		p.idle = without(p.idle, server)
	case stateUsed:
		p.used = without(p.used, server)
	case stateTesting:
		p.testing--
	}
	server.move(stateClosed)
	server.setOwner(nil)
	delete(p.servers, server)
	p.perDatabase.give()
	p.perUser.give()
	p.counters.Closed++
	server.close()
	now := time.Now()
	p.log.Info(fmt.Sprintf("closing because: %s (age=%ds)", because, int(now.Sub(server.born).Seconds())), "database", p.key.Database, "user", p.key.User, "pid", server.Process())
	p.freed()
	p.launch(now)
}

func without(list []*Server, server *Server) []*Server {
	if i := slices.Index(list, server); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}

// unasked deals with something that a server has sent while it seemed to be nobody's.
func (p *Pool) unasked(server *Server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch server.state {
	case stateIdle, stateUsed:
		p.log.Warn("server connection lost", "database", p.key.Database, "user", p.key.User, "pid", server.Process(), "error", ErrUnasked)
		p.remove(server, becauseLost)
	case stateNew, stateHeld:
		server.suspect = true
	}
}

// lost deals with a connection that has ended by itself. An owner is told, and gives the server back in its own time.
func (p *Pool) lost(server *Server, err error) {
	p.mu.Lock()
	owner := server.currentOwner()
	_, cleaning := owner.(cleaner)
	_, testing := owner.(tester)
	if cleaning || testing || owner == nil {
		if server.state != stateClosed {
			p.log.Warn("server connection lost", "database", p.key.Database, "user", p.key.User, "pid", server.Process(), "error", err)
		}
		p.remove(server, becauseLost)
		owner = nil
	}
	p.mu.Unlock()
	if owner != nil {
		owner.ServerLost(server, err)
	}
}

// cleaned takes back a server whose cleaning, or test, has come to its end.
func (p *Pool) cleaned(server *Server) {
	p.mu.Lock()
	switch server.state {
	case stateTesting:
		p.testing--
		p.give(server)
	case stateCleaning:
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
	if server.suspect || server.leaves != "" || p.closed || p.paused {
		p.remove(server, p.broken(server))
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
	if len(p.welcomes) >= p.set.now().MaxParameterSets {
		clear(p.welcomes)
		p.counters.ParameterSetOverflows++
	}
	p.welcomes[params.Key()] = reported
}

// Join counts a client of this pool, so that the pool stays while it has any.
func (p *Pool) Join() {
	p.mu.Lock()
	p.users++
	if p.limits.min > 0 {
		p.launch(time.Now())
	}
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
