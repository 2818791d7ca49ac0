package pool

import (
	"maps"
	"sync/atomic"
	"time"
)

// WaitBuckets are the upper bounds of the wait-time histogram; a last bucket has no bound.
var WaitBuckets = [...]time.Duration{
	100 * time.Microsecond, time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond,
	500 * time.Millisecond, time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second, 60 * time.Second,
}

// DurationBuckets are the upper bounds of the histograms of queries and transactions; a last bucket has no bound.
var DurationBuckets = [...]time.Duration{
	250 * time.Microsecond, 500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond,
	25 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond, time.Second, 5 * time.Second, 30 * time.Second,
}

// histogram counts without a lock.
type histogram struct {
	count   atomic.Uint64
	total   atomic.Int64
	buckets [len(DurationBuckets) + 1]atomic.Uint64
}

func (h *histogram) observe(n uint64, took time.Duration) {
	bucket := 0
	for bucket < len(DurationBuckets) && took > DurationBuckets[bucket] {
		bucket++
	}
	h.buckets[bucket].Add(n)
	h.count.Add(n)
	h.total.Add(int64(took))
}

// Histogram is a snapshot: how many, how long all together, and how many in each of DurationBuckets.
type Histogram struct {
	Count   uint64
	Total   time.Duration
	Buckets [len(DurationBuckets) + 1]uint64
}

func (h *histogram) snapshot() Histogram {
	out := Histogram{Count: h.count.Load(), Total: time.Duration(h.total.Load())}
	for i := range h.buckets {
		out.Buckets[i] = h.buckets[i].Load()
	}
	return out
}

// Counters count since the pool was made.
type Counters struct {
	Queries               uint64
	Transactions          uint64
	Assignments           uint64 // of a server to a client
	Connects              uint64
	ConnectFailures       uint64
	ConnectRefusals       uint64 // clients that were told of an earlier failure instead of waiting
	Closed                uint64 // server connections
	Cleanings             uint64
	WaitTimeouts          uint64 // query_wait_timeout was reached
	ParameterSetOverflows uint64 // max_parameter_sets was reached
	Waits                 [len(WaitBuckets) + 1]uint64
	WaitTotal             time.Duration
}

func (c *Counters) observe(wait time.Duration) {
	bucket := 0
	for bucket < len(WaitBuckets) && wait > WaitBuckets[bucket] {
		bucket++
	}
	c.Waits[bucket]++
	c.WaitTotal += wait
}

// traffic is what clients of a pool have sent and got.
type traffic struct {
	received, sent, clientParses, serverParses, binds atomic.Uint64
}

// Traffic is what a client has sent and got since it was last counted.
type Traffic struct {
	Received     uint64 // bytes from the client
	Sent         uint64 // bytes to it
	ClientParses uint64 // Parse messages of the client
	ServerParses uint64 // Parse messages that went to a server
	Binds        uint64
}

func (t *traffic) snapshot() Traffic {
	return Traffic{t.received.Load(), t.sent.Load(), t.clientParses.Load(), t.serverParses.Load(), t.binds.Load()}
}

// CountTraffic adds it up.
func (p *Pool) CountTraffic(t Traffic) {
	p.traffic.received.Add(t.Received)
	p.traffic.sent.Add(t.Sent)
	if t.Binds|t.ClientParses|t.ServerParses != 0 {
		p.traffic.clientParses.Add(t.ClientParses)
		p.traffic.serverParses.Add(t.ServerParses)
		p.traffic.binds.Add(t.Binds)
	}
}

// CountLogin counts a client that has logged in.
func (p *Pool) CountLogin(took time.Duration) { p.logins.observe(1, took) }

// Totals are what the console tells of a database, since the start. They never decrease.
type Totals struct {
	Traffic
	Assignments, Transactions, Queries, Logins uint64
	TransactionTime, QueryTime, WaitTime       time.Duration
}

func (t *Totals) add(p *Pool) {
	*t = t.Plus(Totals{Traffic: p.traffic.snapshot()})
	queries, transactions := p.queries.snapshot(), p.transactions.snapshot()
	t.Queries, t.QueryTime = t.Queries+queries.Count, t.QueryTime+queries.Total
	t.Transactions, t.TransactionTime = t.Transactions+transactions.Count, t.TransactionTime+transactions.Total
	t.Logins += p.logins.count.Load()
	p.mu.Lock()
	defer p.mu.Unlock()
	t.Assignments += p.counters.Assignments
	t.WaitTime += p.counters.WaitTotal
}

// Plus adds two up.
func (t Totals) Plus(other Totals) Totals { return t.with(other, 1) }

// Minus returns what was counted since before.
func (t Totals) Minus(before Totals) Totals { return t.with(before, -1) }

// with adds so many times the other; of numbers without a sign as they wrap.
func (t Totals) with(other Totals, times int64) Totals {
	n, d := uint64(times), time.Duration(times)
	return Totals{
		Traffic:     Traffic{t.Received + n*other.Received, t.Sent + n*other.Sent, t.ClientParses + n*other.ClientParses, t.ServerParses + n*other.ServerParses, t.Binds + n*other.Binds},
		Assignments: t.Assignments + n*other.Assignments, Transactions: t.Transactions + n*other.Transactions, Queries: t.Queries + n*other.Queries, Logins: t.Logins + n*other.Logins,
		TransactionTime: t.TransactionTime + d*other.TransactionTime, QueryTime: t.QueryTime + d*other.QueryTime, WaitTime: t.WaitTime + d*other.WaitTime,
	}
}

