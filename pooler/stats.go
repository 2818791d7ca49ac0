package pooler

import (
	"sync"
	"sync/atomic"
	"time"

	"pitr/pooler/pool"
)

type counters struct {
	logins, loginFailures, acceptErrors              atomic.Uint64
	clientLimitHits, loginLimitHits, cancelLimitHits atomic.Uint64
	pipelineLimitHits, writeTimeouts, cancelRequests atomic.Uint64
	serversLost, notificationsDropped                atomic.Uint64
	addressLimitHits                                 atomic.Uint64
	databaseLimitHits, userLimitHits                 atomic.Uint64
	queryTimeouts, transactionTimeouts               atomic.Uint64
	idleTransactionTimeouts, idleTimeouts            atomic.Uint64
}

// Stats is a snapshot. Counters count since the start.
type Stats struct {
	Clients        int // that have logged in, or are about to
	ClientsActive  int // that have a server
	ClientsWaiting int // that wait for one
	ClientsLogin   int // connections that have not logged in
	Replications   int // connections in replication mode

	BytesFromClients uint64
	BytesToClients   uint64
	Logins           uint64 // that succeeded
	LoginFailures    uint64
	CancelRequests   uint64 // that were passed on
	ServersLost      uint64 // server connections that ended under a client
	AcceptErrors     uint64

	MaxClientConn int
	Limits        LimitHits
	WaitBuckets   []time.Duration // upper bounds of Pools[].Waits, which has one more
	Pools         []pool.Stats
}

// LimitHits counts how often each limit was reached, by the setting's name.
type LimitHits struct {
	MaxClientConn       uint64
	MaxLoginConn        uint64
	MaxLoginConnAddress uint64 // max_login_conn_per_address
	AuthQueryCacheMax   uint64 // auth.query_cache_max
	MaxPools            uint64
	MaxCancelRequests   uint64
	MaxPipelineMessages uint64
	MaxParameterSets    uint64
	QueryWaitTimeout    uint64
	ClientWriteTimeout  uint64
	// MaxClientNotifications counts notifications that did not arrive, because of this limit or because the client did not read.
	MaxClientNotifications uint64

	MaxDBClientConnections   uint64
	MaxUserClientConnections uint64
	QueryTimeout             uint64
	TransactionTimeout       uint64
	IdleTransactionTimeout   uint64
	ClientIdleTimeout        uint64
	MaxDBConnections         uint64 // connects that had to wait for another server of the database to go
	MaxUserConnections       uint64
	ServerConnectRate        uint64

	MaxReplicationConnections uint64
}

// Stats returns a snapshot of the whole pooler. It takes each lock for a moment and never waits for a client or a server.
func (p *Pooler) Stats() Stats {
	pools, poolHits := p.pools.Stats()
	n := &p.counters
	st := Stats{
		ClientsLogin: len(p.logins),
		Logins:       n.logins.Load(), LoginFailures: n.loginFailures.Load(), CancelRequests: n.cancelRequests.Load(), ServersLost: n.serversLost.Load(),
		AcceptErrors: n.acceptErrors.Load(), MaxClientConn: p.now().MaxClientConn, WaitBuckets: pool.WaitBuckets[:], Pools: pools,
		Limits: LimitHits{
			MaxClientConn: n.clientLimitHits.Load(), MaxLoginConn: n.loginLimitHits.Load(), MaxLoginConnAddress: n.addressLimitHits.Load(),
			AuthQueryCacheMax: p.gate.Load().users.QueryCacheOverflows(), MaxPools: poolHits,
			MaxCancelRequests: n.cancelLimitHits.Load(), MaxPipelineMessages: n.pipelineLimitHits.Load(),
			ClientWriteTimeout: n.writeTimeouts.Load(), MaxClientNotifications: n.notificationsDropped.Load(),
		},
	}
	st.Limits.MaxDBClientConnections, st.Limits.MaxUserClientConnections = n.databaseLimitHits.Load(), n.userLimitHits.Load()
	st.Limits.QueryTimeout, st.Limits.TransactionTimeout = n.queryTimeouts.Load(), n.transactionTimeouts.Load()
	st.Limits.IdleTransactionTimeout, st.Limits.ClientIdleTimeout = n.idleTransactionTimeouts.Load(), n.idleTimeouts.Load()
	st.Limits.MaxDBConnections, st.Limits.MaxUserConnections, st.Limits.ServerConnectRate = p.pools.LimitHits()
	st.Replications, st.Limits.MaxReplicationConnections = p.pools.Replications()
	for _, w := range p.workers {
		st.BytesFromClients += w.fromClients.Load()
		st.BytesToClients += w.toClients.Load()
	}
	for _, one := range pools {
		st.ClientsWaiting += one.Waiting
		st.ClientsActive += one.Active
		st.Limits.MaxParameterSets += one.ParameterSetOverflows
		st.Limits.QueryWaitTimeout += one.WaitTimeouts
	}
	p.mu.Lock()
	st.Clients = len(p.clients)
	p.mu.Unlock()
	return st
}

// averages are what was counted in the last stats_period, for each database.
type averages struct {
	// mu guards the rest.
	mu     sync.Mutex
	since  time.Time
	before map[string]pool.Totals
	last   map[string]average
}

// average is what has changed in a period.
type average struct {
	pool.Totals
	period time.Duration
}

// take ends a period, when it is over.
func (a *averages) take(now time.Time, period time.Duration, totals func() map[string]pool.Totals) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.since.IsZero() {
		a.since, a.before = now, totals()
		return
	}
	if now.Sub(a.since) < period {
		return
	}
	next := totals()
	a.last = map[string]average{}
	for database, t := range next {
		a.last[database] = average{t.Minus(a.before[database]), now.Sub(a.since)}
	}
	a.since, a.before = now, next
}

// of returns the averages of a database.
func (a *averages) of(database string) average {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last[database]
}

// perSecond is a number as the average of a second.
func (a average) perSecond(n uint64) uint64 {
	if a.period <= 0 {
		return 0
	}
	return uint64(float64(n) / a.period.Seconds())
}

// each is a time as the average of what it was spent on, in microseconds.
func each(total time.Duration, n uint64) int64 {
	if n == 0 {
		return 0
	}
	return total.Microseconds() / int64(n)
}
