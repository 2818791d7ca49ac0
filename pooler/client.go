package pooler

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"pitr/internal/pgwire"
	"pitr/pooler/pool"
	"pitr/pooler/session"
)

// client drives one session: it owns the client's socket and one goroutine, which reads the client and writes to the linked
// server. What the server sends is brought by the server's own goroutine (FromServer), so that the two directions move
// independently of each other. Who writes to the client is whoever holds the word (speaking).
type client struct {
	pooler  *Pooler
	conn    net.Conn
	pool    *pool.Pool   // nil until the client has joined one
	waiter  *pool.Waiter // its place in the pool's queue
	process uint32       // with secret, the key of cancel requests
	secret  [4]byte
	options *session.Options
	quit    chan struct{} // closed when the client has to end
	writing atomic.Int64  // the coarse time since when somebody writes to conn, zero when nobody does
	queued  atomic.Int64  // the same for the wait for a server

	// mu guards everything below. It is never held while something is read, written, dialled or waited for, except on turn. Pool.mu
	// may be taken under it.
	mu       sync.Mutex
	turn     sync.Cond // of mu: somebody has stopped speaking, or a reply has come, or the client ends
	machine  *session.Session
	server   *pool.Server // linked
	speaking bool         // somebody writes to conn
	serving  bool         // it is a server's goroutine
	sending  bool         // the client's goroutine has to do with the linked server
	leftover bool         // the linked server has sent a part of a message that was not used
	busy     bool         // the client's goroutine has input to deal with
	back     handback
	ahead    []byte // what is to be sent to the server in front of the client's own
	toClient session.Output
	seen     session.Counters // what of the machine's counters was added up already
	loggedIn bool
	draining bool
	ended    bool
	unheard  bool            // something could not be written to the client, who must not be told more
	failure  *pgwire.Failure // what the client is told at the end

	toServer session.Output // belongs to the client's goroutine
}

// handback is a server that was taken from the session and is to be released once nobody has to do with it.
type handback struct {
	server    *pool.Server
	condition session.Condition
}

func newClient(p *Pooler, conn net.Conn) *client {
	c := &client{pooler: p, conn: conn, quit: make(chan struct{})}
	c.turn.L = &c.mu
	c.waiter = pool.NewWaiter(c)
	return c
}

func (c *client) join(servers *pool.Pool, options *session.Options) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pool, c.options = servers, options
}

// welcome finds out what the client is to be told of the settings that it will have. If nobody has asked for the same ones yet a
// server is asked, which also says whether they are valid at all.
func (c *client) welcome(params *session.Params) ([]pgwire.Param, error) {
	reported, known := c.pool.Welcome(params)
	if !known {
		probe := *c.options
		probe.Transaction = true
		c.mu.Lock()
		c.machine = session.New(&probe, params)
		c.mu.Unlock()
		if !c.acquire() {
			return nil, c.failed()
		}
		timeout := time.AfterFunc(c.pooler.cfg.ClientLoginTimeout.D(), func() { c.end(errLoginTimeout) })
		c.sendAhead()
		var failed error
		reported, failed = c.probed()
		timeout.Stop()
		if failed != nil {
			return nil, failed
		}
		c.pool.SetWelcome(params, reported)
	}
	c.mu.Lock()
	c.machine, c.ahead = session.New(c.options, params), nil
	c.mu.Unlock()
	return reported, nil
}

// probed waits until the server has the client's settings, and gives it back.
func (c *client) probed() (reported []pgwire.Param, err error) {
	c.mu.Lock()
	for !c.ended && c.server != nil && !(c.machine.CanRelease() && !c.serving) {
		c.turn.Wait()
	}
	if c.ended || c.server == nil {
		c.mu.Unlock()
		return nil, c.failed()
	}
	reported = c.server.State.Reported()
	c.sending = false
	c.unlink()
	c.handBackAndUnlock()
	return reported, nil
}