// Totals returns what the console tells of each database.
func (s *Set) Totals() map[string]Totals {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := maps.Clone(s.retired)
	for key, p := range s.pools {
		t := out[key.Database]
		t.add(p)
		out[key.Database] = t
	}
	return out
}

// retire keeps what was counted of a pool that goes, if it has ever been of use. The caller holds mu.
func (s *Set) retire(p *Pool) {
	t, known := s.retired[p.key.Database]
	if t.add(p); t.Logins > 0 && (known || len(s.retired) < s.now().MaxPools) {
		s.retired[p.key.Database] = t
	}
	shared := func(match func(*Pool) bool) bool {
		for _, other := range s.pools {
			if other != p && match(other) {
				return true
			}
		}
		return false
	}
	if !shared(func(other *Pool) bool { return other.perDatabase == p.perDatabase }) {
		delete(s.databases, p.key.Database)
	}
	if !shared(func(other *Pool) bool { return other.perUser == p.perUser }) {
		delete(s.users, p.key.User)
	}
}

// Stats is a snapshot of one pool.
type Stats struct {
	Key
	Counters
	QueryTimes       Histogram
	TransactionTimes Histogram
	LoginTimes       Histogram // of clients
	ConnectTimes     Histogram // of servers
	Traffic          Traffic
	Size             int
	Reserve          int
	Min              int
	Clients          int
	Active           int // servers that are lent
	Idle             int
	Used             int // idle servers that are tested before they are lent
	Cleaning         int // servers that are made clean or tested, or wait for a cancel
	Held             int // of those, the ones that wait for a cancel
	Cancels          int // cancel requests on their way
	Connecting       int
	Paused           bool
	Waiting          int           // clients in the queue
	MaxWait          time.Duration // of those in the queue
	LastConnectErr   string
}

// Stats returns a snapshot of all pools. hits counts how often max_pools was reached.
func (s *Set) Stats() (pools []Stats, hits uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pools {
		pools = append(pools, p.stats(time.Now()))
	}
	return pools, s.limitHits
}

// Waiting reports whether any client waits for a server.
func (s *Set) Waiting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pools {
		p.mu.Lock()
		n := p.waiters.n
		p.mu.Unlock()
		if n > 0 {
			return true
		}
	}
	return false
}

// LimitHits counts how often connects had to wait for max_db_connections, max_user_connections and server_connect_rate.
func (s *Set) LimitHits() (perDatabase, perUser, rate uint64) {
	return s.databaseHits.Load(), s.userHits.Load(), s.pace.limitHits()
}

func (p *Pool) stats(now time.Time) Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := Stats{Key: p.key, Counters: p.counters, Size: p.limits.size, Reserve: p.limits.reserve, Min: p.limits.min, Clients: p.users, Connecting: p.connecting, Waiting: p.waiters.n, Paused: p.paused}
	st.Traffic = p.traffic.snapshot()
	st.LoginTimes, st.ConnectTimes = p.logins.snapshot(), p.connects.snapshot()
	st.QueryTimes, st.TransactionTimes = p.queries.snapshot(), p.transactions.snapshot()
	st.Queries, st.Transactions = st.QueryTimes.Count, st.TransactionTimes.Count
	for server := range p.servers {
		st.Cancels += server.cancels
		switch server.state {
		case stateActive:
			st.Active++
		case stateIdle:
			st.Idle++
		case stateUsed:
			st.Used++
		case stateHeld:
			st.Held++
			st.Cleaning++
		default:
			st.Cleaning++
		}
	}
	if first := p.waiters.first; first != nil {
		st.MaxWait = now.Sub(first.since)
	}
	if p.failures > 0 {
		st.LastConnectErr = p.lastErr.Error()
	}
	return st
}

// ServerStats is a snapshot of one server.
type ServerStats struct {
	Key
	Server     *Server // to be compared, and to be asked for its Wire and its Process
	State      string  // active, held, cleaning, tested, used, idle or new
	Born       time.Time
	Since      time.Time // it is idle; zero when it is not
	Leaves     bool      // it is closed when it is next given back
	Statements int       // prepared ones; -1 when its client knows
}

// Servers returns a snapshot of all servers.
func (s *Set) Servers() (list []ServerStats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pools {
		p.mu.Lock()
		for server := range p.servers {
			one := ServerStats{Key: p.key, Server: server, State: stateNames[server.state], Born: server.born, Leaves: server.leaves != "", Statements: -1}
			if server.state == stateIdle || server.state == stateUsed {
				one.Since, one.Statements = server.idleSince, server.State.Prepared() // nobody has it as long as mu is held
			}
			list = append(list, one)
		}
		p.mu.Unlock()
	}
	return list
}

// stateNames are PgBouncer's where it has the state (src/admin.c, show_socket_list callers).
var stateNames = [...]string{stateNew: "new", stateIdle: "idle", stateUsed: "used", stateTesting: "tested", stateActive: "active", stateHeld: "being_canceled", stateCleaning: "tested", stateClosed: "closed"}
