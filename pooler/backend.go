package pooler

import (
	"context"
	"errors"
	"net"

	"pitr/config"
	"pitr/pooler/loop"
	"pitr/pooler/pool"
)

// backend drives one connection to Postgres: it is the pool's Wire and the loop's Handler. While it is lent it is in the loop of the
// client that has it.
type backend struct {
	home   *worker // where it begins
	pooled *pool.Server
	conn   *loop.Conn

	remote, local net.Addr
}

// dialStream is how pools connect.
func dialStream(cfg config.Pooler) func(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{KeepAlive: -1, Control: tuned(cfg)}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return loop.NewStream(conn), nil
	}
}

// attach takes a connection over that a pool has made.
func (p *Pooler) attach(pooled *pool.Server, conn net.Conn) (pool.Wire, error) {
	remote, local := conn.RemoteAddr(), conn.LocalAddr()
	taken, err := loop.NewConn(conn, loop.Options{First: true})
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &backend{home: p.leastBusy(), pooled: pooled, conn: taken, remote: remote, local: local}, nil
}

// Start implements pool.Wire.
func (b *backend) Start() error { return b.home.Add(b.conn, b) }

// Write implements pool.Wire.
func (b *backend) Write(out []byte) { b.conn.Write(out) }

// Post implements pool.Wire.
func (b *backend) Post(out []byte) {
	loopOf := b.conn.Loop() // nobody takes the connection elsewhere, since nobody has the server
	if !loopOf.Post(loop.Func(func() { b.conn.Write(out) })) {
		b.Shut()
	}
}

// Shut implements pool.Wire.
func (b *backend) Shut() { b.conn.Shut() }

// Ready implements loop.Handler: a server that nobody has is not expected to say anything, and one that was lent to a client of
// another loop is read there.
func (b *backend) Ready() bool {
	switch owner := b.pooled.Owner().(type) {
	case nil:
		b.pooled.Unasked()
		return false
	case *client:
		return owner.worker.Loop == b.conn.Loop()
	}
	return true
}

// messageMax bounds what is kept of a server's messages because it has to be there as a whole.
const messageMax = 64 << 10

var errOverlong = errors.New("the server sent a message that is too long to be read as a whole")

// Input implements loop.Handler.
func (b *backend) Input(in []byte) (used, want int) {
	used, err := b.pooled.Deliver(in)
	if err == nil && len(in)-used >= messageMax && !b.conn.Paused() {
		err = errOverlong
	}
	if err != nil {
		b.pooled.Fail(err)
		return len(in), 0
	}
	return used, 0
}

// Flushed implements loop.Handler: the client that has the server may send more.
func (b *backend) Flushed() {
	if c, ok := b.pooled.Owner().(*client); ok && c.server == b.pooled {
		c.goOn()
	}
}

// Ended implements loop.Handler.
func (b *backend) Ended(err error) { b.pooled.Fail(err) }
