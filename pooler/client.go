package pooler

import (
	"errors"
	"sync/atomic"
	"time"

	"pitr/internal/pgwire"
	"pitr/pooler/loop"
	"pitr/pooler/pool"
	"pitr/pooler/session"
)

// client drives one session: it is the handler of the client's socket, and the owner of the servers that are lent to it. Everything
// but Granted happens on the thread of its worker, so that nothing is locked.
type client struct {
	pooler  *Pooler
	worker  *worker
	conn    *loop.Conn
	pool    *pool.Pool
	waiter  *pool.Waiter // its place in the pool's queue; nil until it has waited
	options *session.Options
	machine *session.Session
	server  *pool.Server // linked
	wire    *backend     // that of server
	entry   *entry       // until the client was greeted
	failure *pgwire.Failure
	who     *identity // nil until it has shown who it is
	arrived time.Time // when it was accepted
	began   time.Time // the present query; zero when there is none
	opened  time.Time // the present transaction
	heard   time.Time // the last input, or the end of the last query
	asked   time.Time // for a server, which it waits for
	told    bool      // that it waits
	because string    // it has gone, where that has no failure

	counted pool.Traffic // not added up yet

	process uint32 // with key, what its cancel requests carry
	key     cancelKey

	entered  bool // its worker has it; guarded by Pooler.mu
	waits    wait
	leaving  bool // it has said goodbye, and gets the answers to what it asked before
	draining bool // it is told to go as soon as it has no transaction
	busy     bool // there is input that was not dealt with
	leftover bool // the server has sent a part of a message that was not used
	ended    bool
	listens  bool // it has ever asked for notifications
	seen     session.Counters

	subscribing int          // changes of what is listened to that are not in force yet
	notes       atomic.Int64 // notifications on their way to it

	// granted is what the pool has given, until take. Whoever calls Granted writes it; the mailbox of the loop hands it over.
	granted struct {
		server *pool.Server
		err    error
	}
}

// wait is what a client that is not read waits for.
type wait uint8

const (
	waitsForNothing  wait = iota
	waitsForServer        // in the queue of its pool
	waitsForReplies       // until the server has answered more of what was sent ahead
	waitsForRoom          // until its server, or it itself, has read more of what was sent
	waitsForChannels      // until what it listens to is listened to
)

// Ready implements loop.Handler.
func (c *client) Ready() bool { return true }

// Input implements loop.Handler: it deals with what the client has sent as far as possible.
func (c *client) Input(in []byte) (used, want int) {
	c.heard = c.worker.Now()
	for !c.ended {
		if c.wire != nil && c.wire.conn.Blocked() {
			return used, c.hold(waitsForRoom)
		}
		out := &c.worker.toServer
		out.Reset(in[used:])
		step := c.machine.FromClient(in[used:], out)
		used += step.N
		c.busy = step.Verdict != session.Read || used < len(in)
		if c.wire != nil {
			c.wire.Write(out.Bytes())
		}
		out.Shrink(outputMax)
		c.worker.fromClients.Add(uint64(step.N))
		c.counted.Received += uint64(step.N)
		c.stamp()
		if c.subscribe(); c.subscribing > 0 {
			return used, c.hold(waitsForChannels)
		}
		c.say()
		switch step.Verdict {
		case session.Read:
			c.settle()
			if !c.ended && c.conn.Blocked() && c.server == nil {
				c.hold(waitsForRoom) // it asks for what the machine answers itself, and does not read
			}
			return used, step.Want
		case session.Need:
			if !c.acquire() {
				return used, 0
			}
		case session.Full:
			if c.machine.Drained() {
				continue
			}
			if !c.machine.Awaiting() {
				c.pooler.counters.pipelineLimitHits.Add(1)
			}
			return used, c.hold(waitsForReplies)
		case session.Leave:
			c.leave()
			return used, 0
		default:
			c.end(step.Failure)
		}
	}
	return len(in), 0
}

// hold stops reading the client until goOn is called for this reason.
func (c *client) hold(reason wait) (want int) {
	c.waits = reason
	c.conn.Pause()
	return 0
}

// goOn reads the client again.
func (c *client) goOn() {
	if c.waits == waitsForReplies || c.waits == waitsForRoom {
		c.waits = waitsForNothing
		c.conn.Resume()
	}
}

// leave lets the server answer what the client has asked for before it said goodbye, as Postgres does.
func (c *client) leave() {
	c.leaving = true
	c.conn.Pause()
	if c.server == nil || !c.machine.Owed() {
		c.end(nil)
	}
}