func (c *client) failed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure == nil {
		return net.ErrClosed
	}
	return c.failure
}

// greet tells the client that it is in.
func (c *client) greet(welcome []pgwire.Param) error {
	out := append(pgwire.AppendHeader(nil, 'R', 4), 0, 0, 0, 0) // AuthenticationOk
	for _, param := range welcome {
		out = pgwire.AppendParameterStatus(out, param)
	}
	out = pgwire.AppendHeader(out, 'K', 8) // BackendKeyData
	out = append(out, byte(c.process>>24), byte(c.process>>16), byte(c.process>>8), byte(c.process))
	out = append(out, c.secret[:]...)
	out = pgwire.AppendReady(out, pgwire.Idle)
	c.mu.Lock()
	c.loggedIn = true
	c.settle()
	c.mu.Unlock()
	_, err := c.conn.Write(out)
	return err
}

// serve passes on what the client sends until one side has had enough.
func (c *client) serve(early []byte) {
	size := int(c.pooler.cfg.PktBuf)
	buf := make([]byte, max(size, len(early)))
	have := copy(buf, early)
	for {
		used, want, goOn := c.handle(buf[:have])
		if !goOn {
			break
		}
		have = copy(buf, buf[used:have])
		buf = resize(buf, have, want, size)
		n, err := c.conn.Read(buf[have:])
		if err != nil {
			break
		}
		c.pooler.counters.fromClients.Add(uint64(n))
		have += n
	}
	c.finish()
}

// resize makes room for want bytes, of which the first have are there, and gives room back that is no longer wanted. What may be
// wanted is bounded by prepared_statement_size_max.
func resize(buf []byte, have, want, size int) []byte {
	want = max(want, have+1, size)
	if want <= len(buf) && (len(buf) == size || want > size) {
		return buf
	}
	resized := make([]byte, want)
	copy(resized, buf[:have])
	return resized
}

// handle deals with what the client has sent as far as possible. used is how much that was, want how much must be there next
// time; goOn is false when the client's time is over.
func (c *client) handle(in []byte) (used, want int, goOn bool) {
	for {
		c.mu.Lock()
		for c.speaking && !c.ended && c.machine.RepliesLen() >= int(c.pooler.cfg.PktBuf) {
			c.turn.Wait() // the client asks, and does not read
		}
		if c.ended {
			c.mu.Unlock()
			return used, 0, false
		}
		c.busy = true
		c.toServer.Reset(in[used:])
		if len(c.ahead) > 0 {
			c.toServer.Add(c.ahead)
			c.ahead = nil
		}
		step := c.machine.FromClient(in[used:], &c.toServer)
		used += step.N
		server := c.server
		c.sending = server != nil
		c.speakOwn()
		c.mu.Unlock()
		if out := c.toServer.Bytes(); len(out) > 0 {
			_ = server.Write(out) // if it is lost its own goroutine says so, after what it has still sent
		}
		c.toServer.Shrink(int(c.pooler.cfg.PktBuf) * 4)
		c.mu.Lock()
		c.sending = false
		c.busy = step.Verdict != session.Read || used < len(in)
		c.settle()
		c.handBackAndUnlock()
		switch step.Verdict {
		case session.Read:
			return used, step.Want, true
		case session.Need:
			goOn = c.acquire()
		case session.Full:
			goOn = c.waitDrained()
		case session.Leave:
			c.waitAnswered()
			goOn = false
		default:
			c.end(step.Failure)
			goOn = false
		}
		if !goOn {
			return used, 0, false
		}
	}
}

// sendAhead sends what a link has put in front of the client's own messages, when there are none.
func (c *client) sendAhead() {
	c.mu.Lock()
	server := c.server
	c.mu.Unlock()
	if server != nil && len(c.ahead) > 0 {
		_ = server.Write(c.ahead) // see handle
	}
}

