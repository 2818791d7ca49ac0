package pooler

import (
	"pitr/internal/pgwire"
	"pitr/pooler/pool"
	"pitr/pooler/session"
)

// FromServer implements pool.Owner: the server's goroutine passes what the server has sent on to the client. While the client does
// not read, neither is the server read; client_write_timeout bounds that.
func (c *client) FromServer(server *pool.Server, in []byte) (n int, err error) {
	c.mu.Lock()
	for c.speaking && c.server == server {
		c.turn.Wait()
	}
	if c.server != server {
		c.mu.Unlock()
		return 0, pool.ErrUnasked
	}
	c.speaking, c.serving = true, true
	c.toClient.Reset(in)
	n, failure := c.machine.FromServer(in, &c.toClient)
	c.leftover = n < len(in)
	if failure != nil {
		c.endLocked(failure)
	}
	c.count()
	c.settle()
	out := c.toClient.Bytes()
	if !c.loggedIn {
		out = nil // a notice during the login; the client does not expect any
	}
	c.mu.Unlock()
	if len(out) > 0 {
		c.write(out)
	}
	c.toClient.Shrink(int(c.pooler.cfg.PktBuf))
	c.mu.Lock()
	c.sayOwn()
	c.speaking, c.serving = false, false
	c.turn.Broadcast()
	c.settle()
	c.handBackAndUnlock()
	if failure != nil {
		return n, failure
	}
	return n, nil
}

// ServerLost implements pool.Owner. A client whose server has gone cannot go on: it does not know what became of its transaction.
func (c *client) ServerLost(server *pool.Server, err error) {
	c.mu.Lock()
	if c.server != server {
		c.mu.Unlock()
		return // it is not linked yet, or no longer; whoever acquires or releases it sees that it is lost
	}
	c.unheard = c.unheard || c.machine.InReply()
	c.server = nil
	c.machine.Unlink()
	c.endLocked(pgwire.Fatal("08006", "the server connection was lost"))
	c.mu.Unlock()
	c.pooler.counters.serversLost.Add(1)
	c.pooler.log.Warn("server connection lost while a client used it", "pid", server.Process(), "client", c.process, "error", err)
	c.pool.Release(server, session.Broken)
}

// settle takes the server from the session if its time has come, and ends a client that has been told to go and is idle. The
// caller holds mu and calls handBackAndUnlock before long.
func (c *client) settle() {
	if c.server != nil && !c.sending && !c.leftover && c.back.server == nil && c.machine.Due() {
		c.unlink()
	}
	if c.draining && c.loggedIn && !c.busy && !c.ended && c.machine.Idle() {
		c.endLocked(errShutdown)
	}
}

// unlink takes the server from the session. The caller holds mu.
func (c *client) unlink() {
	c.back = handback{c.server, c.machine.Unlink()}
	if c.leftover {
		c.back.condition = session.Broken
	}
	c.server = nil
}

// handBackAndUnlock releases the server that was unlinked, unless its goroutine is still writing what it has brought: then that
// does it, since the next client should not have to wait for this one to read. The caller holds mu, which is unlocked.
func (c *client) handBackAndUnlock() {
	for c.back.server != nil && !c.serving {
		back := c.back
		c.back = handback{}
		c.settle() // another server may have been linked meanwhile, whose turn it is now
		more := c.back.server != nil
		c.mu.Unlock()
		c.pool.Release(back.server, back.condition)
		if !more {
			return
		}
		c.mu.Lock()
	}
	c.mu.Unlock()
}

// speakOwn writes the replies that the machine itself gives, unless somebody else is speaking, who then does it. The caller holds
// mu, which is given up in between.
func (c *client) speakOwn() {
	if c.speaking || !c.machine.HasReplies() {
		return
	}
	c.speaking = true
	c.sayOwn()
	c.speaking = false
	c.turn.Broadcast()
}

// sayOwn writes the machine's own replies until there are no more. The caller holds mu, which is given up in between, and speaks.
func (c *client) sayOwn() {
	for {
		out := c.machine.TakeReplies()
		if out == nil {
			return
		}
		c.mu.Unlock()
		c.write(out)
		c.mu.Lock()
	}
}

// write writes to the client. Whoever calls it speaks.
func (c *client) write(out []byte) {
	c.writing.Store(c.pooler.clock.Load() + 1)
	n, err := c.conn.Write(out)
	c.writing.Store(0)
	c.pooler.counters.toClients.Add(uint64(n))
	if err == nil {
		return
	}
	c.mu.Lock()
	c.unheard = true
	c.endLocked(nil)
	c.mu.Unlock()
}

// count adds up what the machine has counted. The caller holds mu.
func (c *client) count() {
	now := c.machine.Counters()
	if now != c.seen && c.loggedIn {
		c.pool.Add(now.Queries-c.seen.Queries, now.Transactions-c.seen.Transactions)
		c.seen = now
	}
}
