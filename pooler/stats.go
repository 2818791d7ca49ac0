package pooler

import (
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
}

// Stats is a snapshot. Counters count since the start.
type Stats struct {
	Clients        int // that have logged in, or are about to
	ClientsActive  int // that have a server
	ClientsWaiting int // that wait for one
	ClientsLogin   int // connections that have not logged in

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
}

// Stats returns a snapshot of the whole pooler. It takes each lock for a moment and never waits for a client or a server.
func (p *Pooler) Stats() Stats {
	pools, poolHits := p.pools.Stats()
	n := &p.counters
	st := Stats{
		ClientsLogin: len(p.logins),
		Logins:       n.logins.Load(), LoginFailures: n.loginFailures.Load(), CancelRequests: n.cancelRequests.Load(), ServersLost: n.serversLost.Load(),
		AcceptErrors: n.acceptErrors.Load(), MaxClientConn: p.cfg.MaxClientConn, WaitBuckets: pool.WaitBuckets[:], Pools: pools,
		Limits: LimitHits{
			MaxClientConn: n.clientLimitHits.Load(), MaxLoginConn: n.loginLimitHits.Load(), MaxLoginConnAddress: n.addressLimitHits.Load(),
			AuthQueryCacheMax: p.gate.Load().users.QueryCacheOverflows(), MaxPools: poolHits,
			MaxCancelRequests: n.cancelLimitHits.Load(), MaxPipelineMessages: n.pipelineLimitHits.Load(),
			ClientWriteTimeout: n.writeTimeouts.Load(), MaxClientNotifications: n.notificationsDropped.Load(),
		},
	}
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
