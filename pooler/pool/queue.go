package pool

import (
	"errors"
	"slices"
	"time"
)

// Errors that Owner.Granted and Acquire give and that callers decide on. A *ConnectError is the third.
var (
	ErrWaitTimeout = errors.New("query_wait_timeout")
	ErrClosed      = errors.New("the pool is closed")
)

// Waiter is one client's place in the queue. It is reused; one at a time.
type Waiter struct {
	owner      Owner
	since      time.Time
	queued     bool
	prev, next *Waiter
}

// NewWaiter returns a place in queues for owner.
func NewWaiter(owner Owner) *Waiter { return &Waiter{owner: owner} }

// queue is those who wait, first come first served.
type queue struct {
	first, last *Waiter
	n           int
}

func (q *queue) push(w *Waiter) {
	w.queued, w.prev, w.next = true, q.last, nil
	if q.last != nil {
		q.last.next = w
	} else {
		q.first = w
	}
	q.last = w
	q.n++
}

func (q *queue) remove(w *Waiter) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		q.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		q.last = w.prev
	}
	w.queued, w.prev, w.next = false, nil, nil
	q.n--
}

// Acquire lends a server to the waiter's owner. If none is free it returns nil and no error, and the owner is granted one later, or
// told of an error, as long as it does not Quit. The error is ErrClosed or a *ConnectError.
func (p *Pool) Acquire(w *Waiter) (*Server, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	if n := len(p.idle); n > 0 && p.waiters.n == 0 {
		at := n - 1
		if p.limits.roundRobin {
			at = 0
		}
		server := p.idle[at]
		p.idle = slices.Delete(p.idle, at, at+1)
		server.lend(w.owner)
		p.counters.Assignments++
		p.counters.observe(0)
		return server, nil
	}
	now := time.Now()
	if !p.paused && len(p.servers)+p.connecting == 0 && now.Before(p.retryAt) && !p.lastErr.busy() {
		p.counters.ConnectRefusals++
		return nil, p.lastErr
	}
	w.since = now
	p.waiters.push(w)
	p.launch(now)
	p.watchTimeout(now)
	return nil, nil
}

// Quit takes a waiter out of the queue. It reports false if it is not in it: its owner was granted a server, or told of an error,
// before.
func (p *Pool) Quit(w *Waiter) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !w.queued {
		return false
	}
	p.waiters.remove(w)
	p.counters.observe(time.Since(w.since))
	return true
}

// watchTimeout sees to it that somebody looks when the first waiter's time is over. The caller holds mu.
func (p *Pool) watchTimeout(now time.Time) {
	limit := p.limits.wait
	if limit == 0 || p.watching || p.waiters.n == 0 || p.closed {
		return
	}
	p.watching = true
	left := p.waiters.first.since.Add(limit).Sub(now)
	if p.timeout == nil {
		p.timeout = time.AfterFunc(left, p.expire)
	} else {
		p.timeout.Reset(left)
	}
}

// expire ends the wait of those who have waited for too long.
func (p *Pool) expire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watching = false
	now := time.Now()
	for w := p.waiters.first; w != nil && p.limits.wait > 0 && now.Sub(w.since) >= p.limits.wait; w = p.waiters.first {
		p.counters.WaitTimeouts++
		p.settle(w, now, nil, ErrWaitTimeout)
	}
	p.watchTimeout(now)
}

// settle ends a wait. The caller holds mu.
func (p *Pool) settle(w *Waiter, now time.Time, server *Server, err error) {
	p.waiters.remove(w)
	p.counters.observe(now.Sub(w.since))
	w.owner.Granted(server, err)
}
