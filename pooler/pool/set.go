package pool

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pitr/config"
	"pitr/internal/pgwire"
)

// Errors of Get.
var (
	ErrUnknownDatabase = errors.New("no such database")
	ErrTooManyPools    = errors.New("too many pairs of database and user (max_pools)")
	ErrDisabled        = errors.New("the database is disabled")
)

// Set is all pools of a process.
type Set struct {
	live      atomic.Pointer[config.Pooler] // replaced by Reload
	dsn       config.DSN
	passwords func(user string) Credentials
	driver    Driver
	log       *slog.Logger
	asker     asker
	ctx       context.Context // ends with Close; only for what the set itself started
	stop      context.CancelFunc
	work      sync.WaitGroup
	pace      pace
	hosts     hosts
	names     names
	nudged    chan struct{} // the janitor has something to do

	databaseHits, userHits atomic.Uint64

	// mu guards the rest. Pool.mu may be taken under it.
	mu        sync.Mutex
	pools     map[Key]*Pool
	steered   map[string]steered // by database; "" is for all of them
	databases map[string]*quota
	users     map[string]*quota
	retired   map[string]Totals // of pools that are gone, by database
	limitHits uint64

	replications    int
	replicationHits uint64
}

// now returns the settings that are in force.
func (s *Set) now() *config.Pooler { return s.live.Load() }

// nudge lets the janitor look at once.
func (s *Set) nudge() {
	select {
	case s.nudged <- struct{}{}:
	default:
	}
}

// Driver is who reads and writes the sockets.
type Driver struct {
	// Dial opens a connection for the login; nil is the usual way.
	Dial pgconn.DialFunc
	// Binding returns the channel binding tls-server-end-point of a server's certificate, nil if it has none; nil means that there is none at all.
	Binding func(*x509.Certificate) []byte
	// Resolve looks up the name of a host; nil is the usual way.
	Resolve pgconn.LookupFunc
	// Attach takes a connection over that has logged in, even if there is an error. It is driven once Wire.Start is called.
	Attach func(server *Server, conn net.Conn) (Wire, error)
}

// NewSet returns an empty set and starts its janitor. passwords tells what is known of a client's user before it has logged in.
func NewSet(cfg config.Pooler, dsn config.DSN, passwords func(user string) Credentials, driver Driver, log *slog.Logger) *Set {
	ctx, stop := context.WithCancel(context.Background())
	s := &Set{dsn: dsn, passwords: passwords, driver: driver, log: log, ctx: ctx, stop: stop, nudged: make(chan struct{}, 1), pools: map[Key]*Pool{}, steered: map[string]steered{},
		databases: map[string]*quota{}, users: map[string]*quota{}, retired: map[string]Totals{}}
	s.live.Store(&cfg)
	s.pace.wake = s.nudge
	s.pace.setRate(cfg.ServerConnectRate)
	s.asker.slots = make(chan struct{}, max(cfg.Auth.QueryConnections, 1))
	s.names.known = map[string]Name{}
	s.work.Go(s.janitor)
	s.work.Go(s.watch)
	s.work.Go(s.follow)
	return s
}

// Close closes every connection and waits for everything that the set has started.
func (s *Set) Close() {
	s.stop()
	s.mu.Lock()
	for _, p := range s.pools {
		p.close()
	}
	s.mu.Unlock()
	s.asker.close()
	s.work.Wait()
}

func (p *Pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.abandon()
	for now := time.Now(); p.waiters.n > 0; {
		p.settle(p.waiters.first, now, nil, ErrClosed)
	}
	if p.timeout != nil {
		p.timeout.Stop()
	}
	for server := range p.servers {
		p.remove(server, becauseEnd)
	}
}

// Database returns the entry that a client's database name stands for.
func (s *Set) Database(name string) (config.Database, bool) {
	return databaseOf(s.now(), name)
}

func databaseOf(cfg *config.Pooler, name string) (config.Database, bool) {
	if db, found := cfg.Databases[name]; found {
		return db, true
	}
	db, found := cfg.Databases["*"]
	return db, found || len(cfg.Databases) == 0
}

