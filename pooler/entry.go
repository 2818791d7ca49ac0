package pooler

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"pitr/internal/pgwire"
	"pitr/pooler/loop"
	"pitr/pooler/session"
)

// entry is a client's way from the end of its authentication, which a goroutine of its own has done, to ReadyForQuery.
type entry struct {
	params  *session.Params
	tell    []byte // the last message of the authentication, if it has one
	timer   *time.Timer
	remote  string
	address netip.Addr
}

// enter hands a client that has shown who it is to its worker. early is what it has already sent behind its login.
// raw is the connection as it was accepted, conn what has become of it.
func (p *Pooler) enter(c *client, raw, conn net.Conn, early []byte) error {
	taken, err := loop.NewConn(conn, loop.Options{Limited: true, Early: early})
	if err != nil {
		return err
	}
	c.conn = taken
	c.conn.SetWindow(int(p.cfg.PktBuf))
	c.conn.Pause()
	c.machine = session.New(c.options, c.entry.params)
	if !p.handOver(c, raw) {
		return errors.Join(errShutdown, taken.Discard())
	}
	return nil
}

// begin finds out what the client is to be told of the settings that it will have. If nobody has asked for the same ones yet a
// server is asked, which also says whether they are valid at all.
func (c *client) begin() {
	if err := c.worker.Add(c.conn, c); err != nil {
		c.ended = true
		c.pooler.log.Error("client not served", "client", c.entry.remote, "error", err)
		c.pooler.gone(c, nil)
		return
	}
	if c.draining {
		c.end(errShutdown)
		return
	}
	if welcome, known := c.pool.Welcome(c.entry.params); known {
		c.greet(welcome)
		return
	}
	probe := *c.options
	probe.Transaction, probe.Cautious = true, true
	c.machine = session.New(&probe, c.entry.params)
	c.entry.timer = time.AfterFunc(c.pooler.cfg.ClientLoginTimeout.D(), func() {
		c.worker.Post(loop.Func(func() {
			if c.entry != nil {
				c.end(errLoginTimeout)
			}
		}))
	})
	c.acquire()
}

// probed goes on once the server has the client's settings.
func (c *client) probed() {
	if c.leftover || !c.machine.CanRelease() {
		return
	}
	welcome := c.server.State.Reported()
	c.pool.SetWelcome(c.entry.params, welcome)
	c.unlink()
	c.machine = session.New(c.options, c.entry.params)
	c.greet(welcome)
}

// greet tells the client that it is in.
func (c *client) greet(welcome []pgwire.Param) {
	if c.entry.timer != nil {
		c.entry.timer.Stop()
	}
	out := append(pgwire.AppendHeader(c.entry.tell, 'R', 4), 0, 0, 0, 0) // AuthenticationOk
	c.pooler.loginOver(c.entry.address)
	c.entry, c.waits, c.heard = nil, waitsForNothing, c.worker.Now()
	c.seen = c.machine.Counters()
	c.pool.CountLogin(c.heard.Sub(c.arrived))
	c.pooler.counters.logins.Add(1)
	for _, param := range welcome {
		out = pgwire.AppendParameterStatus(out, param)
	}
	out = c.welcomed(out)
	out = pgwire.AppendHeader(out, 'K', 4+len(c.key.secret())) // BackendKeyData
	out = binary.BigEndian.AppendUint32(out, c.pooler.publish(c.process))
	out = append(out, c.key.secret()...)
	c.write(pgwire.AppendReady(out, pgwire.Idle))
	c.conn.Resume()
	c.settle()
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) }
