package pooler

import (
	"net"
	"net/netip"
	"sync"

	"pitr/internal/pgwire"
)

// entrance counts connections that have not logged in, in all (max_login_conn) and of each address (max_login_conn_per_address).
type entrance struct {
	max int // of one address; 0: as many as in all

	// mu guards from. It is held for map operations only.
	mu   sync.Mutex
	from map[netip.Addr]int // by address; nobody is in it with zero
}

// admitLogin lets one more connection try to log in, or says why not. Every nil is followed by one loginOver.
func (p *Pooler) admitLogin(conn net.Conn) *pgwire.Failure {
	address := p.countedAddress(conn)
	if !p.entrance.count(address) {
		return p.tooMany()
	}
	select {
	case p.logins <- struct{}{}:
		return nil
	default:
		p.entrance.forget(address)
		p.counters.loginLimitHits.Add(1)
		return pgwire.Fatal("53300", "no more connections are allowed to log in at the same time (max_login_conn)")
	}
}

func (p *Pooler) tooMany() *pgwire.Failure {
	p.counters.addressLimitHits.Add(1)
	return pgwire.Fatal("53300", "no more connections of one address are allowed to log in at the same time (max_login_conn_per_address)")
}

// loginOver notes that a connection has logged in or has gone.
func (p *Pooler) loginOver(address netip.Addr) {
	p.entrance.forget(address)
	<-p.logins
}

func (e *entrance) count(address netip.Addr) bool {
	if e.max == 0 || !address.IsValid() {
		return true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.from[address] >= e.max {
		return false
	}
	e.from[address]++
	return true
}

func (e *entrance) forget(address netip.Addr) {
	if e.max == 0 || !address.IsValid() {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.from[address]--; e.from[address] <= 0 {
		delete(e.from, address)
	}
}
