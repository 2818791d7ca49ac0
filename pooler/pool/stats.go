package pool

import "time"

// WaitBuckets are the upper bounds of the wait-time histogram; a last bucket has no bound.
var WaitBuckets = [...]time.Duration{
	100 * time.Microsecond, time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond,
	500 * time.Millisecond, time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second, 60 * time.Second,
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
	Size           int
	Active         int // servers that are lent
	Idle           int
	Cleaning       int // servers that are made clean, or wait for a cancel
	Connecting     int
	Waiting        int           // clients in the queue
	MaxWait        time.Duration // of those in the queue
	LastConnectErr string
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
	st := Stats{Key: p.key, Counters: p.counters, Size: p.size, Connecting: p.connecting, Waiting: p.waiters.Len()}
	st.Queries, st.Transactions = p.queries.Load(), p.transactions.Load()
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
	if first := p.waiters.Front(); first != nil {
		st.MaxWait = now.Sub(first.Value.(*Waiter).since)
	}
	if p.failures > 0 {
		st.LastConnectErr = p.lastErr.Error()
	}
	return st
}