// waitDrained waits until the server has answered enough of what the client has sent ahead.
func (c *client) waitDrained() bool {
	c.pooler.counters.pipelineLimitHits.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.ended && !c.machine.Drained() {
		c.turn.Wait()
	}
	return !c.ended
}

// waitAnswered lets the server answer what the client has asked for before it said goodbye, as Postgres does, unless the client
// does not even read the answers.
func (c *client) waitAnswered() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.ended && c.server != nil && c.machine.Owed() {
		c.turn.Wait()
	}
}

// acquire links a server.
func (c *client) acquire() bool {
	for {
		c.queued.Store(c.pooler.clock.Load() + 1)
		server, err := c.pool.Acquire(c.waiter, c.quit)
		c.queued.Store(0)
		if err != nil {
			c.end(acquireFailure(err))
			return false
		}
		c.mu.Lock()
		if lost := server.Lost() != nil; lost || c.ended {
			ended := c.ended
			c.mu.Unlock()
			condition := session.Clean
			if lost {
				condition = session.Broken
			}
			c.pool.Release(server, condition)
			if ended {
				return false
			}
			continue
		}
		c.server, c.sending, c.leftover = server, true, false
		c.toServer.Reset(nil)
		c.machine.Link(server.State, &c.toServer)
		c.ahead = append(c.ahead[:0], c.toServer.Bytes()...)
		c.mu.Unlock()
		return true
	}
}

func acquireFailure(err error) *pgwire.Failure {
	var refused *pool.ConnectError
	switch {
	case errors.Is(err, pool.ErrWaitTimeout):
		return pgwire.Fatal("08P01", "query_wait_timeout") // as PgBouncer does
	case errors.As(err, &refused):
		return pgwire.Fatal(refused.Code, refused.Reason())
	case errors.Is(err, pool.ErrClosed):
		return errShutdown
	}
	return nil
}

// end makes the client's goroutine stop. The first reason counts; nil is none that the client has to know.
func (c *client) end(failure *pgwire.Failure) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endLocked(failure)
}

func (c *client) endLocked(failure *pgwire.Failure) {
	if c.ended {
		return
	}
	c.ended, c.failure = true, failure
	close(c.quit)
	_ = c.conn.SetReadDeadline(time.Unix(1, 0)) // wakes the goroutine that reads
	c.turn.Broadcast()
}

// cut ends the client at once, whatever it or its server is doing.
func (c *client) cut(failure *pgwire.Failure) {
	c.mu.Lock()
	c.endLocked(failure)
	_ = c.conn.SetWriteDeadline(time.Unix(1, 0))
	server := c.server
	if server != nil {
		c.server = nil
		c.unheard = c.unheard || c.machine.InReply()
		c.machine.Unlink()
	}
	c.mu.Unlock()
	if server != nil {
		c.pool.Release(server, session.Broken)
	}
}

// drain makes the client go as soon as it has no transaction.
func (c *client) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = true
	if !c.loggedIn {
		c.endLocked(errShutdown)
		return
	}
	c.settle()
}

// abandon gives up a server that a login has not given back.
func (c *client) abandon() (reason *pgwire.Failure) {
	c.mu.Lock()
	c.endLocked(nil)
	for c.speaking {
		c.turn.Wait()
	}
	if c.server != nil {
		c.unlink()
	}
	reason = c.failure
	c.handBackAndUnlock()
	return reason
}

// finish is the end of the client's goroutine: the server goes back, or is closed, and the client is told why.
func (c *client) finish() {
	c.mu.Lock()
	c.endLocked(nil)
	if c.failure == nil {
		_ = c.conn.SetWriteDeadline(time.Unix(1, 0)) // nobody reads any more
	}
	for c.speaking {
		c.turn.Wait()
	}
	told := c.unheard || c.machine.ToldFatal() || c.machine.InReply()
	if c.server != nil {
		c.unlink()
	}
	c.handBackAndUnlock()
	if c.failure == nil || told {
		c.conn.Close()
		return
	}
	refuse(c.conn, c.failure)
}
