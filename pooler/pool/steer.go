package pool

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"pitr/config"
)

// Address is where a database's server listens; zero parts are those of postgres.dsn.
type Address struct {
	Host string
	Port int
}

func (a Address) String() string { return net.JoinHostPort(a.Host, strconv.Itoa(a.Port)) }

// Errors of steering.
var (
	ErrPaused    = errors.New("the database is paused already")
	ErrNotPaused = errors.New("the database is not paused")
)

// steered is what an operator has changed of a database while the process runs; it is forgotten when that ends.
type steered struct {
	paused, disabled bool
	moved            *Address
}

// pausePoll is how often it is looked whether all servers of a paused database have come back.
const pausePoll = 5 * time.Millisecond

// paused reports whether servers of a database are lent to nobody. The caller holds mu.
func (s *Set) paused(database string) bool { return s.steered[""].paused || s.steered[database].paused }

// Pause lets nobody have a server of the database any more and returns when none is lent: each transaction, or each session where servers
// are lent for so long, goes on to its end. Clients that want one wait meanwhile, as long as query_wait_timeout says. When ctx ends before, everything goes on as if nothing had been.
// An empty database stands for all of them.
func (s *Set) Pause(ctx context.Context, database string) error {
	if err := s.Hold(database); err != nil {
		return err
	}
	err := s.until(ctx, func() int { return s.count(database, func(*Server) bool { return true }) }, "are still lent")
	if err != nil {
		return errors.Join(err, s.Resume(database))
	}
	return nil
}

// Hold begins a Pause and does not wait.
func (s *Set) Hold(database string) error {
	if _, found := s.Database(database); !found && database != "" {
		return ErrUnknownDatabase
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.steered[database]
	if now.paused {
		return ErrPaused
	}
	now.paused = true
	s.steered[database] = now
	s.applyPauses()
	return nil
}

// until waits for a number to become zero.
func (s *Set) until(ctx context.Context, left func() int, what string) error {
	ticker := time.NewTicker(pausePoll)
	defer ticker.Stop()
	for n := left(); n > 0; n = left() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d servers %s: %w", n, what, ctx.Err())
		case <-ticker.C:
		}
	}
	return nil
}

// Resume lends servers again.
func (s *Set) Resume(database string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.steered[database]
	if !now.paused {
		return ErrNotPaused
	}
	now.paused = false
	s.steered[database] = now
	s.applyPauses()
	return nil
}

// applyPauses tells each pool whether it is paused. The caller holds mu.
func (s *Set) applyPauses() {
	for key, p := range s.pools {
		p.setPaused(s.paused(key.Database))
	}
}

// Paused reports whether all databases are paused, or the one that is named, and whether that is disabled.
func (s *Set) Paused(database string) (paused, disabled bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.paused(database), s.steered[database].disabled
}

