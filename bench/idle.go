package main

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// loginsAtOnce is how many clients of the workload idle log in at the same time.
const loginsAtOnce = 50

// idleRun opens the clients, has each run one query, waits, and looks at what the pooler then holds. All come from one address:
// the kernel has 28,000 ports for that.
func (r *race) idleRun(ctx context.Context, s *service) (map[metric]float64, error) {
	conns := make([]*conn, r.options.idleClients)
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.close()
			}
		}
	}()
	begin := time.Now()
	if err := r.logIn(ctx, s.at, conns); err != nil {
		return nil, err
	}
	took := time.Since(begin)
	settled := time.NewTimer(r.options.idleSettle)
	defer settled.Stop()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-settled.C:
	}
	held, err := memoryOf(s.pids())
	if err != nil {
		return nil, err
	}
	// Whoever was dropped meanwhile would make the pooler look lean.
	for i, c := range conns {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if _, err := c.ask(); err != nil {
			return nil, fmt.Errorf("client %d of %d, after its idle time: %w", i+1, len(conns), err)
		}
	}
	return map[metric]float64{logins: float64(len(conns)) / took.Seconds(), rss: float64(held.rss) / (1 << 20), pss: float64(held.pss) / (1 << 20)}, nil
}

// logIn fills conns with clients that have run one query each.
func (r *race) logIn(ctx context.Context, at address, conns []*conn) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var workers sync.WaitGroup
	next := make(chan int)
	for range loginsAtOnce {
		workers.Go(func() {
			for i := range next {
				c, err := dial(ctx, at, 512)
				if err == nil {
					conns[i] = c
					_, err = c.ask()
				}
				if err != nil {
					cancel(fmt.Errorf("client %d of %d: %w", i+1, len(conns), err))
				}
			}
		})
	}
feed:
	for i := range conns {
		select {
		case <-ctx.Done():
			break feed
		case next <- i:
		}
	}
	close(next)
	workers.Wait()
	return context.Cause(ctx)
}
