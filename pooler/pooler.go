// Package pooler is the data plane: it accepts clients, lets them in, and lends them server connections by the transaction or by
// the session. It is the thin driver around three parts that know nothing of each other: package session says what a message
// means, package pool lends servers, package auth says who may come in. It owns the sockets of clients and one goroutine for each,
// and never sees the archive. See docs/decisions/0002-pooler-session-machine.md.
package pooler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"pitr/config"
	"pitr/internal/pgwire"
	"pitr/pooler/auth"
	"pitr/pooler/pool"
)

// Pooler is one pooler. Make it with New, then call Listen, then Run.
type Pooler struct {
	cfg       config.Pooler
	log       *slog.Logger
	users     *auth.Users
	pools     *pool.Set
	listeners []net.Listener
	logins    chan struct{} // one token for each client that has not logged in
	cancels   chan struct{} // one token for each cancel request on its way
	clock     atomic.Int64  // seconds since start, for timeouts that need no more
	counters  counters
	work      sync.WaitGroup // the goroutines of clients

	// mu guards the fields below. It is held for map operations only; client.mu must not be taken under it.
	mu       sync.Mutex
	clients  map[uint32]*client    // by the process id that the client was given
	conns    map[net.Conn]struct{} // those that are no client yet
	draining bool
}

// New checks the configuration and reads the users. It opens no socket.
func New(cfg config.Config, log *slog.Logger) (*Pooler, error) {
	users, err := auth.Load(cfg.Pooler.Auth, cfg.Pooler.Users)
	if err != nil {
		return nil, err
	}
	if err := pool.CheckDSN(cfg.Postgres.DSN); err != nil {
		return nil, err
	}
	p := &Pooler{
		cfg: cfg.Pooler, log: log, users: users, clients: map[uint32]*client{}, conns: map[net.Conn]struct{}{},
		logins: make(chan struct{}, cfg.Pooler.MaxLoginConn), cancels: make(chan struct{}, cfg.Pooler.MaxCancelRequests),
	}
	p.pools = pool.NewSet(cfg.Pooler, cfg.Postgres.DSN, users.Password, log)
	return p, nil
}

// Listen opens all addresses of pooler.listen. Clients are served once Run is called. After an error none is open.
func (p *Pooler) Listen() error {
	for _, address := range p.cfg.Listen {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			p.closeListeners()
			return fmt.Errorf("pooler.listen: %w", err)
		}
		p.listeners = append(p.listeners, listener)
	}
	return nil
}

// Addr returns the first address that Listen has opened, nil before.
func (p *Pooler) Addr() net.Addr {
	if len(p.listeners) == 0 {
		return nil
	}
	return p.listeners[0].Addr()
}

func (p *Pooler) closeListeners() {
	for _, listener := range p.listeners {
		listener.Close()
	}
}

// Ready reports whether Postgres lets us in: nil when a server connection exists, or else the outcome of a login.
func (p *Pooler) Ready(ctx context.Context) error { return p.pools.Ready(ctx) }

// Run serves clients until ctx ends, then drains: idle clients are told to go, open transactions may end within drain_timeout.
// It returns when everything that it has started has ended, and can be called once.
func (p *Pooler) Run(ctx context.Context) error {
	start := time.Now()
	var accepting, helpers sync.WaitGroup
	stopHelpers := make(chan struct{})
	helpers.Go(func() { p.tick(start, stopHelpers) })
	for _, listener := range p.listeners {
		p.log.Info("pooler listening", "address", listener.Addr().String())
		accepting.Go(func() { p.accept(ctx, listener) })
	}
	<-ctx.Done()
	p.closeListeners()
	accepting.Wait()
	drained, cut := p.drain()
	p.pools.Close()
	close(stopHelpers)
	helpers.Wait()
	p.log.Info("pooler stopped", "clients_drained", drained, "clients_cut", cut, "after", time.Since(start).Round(time.Millisecond))
	return nil
}

// acceptPause is how long accepting stops after an error such as too many open files.
const acceptPause = 100 * time.Millisecond

func (p *Pooler) accept(ctx context.Context, listener net.Listener) {
	for {
		conn, err := listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			p.counters.acceptErrors.Add(1)
			p.log.Warn("accept stopped for a moment", "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(acceptPause):
			}
			continue
		}
		select {
		case p.logins <- struct{}{}:
			p.work.Go(func() { p.serve(conn) })
		default:
			p.counters.loginLimitHits.Add(1)
			refuse(conn, pgwire.Fatal("53300", "no more connections are allowed to log in at the same time (max_login_conn)"))
		}
	}
}

