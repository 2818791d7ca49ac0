package pooler

import (
	"context"
	"time"

	"pitr/config"
	"pitr/internal/pgwire"
	"pitr/pooler/loop"
)

// visitMax is how many clients are visited in one go: a loop does nothing else meanwhile, some tens of microseconds.
const visitMax = 256

// visit is a client that is to be looked at on its own thread.
type visit struct {
	c        *client
	timeouts *timeouts
}

// eachClient lets look be called for each client that has logged in, on the client's own thread, a few of them at a time, and returns when all were looked at.
// What it reads of a client is thus never in the middle of a change, and neither the hot path nor anybody else waits for a lock.
func (p *Pooler) eachClient(timeoutsOf func(*identity) *timeouts, look func(visit)) {
	p.mu.Lock()
	byWorker := map[*worker][]visit{}
	for _, c := range p.clients {
		if c.entered {
			byWorker[c.worker] = append(byWorker[c.worker], visit{c: c})
		}
	}
	p.mu.Unlock()
	for w, visits := range byWorker {
		for len(visits) > 0 {
			some := visits[:min(len(visits), visitMax)]
			visits = visits[len(some):]
			for i := range some {
				if timeoutsOf != nil {
					some[i].timeouts = timeoutsOf(some[i].c.who)
				}
			}
			done := make(chan struct{})
			posted := w.Post(loop.Func(func() {
				defer close(done)
				for _, one := range some {
					if !one.c.ended {
						look(one)
					}
				}
			}))
			if posted {
				<-done
			}
		}
	}
}

// timeouts are those of one user. Zero is for ever.
type timeouts struct {
	query, transaction, idleTransaction, idle, notify time.Duration

	fastClose bool // a client in session mode does not keep a server that is to be closed
}

func newTimeouts(cfg *config.Pooler, user config.User) *timeouts {
	either := func(own, usual config.Duration) time.Duration {
		if own > 0 {
			return own.D()
		}
		return usual.D()
	}
	return &timeouts{
		query: either(user.QueryTimeout, cfg.QueryTimeout), transaction: either(user.TransactionTimeout, cfg.TransactionTimeout),
		idleTransaction: either(user.IdleTransactionTimeout, cfg.IdleTransactionTimeout), idle: either(user.ClientIdleTimeout, cfg.ClientIdleTimeout),
		notify: cfg.QueryWaitNotify.D(), fastClose: cfg.ServerFastClose == "on",
	}
}

// shortest returns the least of the timeouts that are set, zero when none is. That of a wait is of no interest while nobody waits.
func (t *timeouts) shortest(waiting bool) (least time.Duration) {
	list := [...]time.Duration{t.query, t.transaction, t.idleTransaction, t.idle, t.notify}
	if !waiting {
		list[len(list)-1] = 0
	}
	if t.fastClose {
		least = patrolPauseMax
	}
	for _, d := range list {
		if d > 0 && (least == 0 || d < least) {
			least = d
		}
	}
	return least
}

const (
	patrolPauseMax = time.Second
	patrolPauseMin = 50 * time.Millisecond
)

// patrol ends clients that have taken too long, and takes the averages of the statistics, until ctx ends. There is no timer per client.
func (p *Pooler) patrol(ctx context.Context) {
	timer := time.NewTimer(patrolPauseMin)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-timer.C:
			p.averages.take(now, p.now().StatsPeriod.D(), p.pools.Totals)
			timer.Reset(p.round())
		}
	}
}

// round looks at every client, if there is any timeout, and returns when to do so again.
func (p *Pooler) round() time.Duration {
	cfg := p.now()
	usual, waiting := newTimeouts(cfg, config.User{}), p.pools.Waiting()
	pause, needed := patrolPauseMax, usual.shortest(waiting)
	byUser := map[string]*timeouts{}
	for name, user := range cfg.Users {
		own := newTimeouts(cfg, user)
		byUser[name] = own
		if least := own.shortest(waiting); least > 0 && (needed == 0 || least < needed) {
			needed = least
		}
	}
	if needed == 0 {
		if usual.notify > 0 {
			pause = min(pause, max(usual.notify/4, patrolPauseMin))
		}
		return pause
	}
	p.eachClient(func(who *identity) *timeouts {
		if own := byUser[who.user]; own != nil {
			return own
		}
		return usual
	}, func(one visit) { one.c.overdue(one.timeouts) })
	return max(min(pause, needed/4), patrolPauseMin)
}

// The failures of clients that have taken too long, in PgBouncer's words (src/janitor.c).
var (
	errQueryTimeout           = pgwire.Fatal("08P01", "query timeout")
	errTransactionTimeout     = pgwire.Fatal("08P01", "transaction timeout")
	errIdleTransactionTimeout = pgwire.Fatal("08P01", "idle transaction timeout")
	errFastClose              = pgwire.Fatal("57P01", "server_fast_close")
	errIdleTimeout            = pgwire.Fatal("08P01", "client_idle_timeout")
)

// doing is what a client does at this moment, as far as timeouts are concerned.
type doing struct {
	idle   bool      // it has no transaction
	linked bool      // it has a server
	owed   bool      // which owes it an answer
	began  time.Time // the present query
	opened time.Time // the present transaction
	heard  time.Time // the last that it has sent, or the end of its last query
}

// verdict returns why a client has to go, nil if it may stay.
func (t *timeouts) verdict(d doing, now time.Time) *pgwire.Failure {
	over := func(limit time.Duration, since time.Time) bool {
		return limit > 0 && !since.IsZero() && now.Sub(since) > limit
	}
	switch {
	case d.owed && over(t.query, d.began):
		return errQueryTimeout
	case !d.idle && d.linked && over(t.transaction, d.opened):
		return errTransactionTimeout
	case !d.idle && !d.owed && over(t.idleTransaction, d.heard):
		return errIdleTransactionTimeout
	case d.idle && !d.linked && over(t.idle, d.heard):
		return errIdleTimeout
	}
	return nil
}

// overdue ends the client if it has taken too long for what it does.
func (c *client) overdue(t *timeouts) {
	now, n := c.worker.Now(), &c.pooler.counters
	if c.entry != nil {
		return // client_login_timeout has a timer
	}
	if c.waits == waitsForServer {
		if !c.told && t.notify > 0 && now.Sub(c.asked) > t.notify {
			c.told = true
			c.write(waitNotice)
		}
		return
	}
	server := c.server
	if t.fastClose && server != nil && !c.options.Transaction && c.machine.Idle() && !c.machine.Owed() && server.Leaves() {
		c.end(errFastClose)
		return
	}
	failure := t.verdict(doing{c.machine.Idle(), server != nil, c.machine.Owed(), c.began, c.opened, c.heard}, now)
	switch failure {
	case nil:
		return
	case errQueryTimeout:
		n.queryTimeouts.Add(1)
	case errTransactionTimeout:
		n.transactionTimeouts.Add(1)
	case errIdleTransactionTimeout:
		n.idleTransactionTimeouts.Add(1)
	case errIdleTimeout:
		n.idleTimeouts.Add(1)
	}
	c.end(failure)
	if failure == errQueryTimeout {
		c.pooler.abandon(server)
	}
}

// waitNotice is what PgBouncer says after query_wait_notify (src/objects.c).
var waitNotice = noticeOf("No server connection available in postgres backend, client being queued")

func noticeOf(text string) []byte {
	body := append(append([]byte("SNOTICE\x00VNOTICE\x00C00000\x00M"), text...), 0, 0)
	return append(pgwire.AppendHeader(nil, pgwire.NoticeResponse, len(body)), body...)
}
