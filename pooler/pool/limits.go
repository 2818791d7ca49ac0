package pool

import (
	"math/rand/v2"
	"sync/atomic"
	"time"

	"pitr/config"
)

// limits are the settings of one pool, with those of its database and its user.
type limits struct {
	size           int // most connections
	min            int
	reserve        int // connections beyond size
	reserveTimeout time.Duration
	lifetime       time.Duration
	jitter         int // percent
	idle           time.Duration
	wait           time.Duration
	check          string // query; empty: none
	checkDelay     time.Duration
	reset          string // query; empty: only what is always sent
	resetAlways    bool
	roundRobin     bool // the server that was free for longest is lent first
	forced         bool // the database has a user of its own
	perDatabase    int
	perUser        int
}

// emptyQuery is how PgBouncer's server_check_query says that an empty query is sent (doc/config.md).
const emptyQuery = "<empty>"

func newLimits(cfg *config.Pooler, db config.Database, user config.User) limits {
	l := limits{
		size: first(user.PoolSize, db.PoolSize, cfg.DefaultPoolSize), min: first(db.MinPoolSize, cfg.MinPoolSize),
		reserve: first(user.ReservePoolSize, db.ReservePoolSize, cfg.ReservePoolSize), reserveTimeout: cfg.ReservePoolTimeout.D(),
		lifetime: first(db.ServerLifetime, cfg.ServerLifetime).D(), jitter: cfg.ServerLifetimeJitter, idle: cfg.ServerIdleTimeout.D(),
		wait: first(user.QueryWaitTimeout, cfg.QueryWaitTimeout).D(), check: cfg.ServerCheckQuery, checkDelay: cfg.ServerCheckDelay.D(),
		resetAlways: cfg.ServerResetQueryAlways == "on", roundRobin: cfg.ServerRoundRobin == "on", forced: db.User != "",
		perDatabase: first(db.MaxDBConnections, cfg.MaxDBConnections), perUser: first(user.MaxUserConnections, cfg.MaxUserConnections),
	}
	if l.reserveTimeout == 0 {
		l.reserve = 0
	}
	if cfg.ServerResetQuery != "DISCARD ALL" {
		l.reset = cfg.ServerResetQuery
	}
	l.min = min(l.min, l.size)
	return l
}

// first returns the first value that is set, or the last one.
func first[T comparable](values ...T) (value T) {
	var zero T
	for _, value = range values {
		if value != zero {
			break
		}
	}
	return value
}

// lifespan draws how long a server may live; zero is for ever.
func (l *limits) lifespan() time.Duration {
	if l.jitter == 0 || l.lifetime == 0 {
		return l.lifetime
	}
	return l.lifetime - rand.N(l.lifetime*time.Duration(l.jitter)/100+1)
}

// quota counts the server connections of one database, or of one user, over all pools.
type quota struct {
	n atomic.Int64
}

// take counts one more, unless there are as many as there may be; zero is no limit.
func (q *quota) take(limit int) bool {
	for {
		n := q.n.Load()
		if limit > 0 && n >= int64(limit) {
			return false
		}
		if q.n.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (q *quota) give() { q.n.Add(-1) }

// wanted is how many more connections the pool wants at this moment. The caller holds mu.
func (p *Pool) wanted(now time.Time) int {
	if p.closed || p.paused || now.Before(p.retryAt) {
		return 0
	}
	size := p.limits.size
	if w := p.waiters.first; w != nil && p.limits.reserve > 0 && now.Sub(w.since) >= p.limits.reserveTimeout {
		size += p.limits.reserve
	}
	there := len(p.servers) + p.connecting
	n := p.waiters.n - p.connecting - p.testing
	if p.keepsMin() {
		n = max(n, p.limits.min-there)
	}
	return min(n, size-there)
}

// launch tests servers that have been idle for long and starts connects, as many as are wanted. The caller holds mu.
func (p *Pool) launch(now time.Time) {
	for len(p.used) > 0 && !p.paused && p.waiters.n > p.connecting+p.testing {
		p.test(now)
	}
	for p.wanted(now) > 0 {
		if !p.perDatabase.take(p.limits.perDatabase) {
			p.starve(&p.set.databaseHits)
			return
		}
		if !p.perUser.take(p.limits.perUser) {
			p.perDatabase.give()
			p.starve(&p.set.userHits)
			return
		}
		if !p.set.pace.take(p.dial.address(), now) {
			p.perDatabase.give()
			p.perUser.give()
			p.starved = true // the janitor comes again
			return
		}
		if len(p.servers)+p.connecting >= p.limits.size {
			p.log.Info("taking connection from reserve_pool", "database", p.key.Database, "user", p.key.User)
		}
		p.connecting++
		p.starved = false
		ctx, next := p.attempts, attempt{p.dial, p.moves, p.turn}
		p.turn++
		p.set.work.Go(func() { p.connectOne(ctx, next) })
	}
}

// starve notes that the pool gets no server because others of its database, or of its user, have them all; the janitor looks for one that is idle. The caller
// holds mu.
func (p *Pool) starve(hits *atomic.Uint64) {
	if !p.starved {
		p.starved = true
		hits.Add(1)
		p.set.nudge()
	}
}

// freed lets the janitor know that a server of the pool has gone, or has become idle, that another pool may wait for. The caller holds mu.
func (p *Pool) freed() {
	if p.limits.perDatabase > 0 || p.limits.perUser > 0 {
		p.set.nudge()
	}
}

// test asks a server that has been idle for long whether it is still there. The caller holds mu.
func (p *Pool) test(now time.Time) {
	n := len(p.used)
	server := p.used[n-1]
	p.used[n-1] = nil
	p.used = p.used[:n-1]
	server.move(stateTesting)
	server.cleanBy = now.Add(p.set.now().ServerResetTimeout.D())
	server.setOwner(tester{})
	p.testing++
	query := p.limits.check
	if query == emptyQuery {
		query = ""
	}
	server.wire.Post(server.State.AppendCheck(nil, query))
}

// tester owns a server while it is asked whether it is there.
type tester struct{}

func (tester) FromServer(server *Server, in []byte) (n int, err error) {
	n, done, err := server.State.Check(in)
	if done {
		server.pool.cleaned(server)
	}
	return n, err
}

func (tester) Granted(*Server, error) {}

func (tester) ServerLost(*Server, error) {}
