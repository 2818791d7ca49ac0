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
	paused bool
	moved  *Address
}

// pausePoll is how often it is looked whether all servers of a paused database have come back.
const pausePoll = 5 * time.Millisecond

// Pause lets nobody have a server of the database any more and returns when none is lent: each transaction, or each session where servers
// are lent for so long, goes on to its end. Clients that want one wait meanwhile, as long as query_wait_timeout says. When ctx ends before, everything goes on as if nothing had been.
func (s *Set) Pause(ctx context.Context, database string) error {
	if _, found := s.Database(database); !found {
		return ErrUnknownDatabase
	}
	s.mu.Lock()
	if s.steered[database].paused {
		s.mu.Unlock()
		return ErrPaused
	}
	now := s.steered[database]
	now.paused = true
	s.steered[database] = now
	for _, p := range s.poolsOf(database) {
		p.setPaused(true)
	}
	s.mu.Unlock()
	ticker := time.NewTicker(pausePoll)
	defer ticker.Stop()
	for s.lent(database) > 0 {
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%d servers are still lent: %w", s.lent(database), ctx.Err()), s.Resume(database))
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
	for _, p := range s.poolsOf(database) {
		p.setPaused(false)
	}
	return nil
}

// Move lets a paused database's servers be those at another address from now on, until the process ends, and returns where they were.
func (s *Set) Move(database string, to Address) (from Address, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.steered[database]
	if !now.paused {
		return Address{}, ErrNotPaused
	}
	db, _ := s.Database(database)
	before, err := s.newDialer(s.moved(database, db), Key{Database: database}, Credentials{})
	if err != nil {
		return Address{}, err
	}
	from = Address{before.config.Host, int(before.config.Port)}
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

// moved is a database's entry with the address that an operator has given it. The caller holds mu.
func (s *Set) moved(database string, db config.Database) config.Database {
	if to := s.steered[database].moved; to != nil {
		db.Host, db.Port = to.Host, to.Port
	}
	return db
}

// poolsOf are the pools of a database. The caller holds mu.
func (s *Set) poolsOf(database string) (list []*Pool) {
	for key, p := range s.pools {
		if key.Database == database {
			list = append(list, p)
		}
	}
	return list
}

// lent counts the servers of a database, which all are lent, being cleaned or being connected to while it is paused.
func (s *Set) lent(database string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.poolsOf(database) {
		p.mu.Lock()
		n += len(p.servers) + p.connecting
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
			if server.state == stateIdle {
				p.remove(server)
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
	learnt := p.dial.credentials
	if p.dial = dial; dial.credentials.empty() {
		p.dial.credentials = learnt
	}
	p.failures, p.retryAt, p.lastErr = 0, time.Time{}, nil
	clear(p.welcomes)
	p.baseline = nil
	for _, l := range p.listeners {
		l.restart()
	}
}
