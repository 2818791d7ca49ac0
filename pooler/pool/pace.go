package pool

import (
	"sync"
	"time"
)

// pace bounds connects per second by address, so that a server that comes back does not meet a herd.
type pace struct {
	// mu guards the rest. It may be taken under Pool.mu, and nothing is taken under it.
	mu      sync.Mutex
	rate    int // zero: no bound
	buckets map[string]*bucket
	hits    uint64
	wake    func() // called when a connect that came too early may be tried again
	waiting bool   // it will be
}

// bucket holds the connects that may be made at once: at most those of a second.
type bucket struct {
	tokens float64
	filled time.Time
}

// bucketsMax bounds the addresses that are remembered. One that is forgotten begins with a full bucket.
const bucketsMax = 10000

func (p *pace) setRate(rate int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate, p.buckets = rate, map[string]*bucket{}
}

// take counts one connect to the address, unless it comes too early.
func (p *pace) take(address string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rate == 0 {
		return true
	}
	b := p.buckets[address]
	if b == nil {
		if len(p.buckets) >= bucketsMax {
			clear(p.buckets)
		}
		b = &bucket{tokens: float64(p.rate), filled: now}
		p.buckets[address] = b
	}
	if passed := now.Sub(b.filled); passed > 0 {
		b.tokens = min(b.tokens+passed.Seconds()*float64(p.rate), float64(p.rate))
		b.filled = now
	}
	if b.tokens < 1 {
		p.hits++
		if !p.waiting {
			p.waiting = true
			time.AfterFunc(time.Duration((1-b.tokens)/float64(p.rate)*float64(time.Second))+time.Millisecond, p.again)
		}
		return false
	}
	b.tokens--
	return true
}

func (p *pace) again() {
	p.mu.Lock()
	p.waiting = false
	p.mu.Unlock()
	p.wake()
}

func (p *pace) limitHits() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hits
}