// acquire links a server. It reports false if the client has to wait for one, or has ended.
func (c *client) acquire() bool {
	if c.waiter == nil {
		c.waiter = pool.NewWaiter(c)
	}
	lent, err := c.pool.Acquire(c.waiter)
	switch {
	case err != nil:
		c.end(acquireFailure(err))
		return false
	case lent == nil:
		c.asked, c.told = c.worker.Now(), false
		c.hold(waitsForServer)
		return false
	}
	return c.link(lent)
}

// Granted implements pool.Owner.
func (c *client) Granted(lent *pool.Server, err error) {
	c.granted.server, c.granted.err = lent, err
	c.worker.Post((*grant)(c))
}

// grant is a client as the task that deals with what was granted.
type grant client

// Do implements loop.Task.
func (g *grant) Do() { (*client)(g).take() }

// take ends the wait for a server.
func (c *client) take() {
	lent, err := c.granted.server, c.granted.err
	c.granted.server, c.granted.err = nil, nil
	switch {
	case c.ended && lent != nil:
		c.pool.Release(lent, session.Clean)
	case c.ended:
	case err != nil:
		c.end(acquireFailure(err))
	case c.link(lent):
		c.waits = waitsForNothing
		c.conn.Resume()
	}
}

// link gives the machine a server that was lent to the client. It reports false if there is none now.
func (c *client) link(lent *pool.Server) bool {
	wire := lent.Wire().(*backend)
	if lent.Lost() != nil || c.worker.Take(wire.conn) != nil {
		c.pool.Release(lent, session.Broken)
		return c.acquire()
	}
	c.server, c.wire, c.leftover = lent, wire, false
	c.conn.SetWindow(1 << 30)
	out := &c.worker.toServer
	out.Reset(nil)
	c.machine.Link(lent.State, out)
	wire.Write(out.Bytes())
	if c.entry != nil {
		c.probed()
		return false
	}
	return true
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

// FromServer implements pool.Owner: it passes on what the server has sent. While the client does not read, neither is the server
// read; client_write_timeout bounds that.
func (c *client) FromServer(lent *pool.Server, in []byte) (n int, err error) {
	if c.server != lent {
		return 0, pool.ErrUnasked
	}
	if c.conn.Blocked() {
		c.leftover = true
		c.wire.conn.Pause()
		return 0, nil
	}
	out := &c.worker.toClient
	out.Reset(in)
	n, failure := c.machine.FromServer(in, out)
	c.leftover = n < len(in)
	c.wire.Write(c.machine.TakeResend())
	if c.entry == nil { // a notice during the login is not expected
		c.write(out.Bytes())
	}
	out.Shrink(outputMax)
	c.subscribe()
	c.say()
	c.count()
	switch {
	case failure != nil && c.machine.Another():
		c.another()
		return n, failure
	case failure != nil:
		c.end(failure)
		return n, failure
	case c.entry != nil:
		c.probed()
	case c.leaving && !c.machine.Owed():
		c.end(nil)
	case c.waits == waitsForReplies && c.machine.Drained():
		c.goOn()
	}
	c.settle()
	return n, nil
}

// another gives up a server that could not be brought to the client's settings, through no fault of the client, and asks for another.
func (c *client) another() {
	c.unlink()
	if c.entry != nil {
		c.acquire()
		return
	}
	c.goOn()
}

// ServerLost implements pool.Owner. A client whose server has gone cannot go on: it does not know what became of its transaction.
func (c *client) ServerLost(lent *pool.Server, err error) {
	if c.server != lent {
		return // it is not linked yet, or no longer; whoever links or releases it sees that it is lost
	}
	if c.machine.Another() {
		c.another()
		return
	}
	c.pooler.counters.serversLost.Add(1)
	c.pooler.log.Warn("server connection lost while a client used it", "pid", lent.Process(), "client", c.process, "error", err)
	c.end(pgwire.Fatal("08006", "the server connection was lost"))
}

// Flushed implements loop.Handler: the client has read what was sent to it.
func (c *client) Flushed() {
	if c.waits == waitsForRoom && (c.wire == nil || !c.wire.conn.Blocked()) {
		c.goOn()
	}
	if c.wire != nil {
		c.wire.conn.Resume()
	}
}

// Ended implements loop.Handler.
func (c *client) Ended(err error) {
	if errors.Is(err, loop.ErrWriteTimeout) {
		c.pooler.counters.writeTimeouts.Add(1)
		c.drop()
		return
	}
	if c.leaving && c.conn.Paused() && isEOF(err) {
		return // it has closed behind its goodbye; what it asked for is done all the same
	}
	c.because = "client unexpected eof"
	c.end(nil)
}

// settle gives the server back if its time has come, and ends a client that has been told to go and is idle.
func (c *client) settle() {
	if c.server != nil && !c.leftover && c.machine.Due() {
		c.unlink()
	}
	if c.draining && c.entry == nil && !c.busy && !c.ended && c.machine.Idle() {
		c.end(errShutdown)
	}
}

// unlink takes the server from the session and gives it back.
func (c *client) unlink() {
	lent, condition := c.server, c.machine.Unlink()
	if c.leftover {
		condition = session.Broken
	}
	c.server, c.wire, c.leftover = nil, nil, false
	c.opened, c.began = time.Time{}, time.Time{}
	c.conn.SetWindow(int(c.pooler.cfg.PktBuf))
	c.pool.Release(lent, condition)
}

// say writes the replies that the machine itself gives.
func (c *client) say() {
	if c.machine.HasReplies() && c.subscribing == 0 {
		c.write(c.machine.TakeReplies())
	}
}

func (c *client) write(out []byte) {
	if len(out) > 0 {
		c.worker.toClients.Add(uint64(len(out)))
		c.counted.Sent += uint64(len(out))
		c.conn.Write(out)
	}
}

// stamp notes when a query and a transaction have begun.
func (c *client) stamp() {
	if c.server == nil || !c.began.IsZero() {
		return
	}
	c.began = c.worker.Now()
	if c.opened.IsZero() {
		c.opened = c.began
	}
}

// count adds up what the machine has counted. Of a pipeline the time is counted for all its queries together.
func (c *client) count() {
	now := c.machine.Counters()
	if now.Queries == c.seen.Queries && now.Replays == c.seen.Replays || c.entry != nil {
		return
	}
	at := c.worker.Now()
	c.pool.CountQueries(now.Queries-c.seen.Queries, at.Sub(c.began))
	if transactions := now.Transactions - c.seen.Transactions; transactions > 0 {
		c.pool.CountTransactions(transactions, at.Sub(c.opened))
		c.opened = time.Time{}
	}
	c.tally(now)
	c.began, c.seen, c.heard = time.Time{}, now, at
	if c.machine.Owed() {
		c.stamp()
	}
}

// tally adds to the pool's numbers what was counted since the last time.
func (c *client) tally(now session.Counters) {
	c.counted.ClientParses = now.ClientParses - c.seen.ClientParses
	c.counted.ServerParses = now.ServerParses - c.seen.ServerParses
	c.counted.Binds = now.Binds - c.seen.Binds
	c.pool.CountTraffic(c.counted)
	c.counted = pool.Traffic{}
}

// drain makes the client go as soon as it has no transaction.
func (c *client) drain() {
	c.draining = true
	if c.entry != nil {
		c.end(errShutdown)
		return
	}
	c.settle()
}

// farewellTimeout bounds the last message to a client, which it may not want to read.
const farewellTimeout = time.Second

// end gives up the client: the server goes back, or is closed, and the client is told why. The first reason counts; nil is none that
// it has to know.
func (c *client) end(failure *pgwire.Failure) {
	if c.ended {
		return
	}
	c.quit()
	told := c.machine.ToldFatal() || c.machine.InReply()
	if c.server != nil {
		c.unlink()
	}
	if failure != nil && !told {
		c.conn.Write(pgwire.AppendError(nil, failure))
	}
	c.conn.Finish(farewellTimeout)
	level := c.pooler.goodbyeLevel()
	switch {
	case failure != nil:
		c.because = failure.Message
		if failure != errShutdown {
			level = c.pooler.errorLevel()
		}
	case c.leaving:
		c.because = "client close request"
	}
	c.closing(level)
	c.pooler.gone(c, failure)
}

// drop gives up a client that does not read.
func (c *client) drop() {
	if c.ended {
		return
	}
	c.quit()
	if c.server != nil {
		c.unlink()
	}
	c.conn.Close()
	c.because = "client_write_timeout"
	c.closing(c.pooler.errorLevel())
	c.pooler.gone(c, nil)
}

// quit leaves the queue. What was granted in this moment is given back by take.
func (c *client) quit() {
	c.ended = true
	if c.machine != nil {
		c.tally(c.machine.Counters())
		c.seen = c.machine.Counters()
	}
	c.unsubscribe()
	if c.waits == waitsForServer {
		c.pool.Quit(c.waiter)
	}
}