// Enable lets new clients have the database, or not.
func (s *Set) Enable(database string, enabled bool) error {
	if _, found := s.Database(database); !found {
		return ErrUnknownDatabase
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.steered[database]
	now.disabled = !enabled
	s.steered[database] = now
	return nil
}

// Reconnect closes all servers that there are now, those that are lent as soon as they are given back, and lets listeners log in anew.
func (s *Set) Reconnect(database string) error {
	if _, found := s.Database(database); !found && database != "" {
		return ErrUnknownDatabase
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.work.Go(s.asker.forget)
	for _, p := range s.poolsOf(database) {
		p.mu.Lock()
		p.renew(becauseAsked)
		for _, l := range p.listeners {
			l.restart()
		}
		p.mu.Unlock()
	}
	return nil
}

// renew closes servers, each as soon as nobody has it. The caller holds mu.
func (p *Pool) renew(because string) {
	for server := range p.servers {
		server.leaves = because
		if server.state == stateIdle || server.state == stateUsed {
			p.remove(server, because)
		}
	}
}

// WaitClose returns when all servers that are to be closed are closed.
func (s *Set) WaitClose(ctx context.Context, database string) error {
	if _, found := s.Database(database); !found && database != "" {
		return ErrUnknownDatabase
	}
	return s.until(ctx, func() int { return s.count(database, func(server *Server) bool { return server.leaves != "" }) }, "are not closed yet")
}

// Reload lets other settings hold, and other passwords. When one of the databases cannot be used as it is configured then, nothing has changed.
func (s *Set) Reload(cfg config.Pooler, passwords func(user string) Credentials) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.passwords
	s.passwords = passwords
	err := s.reload(cfg)
	if err != nil {
		s.passwords = before
	}
	return err
}

// reload is Reload with mu held.
func (s *Set) reload(cfg config.Pooler) error {
	dials, moved := map[*Pool]dialer{}, map[*Pool]bool{}
	for key, p := range s.pools {
		before, _ := databaseOf(s.now(), key.Database)
		after, still := databaseOf(&cfg, key.Database)
		if !still {
			continue // its clients are ended by who knows them
		}
		before, after = s.moved(key.Database, before), s.moved(key.Database, after)
		moved[p] = before.Host != after.Host || before.Port != after.Port || before.DBName != after.DBName || before.Password != after.Password || greets(before) != greets(after)
		dial, err := s.dialerOf(&cfg, after, key, s.passwords(key.User))
		if err != nil {
			return fmt.Errorf("database %s: %w", key.Database, err)
		}
		dials[p] = dial
	}
	rate := s.now().ServerConnectRate
	s.live.Store(&cfg)
	if rate != cfg.ServerConnectRate {
		s.pace.setRate(cfg.ServerConnectRate)
	}
	for key, p := range s.pools {
		db, _ := databaseOf(&cfg, key.Database)
		if dial, still := dials[p]; still && moved[p] {
			p.redirect(dial)
		} else if still {
			p.mu.Lock()
			p.setDial(dial) // the files of certificates, a password or a rule for hosts may be others
			p.mu.Unlock()
		}
		p.adjust(newLimits(&cfg, db, cfg.Users[key.User]))
	}
	s.work.Go(s.asker.forget) // what it knows may be of a server that is asked no more
	s.nudge()
	return nil
}

// setDial lets the next connections be made in another way. What clients have shown stays known where nothing else is. The caller holds mu.
func (p *Pool) setDial(dial dialer) {
	learnt := p.dial.credentials
	if p.dial = dial; dial.credentials.empty() {
		p.dial.credentials = learnt
	}
}

// greets is what a new connection is told.
func greets(db config.Database) [4]string {
	return [4]string{db.ConnectQuery, db.ClientEncoding, db.DateStyle, db.TimeZone}
}

// adjust lets other limits hold.
func (p *Pool) adjust(to limits) {
	p.mu.Lock()
	defer p.mu.Unlock()
	lifetime := p.limits.lifetime
	p.limits = to
	if lifetime != to.lifetime {
		for server := range p.servers {
			server.dies = time.Time{}
			if span := p.limits.lifespan(); span > 0 {
				server.dies = server.born.Add(span)
			}
		}
	}
	if p.watching && p.timeout.Stop() {
		p.watching = false // it may be shorter now
	}
	now := time.Now()
	p.watchTimeout(now)
	p.launch(now)
}

// Move lets a paused database's servers be those at another address from now on, until the process ends, and returns where they were.
func (s *Set) Move(database string, to Address) (from Address, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.steered[database]
	if !s.paused(database) {
		return Address{}, ErrNotPaused
	}
	db, _ := s.Database(database)
	before, err := s.newDialer(s.moved(database, db), Key{Database: database}, Credentials{})
	if err != nil {
		return Address{}, err
	}
	from = before.targets[0].Address
	now.moved = &to
	s.steered[database] = now
	s.work.Go(s.asker.forget)
	for _, p := range s.poolsOf(database) {
		dial, err := s.newDialer(s.moved(database, db), p.key, s.passwords(p.key.User))
		if err != nil {
			return from, err
		}
		p.redirect(dial)
	}
	return from, nil
}

// Hosts returns where the servers of a database are now, and whether they take turns.
func (s *Set) Hosts(database string) (list []Address, balance bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	db, _ := s.Database(database)
	dial, err := s.newDialer(s.moved(database, db), Key{Database: database}, Credentials{})
	if err != nil {
		return nil, false, err
	}
	for _, t := range dial.targets {
		list = append(list, t.Address)
	}
	return list, dial.rule.balance, nil
}

// moved is a database's entry with the address that an operator has given it. The caller holds mu.
func (s *Set) moved(database string, db config.Database) config.Database {
	if to := s.steered[database].moved; to != nil {
		if db.Host, db.Port = to.Host, ""; to.Port != 0 {
			db.Port = strconv.Itoa(to.Port)
		}
	}
	return db
}

// poolsOf are the pools of a database. The caller holds mu.
func (s *Set) poolsOf(database string) (list []*Pool) {
	for key, p := range s.pools {
		if key.Database == database || database == "" {
			list = append(list, p)
		}
	}
	return list
}

// count counts the servers of a database, those that are being connected to included, that match.
func (s *Set) count(database string, match func(*Server) bool) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.poolsOf(database) {
		p.mu.Lock()
		for server := range p.servers {
			if match(server) {
				n++
			}
		}
		if p.paused {
			n += p.connecting
		}
		p.mu.Unlock()
	}
	return n
}

// setPaused closes servers that nobody has, or connects for those who have waited.
func (p *Pool) setPaused(paused bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = paused
	if paused {
		for server := range p.servers {
			if server.state == stateIdle || server.state == stateUsed {
				p.remove(server, becausePaused)
			}
		}
		return
	}
	p.launch(time.Now())
}

// redirect lets all connects go elsewhere, and forgets what was known of the server.
func (p *Pool) redirect(dial dialer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.setDial(dial)
	p.moves++
	p.renew(becauseMoved)
	p.failures, p.retryAt, p.lastErr = 0, time.Time{}, nil
	p.proven, p.fits = false, nil
	p.giveUp()
	clear(p.welcomes)
	p.baseline = nil
	for _, l := range p.listeners {
		l.restart()
	}
}
