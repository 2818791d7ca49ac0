package pooler

import (
	"context"
	"time"

	"pitr/internal/pgwire"
	"pitr/pooler/loop"
	"pitr/pooler/pool"
	"pitr/pooler/takeover"
)

// register makes a connection a client: it counts in max_client_conn and has a key for cancel requests,
// whose length depends on the version of the protocol.
func (p *Pooler) register(version uint32) (*client, error) {
	c := &client{pooler: p, worker: p.leastBusy(), arrived: time.Now()}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining {
		return nil, errShutdown
	}
	if len(p.clients) >= p.now().MaxClientConn {
		p.counters.clientLimitHits.Add(1)
		return nil, pgwire.Fatal("53300", "no more connections allowed (max_client_conn)")
	}
	var err error
	if c.process, c.key, err = p.newKey(version); err != nil {
		return nil, err
	}
	p.clients[c.process] = c
	p.notePublished(c.process)
	c.worker.clients.Add(1)
	return c, nil
}

func (p *Pooler) unregister(c *client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.clients, c.process)
	p.forgetPublished(c.process)
	p.leave(c)
}

// cancel passes a cancel request on to the server that works for the client that has this key, if one does at this moment. The
// server is not handed on before Postgres has taken notice, so that no other client's query can be hit. A client that is not ours may be one of the process whose place we took.
func (p *Pooler) cancel(process uint32, secret []byte) {
	if !p.forward(process, secret) {
		p.cancelFrom(nil, process, secret)
	}
}

// cancelFrom is cancel for a request that has come over a link, and does not go back there. nil: it has come from a client.
func (p *Pooler) cancelFrom(link *takeover.Link, process uint32, secret []byte) {
	switch c, o := p.holder(process, secret); {
	case c != nil:
		p.cancelClient(c)
	case o != nil:
		o.console.Interrupt()
	default:
		p.cancelElsewhere(link, process, secret)
	}
}

// holder returns the client, or the operator, whom a cancel key was given to: one of them, or neither.
func (p *Pooler) holder(process uint32, secret []byte) (*client, *operator) {
	secret = p.withoutHops(secret)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range p.published(process) {
		if c := p.clients[id]; c != nil && c.key.opens(secret) {
			return c, nil
		}
		if o := p.consoles[id]; o != nil && o.key.opens(secret) {
			return nil, o
		}
	}
	return nil, nil
}

// cancelElsewhere lets the processes before and behind us deal with a cancel request while a takeover lasts.
func (p *Pooler) cancelElsewhere(from *takeover.Link, process uint32, secret []byte) {
	for _, link := range []*takeover.Link{p.upgrade.predecessor.Load(), p.upgrade.successor.Load()} {
		if link == nil || link == from {
			continue
		}
		select {
		case p.cancels <- struct{}{}:
		default:
			p.counters.cancelLimitHits.Add(1)
			return
		}
		ctx, stop := context.WithTimeout(context.Background(), p.cancelPatience())
		err := link.Cancel(ctx, process, secret)
		stop()
		<-p.cancels
		if err != nil {
			p.log.Warn("cancel request not handed on to the other pooler", "pid", link.Peer, "error", err)
		}
	}
}

func (p *Pooler) cancelClient(c *client) {
	select {
	case p.cancels <- struct{}{}:
		defer func() { <-p.cancels }()
	default:
		p.counters.cancelLimitHits.Add(1)
		return
	}
	held := make(chan *pool.Server, 1)
	if !c.worker.Post(loop.Func(func() { held <- c.holdServer() })) {
		return
	}
	server := <-held
	if server == nil {
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), p.cancelPatience())
	defer stop()
	err := server.Cancel(ctx)
	unhold(c.pool, server, err == nil && ctx.Err() == nil)
	p.counters.cancelRequests.Add(1)
	if err != nil {
		p.log.Warn("cancel request not delivered", "pid", server.Process(), "error", err)
	}
}

// abandon asks Postgres to give up what a server does whose connection is closed: it would notice that only at the end of the query. Nobody else can be hit,
// since Postgres compares the key.
func (p *Pooler) abandon(server *pool.Server) {
	select {
	case p.cancels <- struct{}{}:
	default:
		p.counters.cancelLimitHits.Add(1)
		return
	}
	p.loops.Go(func() {
		defer func() { <-p.cancels }()
		ctx, stop := context.WithTimeout(context.Background(), p.cancelPatience())
		defer stop()
		if err := server.Cancel(ctx); err != nil {
			p.log.Warn("cancel request not delivered", "pid", server.Process(), "error", err)
		}
	})
}

// cancelPatience is how long a cancel request may take.
func (p *Pooler) cancelPatience() time.Duration {
	patience := p.now().ServerConnectTimeout.D()
	if limit := p.now().CancelWaitTimeout.D(); limit > 0 {
		patience = min(patience, limit)
	}
	return patience
}

// holdServer returns the server that works for the client, if one does, and keeps it from being handed on.
func (c *client) holdServer() *pool.Server {
	if c.server == nil || !c.machine.Outstanding() {
		return nil
	}
	c.pool.Hold(c.server)
	return c.server
}

// unhold lets go of a server, on the thread of the loop that has it, since it may be cleaned then. A server on hold does not move.
func unhold(servers *pool.Pool, held *pool.Server, delivered bool) {
	conn := held.Wire().(*backend).conn
	posted := conn.Loop().Post(loop.Func(func() {
		servers.Unhold(held, delivered)
	}))
	if !posted {
		servers.Unhold(held, false)
	}
}