// Get returns the pool for a client's database and user, with the client counted as one of its users: see Pool.Leave.
func (s *Set) Get(database, user string) (*Pool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	db, found := s.Database(database)
	switch {
	case !found:
		return nil, ErrUnknownDatabase
	case s.steered[database].disabled:
		return nil, ErrDisabled
	case s.ctx.Err() != nil:
		return nil, ErrClosed
	}
	key := Key{Database: database, User: user}
	if db.User != "" {
		key.User = db.User
	}
	p, err := s.open(key, db)
	if err == nil {
		p.Join()
	}
	return p, err
}

// open returns the pool of a key, and makes it if need be. The caller holds mu.
func (s *Set) open(key Key, db config.Database) (*Pool, error) {
	if p := s.pools[key]; p != nil {
		return p, nil
	}
	cfg := s.now()
	if len(s.pools) >= cfg.MaxPools {
		s.limitHits++
		return nil, ErrTooManyPools
	}
	dial, err := s.newDialer(s.moved(key.Database, db), key, s.passwords(key.User))
	if err != nil {
		return nil, err
	}
	p := &Pool{key: key, set: s, limits: newLimits(cfg, db, cfg.Users[key.User]), dial: dial, log: s.log, servers: map[*Server]struct{}{},
		welcomes: map[string][]pgwire.Param{}, paused: s.paused(key.Database), perDatabase: quotaOf(s.databases, key.Database), perUser: quotaOf(s.users, key.User)}
	p.giveUp()
	s.pools[key] = p
	return p, nil
}

func quotaOf(quotas map[string]*quota, name string) *quota {
	if quotas[name] == nil {
		quotas[name] = &quota{}
	}
	return quotas[name]
}

// Ready reports whether Postgres lets us in: nil when a pool has a server, or else the outcome of a login.
func (s *Set) Ready(ctx context.Context) error {
	s.mu.Lock()
	for _, p := range s.pools {
		p.mu.Lock()
		n := len(p.servers)
		p.mu.Unlock()
		if n > 0 {
			s.mu.Unlock()
			return nil
		}
	}
	s.mu.Unlock()
	dial, err := s.probeDialer()
	if err != nil {
		return err
	}
	in, err := s.connect(ctx, dial, 0)
	if err != nil {
		return fmt.Errorf("log in to the server: %w", err)
	}
	return in.Conn.Close()
}

// probeDialer logs in as a configured database says that has a user of its own, else as postgres.dsn says.
func (s *Set) probeDialer() (dialer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, db := range s.now().Databases {
		if db.User != "" && (name != "*" || db.DBName != "") {
			return s.newDialer(db, Key{Database: name, User: db.User}, s.passwords(db.User))
		}
	}
	dial, err := s.newDialer(config.Database{}, Key{}, Credentials{})
	if err != nil {
		return dialer{}, err
	}
	plain, err := parseDSN(s.dsn)
	if err != nil {
		return dialer{}, err
	}
	for _, t := range dial.targets {
		t.config.User, t.config.Password, t.config.Database = plain.User, plain.Password, plain.Database
	}
	return dial, nil
}

// janitorPause is how often the janitor looks; shorter timeouts make it look more often.
const janitorPause = time.Second

// pause is how long the janitor waits.
func (s *Set) pause() time.Duration {
	cfg := s.now()
	pause := janitorPause
	limits := []config.Duration{cfg.ServerIdleTimeout, cfg.ServerLifetime, cfg.ServerLoginRetry, cfg.ServerResetTimeout, cfg.ReservePoolTimeout, cfg.ServerCheckDelay}
	for _, db := range cfg.Databases {
		limits = append(limits, db.ServerLifetime)
	}
	for _, limit := range limits {
		if limit > 0 {
			pause = min(pause, max(limit.D()/4, 10*time.Millisecond))
		}
	}
	return pause
}

func (s *Set) janitor() {
	timer := time.NewTimer(s.pause())
	defer timer.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.nudged:
			s.balance(time.Now())
		case now := <-timer.C:
			s.sweep(now)
			s.asker.sweep(now, s.now().ServerIdleTimeout.D(), s.now().ServerLifetime.D())
			s.balance(now)
			timer.Reset(s.pause())
		}
	}
}

