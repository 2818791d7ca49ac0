package pool

import (
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

// Stats is a snapshot of one pool.
type Stats struct {
	Key
	Counters
	QueryTimes       Histogram
	TransactionTimes Histogram
	Size             int
	Active           int // servers that are lent
	Idle             int
	Cleaning         int // servers that are made clean, or wait for a cancel
	Connecting       int
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

func (p *Pool) stats(now time.Time) Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := Stats{Key: p.key, Counters: p.counters, Size: p.size, Connecting: p.connecting, Waiting: p.waiters.n}
	st.QueryTimes, st.TransactionTimes = p.queries.snapshot(), p.transactions.snapshot()
	st.Queries, st.Transactions = st.QueryTimes.Count, st.TransactionTimes.Count
	for server := range p.servers {
		switch server.state {
		case stateActive:
			st.Active++
		case stateIdle:
			st.Idle++
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
