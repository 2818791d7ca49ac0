package pool

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pitr/config"
	"pitr/internal/pgwire"
)

// Errors of Get.
var (
	ErrUnknownDatabase = errors.New("no such database")
	ErrTooManyPools    = errors.New("too many pairs of database and user (max_pools)")
)

// Set is all pools of a process.
type Set struct {
	cfg       config.Pooler
	dsn       config.DSN
	passwords func(user string) Credentials
	driver    Driver
	log       *slog.Logger
	asker     asker
	ctx       context.Context // ends with Close; only for what the set itself started
	stop      context.CancelFunc
	work      sync.WaitGroup

	// mu guards pools, steered and limitHits. Pool.mu may be taken under it.
	mu        sync.Mutex
	pools     map[Key]*Pool
	steered   map[string]steered // by database
	limitHits uint64
}

// Driver is who reads and writes the sockets.
type Driver struct {
	// Dial opens a connection for the login; nil is the usual way.
	Dial pgconn.DialFunc
	// Binding returns the channel binding tls-server-end-point of a server's certificate, nil if it has none; nil means that there is none at all.
	Binding func(*x509.Certificate) []byte
	// Attach takes a connection over that has logged in, even if there is an error. It is driven once Wire.Start is called.
	Attach func(server *Server, conn net.Conn) (Wire, error)
}

// NewSet returns an empty set and starts its janitor. passwords tells what is known of a client's user before it has logged in.
func NewSet(cfg config.Pooler, dsn config.DSN, passwords func(user string) Credentials, driver Driver, log *slog.Logger) *Set {
	ctx, stop := context.WithCancel(context.Background())
	s := &Set{cfg: cfg, dsn: dsn, passwords: passwords, driver: driver, log: log, ctx: ctx, stop: stop, pools: map[Key]*Pool{}, steered: map[string]steered{}}
	s.asker.slots = make(chan struct{}, max(cfg.Auth.QueryConnections, 1))
	s.work.Go(s.janitor)
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
	for now := time.Now(); p.waiters.n > 0; {
		p.settle(p.waiters.first, now, nil, ErrClosed)
	}
	if p.timeout != nil {
		p.timeout.Stop()
	}
	for server := range p.servers {
		p.remove(server)
	}
}

// Database returns the entry that a client's database name stands for.
func (s *Set) Database(name string) (config.Database, bool) {
	if db, found := s.cfg.Databases[name]; found {
		return db, true
	}
	db, found := s.cfg.Databases["*"]
	return db, found || len(s.cfg.Databases) == 0
}

// Get returns the pool for a client's database and user, with the client counted as one of its users: see Pool.Leave.
func (s *Set) Get(database, user string) (*Pool, error) {
	db, found := s.Database(database)
	if !found {
		return nil, ErrUnknownDatabase
	}
	key := Key{Database: database, User: user}
	if db.User != "" {
		key.User = db.User
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return nil, ErrClosed
	}
	if p := s.pools[key]; p != nil {
		p.Join()
		return p, nil
	}
	if len(s.pools) >= s.cfg.MaxPools {
		s.limitHits++
		return nil, ErrTooManyPools
	}
	dial, err := s.newDialer(s.moved(database, db), key, s.passwords(key.User))
	if err != nil {
		return nil, err
	}
	p := &Pool{key: key, set: s, size: s.cfg.DefaultPoolSize, dial: dial, log: s.log, servers: map[*Server]struct{}{},
		welcomes: map[string][]pgwire.Param{}, paused: s.steered[database].paused}
	if db.PoolSize > 0 {
		p.size = db.PoolSize
	}
	p.Join()
	s.pools[key] = p
	return p, nil
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
	_, hijacked, err := dial.connect(ctx, s.cfg.ServerConnectTimeout.D())
	if err != nil {
		return fmt.Errorf("log in to the server: %w", err)
	}
	return hijacked.Conn.Close()
}

// probeDialer logs in as a configured database says that has a user of its own, else as postgres.dsn says.
func (s *Set) probeDialer() (dialer, error) {
	for name, db := range s.cfg.Databases {
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
	dial.config.User, dial.config.Password, dial.config.Database = plain.User, plain.Password, plain.Database
	return dial, nil
}

func (s *Set) tooOld(server *Server, now time.Time) bool {
	lifetime := s.cfg.ServerLifetime.D()
	return lifetime > 0 && now.Sub(server.born) > lifetime
}

// janitorPause is how often the janitor looks; shorter timeouts make it look more often.
const janitorPause = time.Second

func (s *Set) janitor() {
	pause := janitorPause
	for _, limit := range []config.Duration{s.cfg.ServerIdleTimeout, s.cfg.ServerLifetime, s.cfg.ServerLoginRetry, s.cfg.ServerResetTimeout} {
		if limit > 0 {
			pause = min(pause, max(limit.D()/4, 10*time.Millisecond))
		}
	}
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case now := <-ticker.C:
			s.sweep(now)
			s.asker.sweep(now, s.cfg.ServerIdleTimeout.D(), s.cfg.ServerLifetime.D())
		}
	}
}

// sweep closes what is too old or too slow, tries again to connect for those who wait, and drops pools that nobody uses.
func (s *Set) sweep(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, p := range s.pools {
		if p.sweep(now) {
			delete(s.pools, key)
		}
	}
}

// sweep reports whether the pool is of no more use.
func (p *Pool) sweep(now time.Time) (useless bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	idleMax := p.set.cfg.ServerIdleTimeout.D()
	for server := range p.servers {
		idleTooLong := server.state == stateIdle && idleMax > 0 && now.Sub(server.idleSince) > idleMax
		tooOld := server.state == stateIdle && p.set.tooOld(server, now)
		tooSlow := server.state == stateCleaning && now.After(server.cleanBy)
		if idleTooLong || tooOld || tooSlow {
			p.remove(server)
		}
	}
	p.launch(now)
	if p.users > 0 || len(p.servers)+p.connecting+p.waiters.n > 0 || now.Sub(p.emptySince) < janitorPause {
		return false
	}
	p.closed = true
	return true
}