// sweep closes what is too old or too slow, tries again to connect for those who wait, and drops pools that nobody uses.
func (s *Set) sweep(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.openForced()
	for key, p := range s.pools {
		if p.sweep(now) {
			s.retire(p)
			delete(s.pools, key)
		}
	}
}

// openForced makes the pools that keep servers although nobody has come yet. The caller holds mu.
func (s *Set) openForced() {
	cfg := s.now()
	for name, db := range cfg.Databases {
		key := Key{name, db.User}
		if db.User == "" || name == "*" || s.pools[key] != nil || newLimits(cfg, db, cfg.Users[db.User]).min == 0 {
			continue
		}
		if _, err := s.open(key, db); err != nil {
			s.log.Warn("pool not made for min_pool_size", "database", name, "user", db.User, "error", err)
		}
	}
}

// balance connects for pools that other pools have kept from it, and closes an idle server of those where that makes room.
func (s *Set) balance(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pools {
		p.mu.Lock()
		starved, per := p.starved && p.waiters.n > 0, p.limits
		p.mu.Unlock()
		if !starved {
			continue
		}
		if per.perDatabase > 0 && p.perDatabase.n.Load() >= int64(per.perDatabase) {
			s.evict(p, "evicted for max_db_connections", func(other *Pool) bool { return other.perDatabase == p.perDatabase })
		}
		if per.perUser > 0 && p.perUser.n.Load() >= int64(per.perUser) {
			s.evict(p, "evicted for max_user_connections", func(other *Pool) bool { return other.perUser == p.perUser })
		}
		p.mu.Lock()
		p.launch(now)
		p.mu.Unlock()
	}
}

// evict closes the server of another pool that has been idle for longest among those that match. The caller holds mu.
func (s *Set) evict(p *Pool, because string, match func(*Pool) bool) {
	var victim *Pool
	var since time.Time
	for _, other := range s.pools {
		if other == p || !match(other) {
			continue
		}
		other.mu.Lock()
		if oldest := other.longestIdle(); oldest != nil && (victim == nil || oldest.idleSince.Before(since)) {
			victim, since = other, oldest.idleSince
		}
		other.mu.Unlock()
	}
	if victim == nil {
		return
	}
	victim.mu.Lock()
	defer victim.mu.Unlock()
	if oldest := victim.longestIdle(); oldest != nil {
		victim.remove(oldest, because)
	}
}

// longestIdle returns the server that could be spared first, nil when none can. The caller holds mu.
func (p *Pool) longestIdle() *Server {
	switch {
	case len(p.servers) <= p.limits.min || p.waiters.n > 0:
		return nil
	case len(p.used) > 0:
		return p.used[0]
	case len(p.idle) > 0:
		return p.idle[0]
	}
	return nil
}

// sweep reports whether the pool is of no more use.
func (p *Pool) sweep(now time.Time) (useless bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for server := range p.servers {
		idle := server.state == stateIdle || server.state == stateUsed
		switch {
		case idle && p.limits.idle > 0 && now.Sub(server.idleSince) > p.limits.idle && (!p.keepsMin() || len(p.servers) > p.limits.min):
			p.remove(server, becauseIdle)
		case idle && server.tooOld(now):
			p.remove(server, becauseOld)
		case idle && len(p.servers) > p.limits.size+p.limits.reserve:
			p.remove(server, becauseMany)
		case (server.state == stateCleaning || server.state == stateTesting) && now.After(server.cleanBy):
			p.remove(server, becauseSlow)
		case server.state == stateIdle && p.limits.check != "" && now.Sub(server.idleSince) > p.limits.checkDelay:
			p.idle = without(p.idle, server)
			server.move(stateUsed)
			p.used = append(p.used, server)
		}
	}
	p.launch(now)
	// Who listens in a database does so by the login of the pool that came first, and through it learns that the servers are others.
	if p.users > 0 || len(p.listeners) > 0 || len(p.servers)+p.connecting+p.waiters.n > 0 || p.limits.forced && p.limits.min > 0 || now.Sub(p.emptySince) < janitorPause {
		return false
	}
	p.closed = true
	p.abandon()
	return true
}

// keepsMin reports whether min_pool_size holds. The caller holds mu.
func (p *Pool) keepsMin() bool { return p.users > 0 || p.limits.forced }
