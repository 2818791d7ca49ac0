package pooler

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"net"

	"pitr/internal/pgwire"
)

// register makes a connection a client: it counts in max_client_conn and has a key for cancel requests.
func (p *Pooler) register(conn net.Conn) (*client, error) {
	c := newClient(p, conn)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining {
		return nil, errShutdown
	}
	if len(p.clients) >= p.cfg.MaxClientConn {
		p.counters.clientLimitHits.Add(1)
		return nil, pgwire.Fatal("53300", "no more connections allowed (max_client_conn)")
	}
	var random [8]byte
	for c.process == 0 || p.clients[c.process] != nil {
		if _, err := rand.Read(random[:]); err != nil {
			return nil, fmt.Errorf("random cancel key: %w", err)
		}
		c.process = binary.BigEndian.Uint32(random[:]) >> 1 // a positive int32, as clients expect
	}
	copy(c.secret[:], random[4:])
	p.clients[c.process] = c
	delete(p.conns, conn)
	return c, nil
}

func (p *Pooler) unregister(c *client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.clients, c.process)
}

// cancel passes a cancel request on to the server that works for the client that has this key, if one does at this moment. The
// server is not handed on before Postgres has taken notice, so that no other client's query can be hit.
func (p *Pooler) cancel(process uint32, secret []byte) {
	p.mu.Lock()
	c := p.clients[process]
	p.mu.Unlock()
	if c == nil || subtle.ConstantTimeCompare(secret, c.secret[:]) != 1 {
		return
	}
	select {
	case p.cancels <- struct{}{}:
		defer func() { <-p.cancels }()
	default:
		p.counters.cancelLimitHits.Add(1)
		return
	}
	c.mu.Lock()
	server := c.server
	if server == nil || !c.machine.Outstanding() {
		c.mu.Unlock()
		return
	}
	c.pool.Hold(server)
	c.mu.Unlock()
	ctx, stop := context.WithTimeout(context.Background(), p.cfg.ServerConnectTimeout.D())
	defer stop()
	err := server.Cancel(ctx)
	c.pool.Unhold(server, err == nil && ctx.Err() == nil)
	p.counters.cancelRequests.Add(1)
	if err != nil {
		p.log.Warn("cancel request not delivered", "pid", server.Process(), "error", err)
	}
}