// refuse tells a client why it cannot stay, as far as that is possible without waiting for it, and closes.
func refuse(conn net.Conn, failure *pgwire.Failure) {
	_ = conn.SetWriteDeadline(time.Now().Add(farewellTimeout))
	_, _ = conn.Write(pgwire.AppendError(nil, failure))
	conn.Close()
}

// farewellTimeout bounds the last message to a client, which it may not want to read.
const farewellTimeout = time.Second

// serve is the goroutine of one client, from its first byte to its last.
func (p *Pooler) serve(conn net.Conn) {
	if !p.track(conn) {
		<-p.logins
		refuse(conn, errShutdown)
		return
	}
	defer p.untrack(conn)
	c, early, err := p.login(conn)
	<-p.logins
	switch {
	case err != nil:
		if c != nil {
			if reason := c.abandon(); reason != nil {
				err = reason
			}
		}
		p.loginFailed(conn, err)
	case c == nil:
		conn.Close() // a cancel request
	default:
		c.serve(early)
	}
	if c != nil {
		p.unregister(c)
		if c.pool != nil {
			c.pool.Leave()
		}
	}
}

func (p *Pooler) track(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining {
		return false
	}
	p.conns[conn] = struct{}{}
	return true
}

func (p *Pooler) untrack(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, conn)
}

// errShutdown is what Postgres says in ProcessInterrupts (src/backend/tcop/postgres.c).
var errShutdown = pgwire.Fatal("57P01", "terminating connection due to administrator command")

// drain tells all clients to go, waits for them as long as it may, then cuts those that are left.
func (p *Pooler) drain() (drained, cut int) {
	p.mu.Lock()
	p.draining = true
	var clients []*client
	for _, c := range p.clients {
		clients = append(clients, c)
	}
	for conn := range p.conns {
		conn.Close()
	}
	p.mu.Unlock()
	for _, c := range clients {
		c.drain()
	}
	gone := make(chan struct{})
	go func() {
		p.work.Wait()
		close(gone)
	}()
	timeout := time.NewTimer(p.cfg.DrainTimeout.D())
	defer timeout.Stop()
	select {
	case <-gone:
		return len(clients), 0
	case <-timeout.C:
	}
	p.mu.Lock()
	var left []*client
	for _, c := range p.clients {
		left = append(left, c)
	}
	p.mu.Unlock()
	for _, c := range left {
		c.cut(errShutdown)
	}
	<-gone
	return len(clients) - len(left), len(left)
}

// tick keeps the coarse clock, cuts clients that hold a server without reading what it sends, and ends those that have vanished
// while they wait for one.
func (p *Pooler) tick(start time.Time, stop <-chan struct{}) {
	ticker := time.NewTicker(tickPause)
	defer ticker.Stop()
	looked := int64(0) // at those who wait
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
		}
		now := int64(time.Since(start) / tickPause)
		p.clock.Store(now)
		if now-looked >= vanishTicks {
			looked = now
			for _, c := range p.queued(now) {
				if hasVanished(c.conn) {
					c.end(nil)
				}
			}
		}
		limit := int64(p.cfg.ClientWriteTimeout.D() / tickPause)
		if p.cfg.ClientWriteTimeout == 0 {
			continue
		}
		for _, c := range p.stuck(now - limit) {
			p.counters.writeTimeouts.Add(1)
			c.cut(nil)
		}
	}
}

// tickPause is the resolution of the coarse clock.
const tickPause = 250 * time.Millisecond

// vanishTicks is how many ticks pass between two looks at the clients that wait.
const vanishTicks = 4

// stuck returns the clients that somebody has been writing to since before.
func (p *Pooler) stuck(before int64) []*client {
	p.mu.Lock()
	defer p.mu.Unlock()
	var stuck []*client
	for _, c := range p.clients {
		if since := c.writing.Load(); since != 0 && since < before {
			stuck = append(stuck, c)
		}
	}
	return stuck
}

// Close gives up a Pooler that was made and will not Run.
func (p *Pooler) Close() {
	p.closeListeners()
	p.pools.Close()
}
