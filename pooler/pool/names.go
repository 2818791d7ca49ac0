package pool

import (
	"context"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"
	"time"
)

// names is what names of hosts stood for when they were looked up last.
type names struct {
	// mu guards the rest. It may be taken under Pool.mu, and nothing is taken under it.
	mu    sync.Mutex
	known map[string]Name
}

// Name is what the name of a host stands for.
type Name struct {
	Host      string
	Addresses []string
	Asked     time.Time
}

// isName reports whether a host has to be looked up: it is neither an address nor the directory of a socket.
func isName(host string) bool {
	_, err := netip.ParseAddr(host)
	return err != nil && host != "" && !path.IsAbs(host) && !strings.HasPrefix(host, "@")
}

// current reports whether an address is one of those that the host's name stands for, as far as that is known.
func (n *names) current(at Address, remote net.Addr) bool {
	tcp, isTCP := remote.(*net.TCPAddr)
	if !isTCP || !isName(at.Host) {
		return true
	}
	n.mu.Lock()
	known, found := n.known[at.Host]
	n.mu.Unlock()
	return !found || slices.ContainsFunc(known.Addresses, func(text string) bool { return net.ParseIP(text).Equal(tcp.IP) })
}

// Names returns what the names of hosts stood for when they were looked up last.
func (s *Set) Names() (list []Name) {
	s.names.mu.Lock()
	defer s.names.mu.Unlock()
	for _, one := range s.names.known {
		list = append(list, one)
	}
	slices.SortFunc(list, func(a, b Name) int { return strings.Compare(a.Host, b.Host) })
	return list
}

// lookup looks a name up, and remembers the answer for current.
func (s *Set) lookup(ctx context.Context, host string) ([]string, error) {
	resolve := s.driver.Resolve
	if resolve == nil {
		resolve = net.DefaultResolver.LookupHost
	}
	found, err := resolve(ctx, host)
	if err == nil && isName(host) {
		s.names.mu.Lock()
		s.names.known[host] = Name{host, slices.Clone(found), time.Now()}
		s.names.mu.Unlock()
	}
	return found, err
}

// follow looks names up again and again, and closes servers at addresses that their names do not have any more, each as soon as nobody has it.
func (s *Set) follow() {
	for {
		pause := s.now().DNSMaxTTL.D()
		idle := pause == 0
		if idle {
			pause = janitorPause // a reload may turn it on
		}
		if !waited(s.ctx, pause) {
			return
		}
		if idle {
			continue
		}
		s.lookupAll()
		s.mu.Lock()
		for _, p := range s.pools {
			p.leaveOldAddresses()
		}
		s.mu.Unlock()
	}
}

// lookupAll looks up the names that pools use, and forgets those that none uses. One that cannot be looked up is taken for what it was.
func (s *Set) lookupAll() {
	used := map[string]bool{}
	s.mu.Lock()
	for _, p := range s.pools {
		p.mu.Lock()
		for _, t := range p.dial.targets {
			used[t.Host] = isName(t.Host)
		}
		p.mu.Unlock()
	}
	s.mu.Unlock()
	s.names.mu.Lock()
	for host := range s.names.known {
		if !used[host] {
			delete(s.names.known, host)
		}
	}
	s.names.mu.Unlock()
	for host, named := range used {
		if !named {
			continue
		}
		ctx, done := context.WithTimeout(s.ctx, s.now().ServerConnectTimeout.D())
		if _, err := s.lookup(ctx, host); err != nil && s.ctx.Err() == nil {
			s.log.Warn("name of a server not found; its connections stay", "host", host, "error", err)
		}
		done()
	}
}

// leaveOldAddresses closes servers whose address their host's name does not have any more, each as soon as nobody has it.
func (p *Pool) leaveOldAddresses() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for server := range p.servers {
		if server.leaves == "" && !p.set.names.current(server.at, server.remote) {
			server.leaves = becauseRenamed
			if server.state == stateIdle || server.state == stateUsed {
				p.remove(server, becauseRenamed)
			}
		}
	}
}
