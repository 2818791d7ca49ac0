package pooler

import (
	"fmt"
	"sync/atomic"

	"pitr/pooler/loop"
	"pitr/pooler/session"
)

// worker is one loop with what its clients share. Only its thread touches it, but for the counters.
type worker struct {
	*loop.Loop
	toServer, toClient session.Output
	fromClients        atomic.Uint64 // bytes
	toClients          atomic.Uint64
	clients            atomic.Int64
}

// outputMax is what an Output may keep for the next message.
const outputMax = 128 << 10

func (p *Pooler) newWorkers(n int) error {
	for range n {
		l, err := loop.New(loop.Config{WriteTimeout: p.cfg.ClientWriteTimeout.D()})
		if err != nil {
			return fmt.Errorf("event loop: %w", err)
		}
		p.workers = append(p.workers, &worker{Loop: l})
	}
	return nil
}

// leastBusy returns the worker that has the fewest clients.
func (p *Pooler) leastBusy() *worker {
	least := p.workers[0]
	for _, w := range p.workers[1:] {
		if w.clients.Load() < least.clients.Load() {
			least = w
		}
	}
	return least
}

// runWorkers drives the workers until they are told to stop.
func (p *Pooler) runWorkers() {
	for _, w := range p.workers {
		p.loops.Go(func() {
			if err := w.Run(); err != nil {
				panic("pooler: the event loop cannot wait: " + err.Error())
			}
		})
	}
}

func (p *Pooler) stopWorkers() {
	for _, w := range p.workers {
		w.Stop()
	}
	p.loops.Wait()
}
