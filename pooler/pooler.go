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
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"pitr/config"
	"pitr/internal/pgwire"
	"pitr/pooler/admin"
	"pitr/pooler/auth"
	"pitr/pooler/loop"
	"pitr/pooler/pool"
	"pitr/pooler/session"
	"pitr/pooler/takeover"
)

// Pooler is one pooler. Make it with New, then call Listen, then Run.
type Pooler struct {
	cfg       config.Pooler // as the process began with it; what can change is in live
	live      atomic.Pointer[config.Config]
	log       *slog.Logger
	gate      atomic.Pointer[gate]
	pools     *pool.Set
	listeners []net.Listener // on which clients come
	upgrade   upgrade
	peers     map[uint16]*peer // by peer_id; the one with our own is ourselves
	workers   []*worker
	sessions  map[string]*session.Options // by pool mode
	loops     sync.WaitGroup              // the goroutines of workers
	entrance  entrance
	logins    chan struct{} // one token for each client that has not logged in
	cancels   chan struct{} // one token for each cancel request on its way
	counters  counters
	averages  averages
	reloading reloading
	leaving   atomic.Bool         // it does not accept any more, or will not in a moment
	halt      chan admin.Shutdown // an operator has ended the pooler
	work      sync.WaitGroup      // clients, and those who are not clients yet

	// mu guards the fields below. It is held for map operations only.
	mu       sync.Mutex
	listens  map[string]*subscriptions // by database
	clients  map[uint32]*client        // by the process id that the client was given
	conns    map[net.Conn]struct{}     // those that no worker has yet
	tallies  tallies
	consoles map[uint32]*operator
	alike    map[uint32][]uint32 // with peers: process ids by what is left of them in a cancel key
	draining bool
}

// now returns the settings that are in force.
func (p *Pooler) now() *config.Pooler { return &p.live.Load().Pooler }

// New checks the configuration and reads the users. It opens no socket.
func New(cfg config.Config, log *slog.Logger) (*Pooler, error) {
	if err := errors.Join(pool.CheckDSN(cfg.Postgres.DSN), pool.CheckEncryption(cfg.Pooler)); err != nil {
		return nil, err
	}
	p := &Pooler{
		cfg: cfg.Pooler, log: log, sessions: sessionOptions(cfg.Pooler), clients: map[uint32]*client{}, listens: map[string]*subscriptions{}, conns: map[net.Conn]struct{}{}, consoles: map[uint32]*operator{}, alike: map[uint32][]uint32{},
		tallies: tallies{map[string]int{}, map[string]int{}}, halt: make(chan admin.Shutdown, 1),
		entrance: entrance{max: cfg.Pooler.MaxLoginConnPerAddress, from: map[netip.Addr]int{}},
		logins:   make(chan struct{}, cfg.Pooler.MaxLoginConn), cancels: make(chan struct{}, cfg.Pooler.MaxCancelRequests),
		upgrade: upgrade{lent: map[net.Listener]bool{}, succeeded: make(chan *takeover.Link, 1)},
	}
	p.peers = newPeers(cfg.Pooler)
	p.live.Store(&cfg)
	g, err := p.newGate(cfg.Pooler)
	if err != nil {
		return nil, err
	}
	p.gate.Store(g)
	if err := p.newWorkers(cfg.Pooler.Workers); err != nil {
		return nil, err
	}
	p.pools = pool.NewSet(cfg.Pooler, cfg.Postgres.DSN, p.stored, pool.Driver{Dial: dialStream(cfg.Pooler), Binding: auth.Binding, Attach: p.attach}, log)
	return p, nil
}

// errLeaving is what Ready says from the moment on at which the end has begun.
var errLeaving = errors.New("the pooler is shutting down")

// Ready reports whether clients can be served: nil when a server connection exists, or else the outcome of a login. While the pooler drains they cannot.
func (p *Pooler) Ready(ctx context.Context) error {
	if p.leaving.Load() {
		return errLeaving
	}
	return p.pools.Ready(ctx)
}

// Run serves clients until ctx ends, or an operator says so, then drains: idle clients are told to go, open transactions may end within drain_timeout.
// It returns when everything that it has started has ended, and can be called once.
func (p *Pooler) Run(ctx context.Context) error {
	start := time.Now()
	var accepting, tending sync.WaitGroup
	p.runWorkers()
	tend, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	tending.Go(func() { p.trimMemory(tend) })
	tending.Go(func() { p.patrol(tend) })
	for _, listener := range p.listeners {
		p.log.Info("pooler listening", "address", listener.Addr().String())
		accepting.Go(func() { p.accept(ctx, listener) })
	}
	p.runUpgrades(ctx)
	patience := time.NewTimer(time.Hour)
	defer patience.Stop()
	limit := patience.C
	select {
	case <-ctx.Done():
		patience.Reset(p.now().DrainTimeout.D())
	case how := <-p.halt:
		limit = p.halted(ctx, how, patience)
	case successor := <-p.upgrade.succeeded:
		limit = p.succeeded(ctx, successor, &accepting, patience)
	}
	p.leaving.Store(true)
	p.endUpgrades()
	p.closeListeners()
	accepting.Wait()
	drained, cut := p.drain(ctx, limit)
	stop()
	tending.Wait()
	p.closeLinks()
	p.pools.Close()
	p.stopWorkers()
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
		if failure := p.admitLogin(conn); failure != nil {
			refuse(conn, failure)
			continue
		}
		p.work.Add(1)
		go p.serve(conn)
	}
}

// refuse tells a client why it cannot stay, as far as that is possible without waiting for it, and closes.
func refuse(conn net.Conn, failure *pgwire.Failure) {
	_ = conn.SetWriteDeadline(time.Now().Add(farewellTimeout))
	_, _ = conn.Write(pgwire.AppendError(nil, failure))
	conn.Close()
}

// serve is the goroutine of one client, which ends when the client has logged in or has failed to.
func (p *Pooler) serve(raw net.Conn) {
	if !p.track(raw) {
		p.loginOver(p.countedAddress(raw))
		p.work.Done()
		refuse(raw, errShutdown)
		return
	}
	var c *client
	var early []byte
	conn, address, err := p.readProxy(raw)
	if err == nil {
		c, conn, early, err = p.login(conn)
	}
	if err == nil && c != nil {
		if err = p.enter(c, raw, conn, early); err == nil {
			return
		}
	}
	p.untrack(raw)
	p.loginOver(address)
	if err != nil {
		p.loginFailed(conn, err)
	} else {
		conn.Close() // a cancel request
	}
	if c != nil {
		p.forget(c)
	}
	p.work.Done()
}

// gone forgets a client that has ended on its worker.
func (p *Pooler) gone(c *client, failure *pgwire.Failure) {
	c.worker.clients.Add(-1)
	if c.entry != nil {
		p.loginOver(c.entry.address)
		p.counters.loginFailures.Add(1)
		reason := error(net.ErrClosed)
		if failure != nil {
			reason = failure
		}
		p.log.Log(context.Background(), p.errorLevel(), fmt.Sprintf("closing because: %s (age=%ds)", because(reason), int(time.Since(c.arrived).Seconds())), "client", c.entry.remote, "login", "failed")
		if c.entry.timer != nil {
			c.entry.timer.Stop()
		}
	}
	p.forget(c)
	p.work.Done()
}

// because is why a login has failed, as the client is told it.
func because(reason error) string {
	var failure *pgwire.Failure
	if errors.As(reason, &failure) {
		return failure.Message
	}
	if isEOF(reason) {
		return "client unexpected eof"
	}
	return reason.Error()
}

func (p *Pooler) forget(c *client) {
	p.unregister(c)
	if c.pool != nil {
		c.pool.Leave()
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

// handOver notes that a connection is its client's now. It reports false if it is too late for that.
func (p *Pooler) handOver(c *client, conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, conn)
	if c.entered = !p.draining; c.entered {
		c.worker.Post(loop.Func(c.begin)) // before anybody can find the client and post something else; the loop ends only after all clients that were handed over
	}
	return c.entered
}

func (p *Pooler) untrack(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, conn)
}

// errShutdown is what Postgres says in ProcessInterrupts (src/backend/tcop/postgres.c).
var errShutdown = pgwire.Fatal("57P01", "terminating connection due to administrator command")

// drain tells all clients to go, waits for them until limit, then cuts those that are left. A nil limit waits until ctx ends, and then for drain_timeout.
func (p *Pooler) drain(ctx context.Context, limit <-chan time.Time) (drained, cut int) {
	p.mu.Lock()
	p.draining = true
	for conn := range p.conns {
		conn.Close()
	}
	p.mu.Unlock()
	clients := p.entered()
	for _, c := range clients {
		c.worker.Post(loop.Func(c.drain))
	}
	gone := make(chan struct{})
	go func() {
		p.work.Wait()
		close(gone)
	}()
	if limit == nil {
		select {
		case <-gone:
			return len(clients), 0
		case <-p.halt: // somebody has lost patience
			now := make(chan time.Time)
			close(now)
			return p.cut(gone, now, len(clients))
		case <-ctx.Done():
		}
		timeout := time.NewTimer(p.now().DrainTimeout.D())
		defer timeout.Stop()
		limit = timeout.C
	}
	return p.cut(gone, limit, len(clients))
}

// cut waits for the clients until limit, or until somebody loses patience, and then ends those that are left.
func (p *Pooler) cut(gone <-chan struct{}, limit <-chan time.Time, clients int) (drained, cut int) {
	select {
	case <-gone:
		return clients, 0
	case <-limit:
	case <-p.halt:
	}
	left := p.entered()
	for _, c := range left {
		c.worker.Post(loop.Func(func() { c.end(errShutdown) }))
	}
	<-gone
	return clients - len(left), len(left)
}

// entered returns the clients that a worker has.
func (p *Pooler) entered() (clients []*client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.clients {
		if c.entered {
			clients = append(clients, c)
		}
	}
	return clients
}

// Close gives up a Pooler that was made and will not Run. A pooler whose place it was to take goes on as if nothing had happened.
func (p *Pooler) Close() {
	p.closeListeners()
	for _, socket := range p.upgrade.sockets {
		socket.Close()
	}
	p.closeLinks()
	p.pools.Close()
	for _, w := range p.workers {
		w.Discard()
	}
}
