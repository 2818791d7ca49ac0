package pooler

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	"pitr/config"
	"pitr/pooler/takeover"
)

// listening makes accepted sockets inherit what would else take four calls for each of them: a client whose machine has died is
// noticed after a minute or so.
func listening(cfg config.Pooler) *net.ListenConfig {
	return &net.ListenConfig{KeepAlive: -1, Control: tuned(cfg)}
}

// tuned sets the options of a TCP socket before it is used.
func tuned(cfg config.Pooler) func(network, address string, raw syscall.RawConn) error {
	return func(network, _ string, raw syscall.RawConn) error {
		if !strings.HasPrefix(network, "tcp") {
			return nil
		}
		var failed error
		err := raw.Control(func(fd uintptr) { failed = tune(int(fd), cfg) })
		return errors.Join(err, failed)
	}
}

// What sockets are for, as the names begin under which they are handed over.
const (
	forClients = "listen " // and an address of pooler.listen
	forLocal   = "unix "   // and the path of the Unix socket
	forBeside  = "beside " // and an address of ListenBeside
	forUpgrade = "takeover"
	forLent    = "lent " // and the path of a Unix socket that a supervisor has opened
)

// Listen opens all addresses of pooler.listen, or takes them over from the pooler that listens on pooler.takeover_socket. Clients are served once Run is called, and until then it is
// as if nothing was taken over. After an error none is open.
func (p *Pooler) Listen() error {
	err := p.askPredecessor()
	if err == nil {
		err = p.listen()
	}
	if err != nil {
		p.closeListeners()
	}
	return err
}

func (p *Pooler) listen() error {
	for _, address := range p.cfg.Listen {
		listener, err := p.open(forClients, address)
		if err != nil {
			return fmt.Errorf("pooler.listen: %w", err)
		}
		p.listeners = append(p.listeners, listener)
	}
	if p.cfg.UnixSocketDir != "" {
		path := unixPath(p.cfg, p.unixPort())
		listener, taken := p.upgrade.take(forLocal, path)
		if !taken {
			var err error
			if listener, err = listenUnix(path); err != nil {
				return err
			}
			p.upgrade.offer(forLocal+path, listener)
		}
		p.listeners = append(p.listeners, listener)
		if !p.upgrade.lent[listener] {
			if err := admitToSocket(path, p.cfg); err != nil {
				return err
			}
		}
	}
	return p.listenForSuccessors()
}

// ListenOn gives the pooler sockets that its supervisor has opened; each is used if it fits an address of the configuration, and closed otherwise. Files of Unix sockets stay the
// supervisor's. It is called before Listen.
func (p *Pooler) ListenOn(listeners []net.Listener) {
	for _, listener := range listeners {
		name := forClients
		if listener.Addr().Network() == "unix" {
			name = forLent
		}
		p.upgrade.inherit(takeover.Socket{Name: name + listener.Addr().String(), Listener: listener})
	}
}

// inherit notes a socket that somebody else has opened.
func (u *upgrade) inherit(socket takeover.Socket) {
	if path, lent := strings.CutPrefix(socket.Name, forLent); lent {
		u.lent[socket.Listener] = true
		socket.Name = forLocal + path
	}
	u.inherited = append(u.inherited, socket)
}

// ListenBeside opens another address, which belongs to what runs beside the pooler and goes over to a successor with the others. It is called between Listen and Run. Run closes
// it only when a successor has it.
func (p *Pooler) ListenBeside(address string) (net.Listener, error) {
	return p.open(forBeside, address)
}

// open returns the socket that was handed over for this address, or opens it.
func (p *Pooler) open(purpose, address string) (net.Listener, error) {
	if listener, taken := p.upgrade.take(purpose, address); taken {
		return listener, nil
	}
	listener, err := listening(p.cfg).Listen(context.Background(), "tcp", address)
	if err == nil {
		p.upgrade.offer(purpose+address, listener)
	}
	return listener, err
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
	p.upgrade.close()
}

// sameAddress reports whether a socket is what listening on an address would open.
func sameAddress(listener net.Listener, address string) bool {
	has, isTCP := listener.Addr().(*net.TCPAddr)
	wanted, err := net.ResolveTCPAddr("tcp", address)
	if err != nil || !isTCP || wanted.Port == 0 || has.Port != wanted.Port {
		return false
	}
	everywhere := func(ip net.IP) bool { return len(ip) == 0 || ip.IsUnspecified() }
	return has.IP.Equal(wanted.IP) || everywhere(has.IP) && everywhere(wanted.IP)
}

// take returns the socket that was handed over for this purpose, if one was. It is handed on under the name that it has now.
func (u *upgrade) take(purpose, address string) (net.Listener, bool) {
	fits := func(socket takeover.Socket) bool { return socket.Name == purpose+address }
	for range 2 {
		for i, socket := range u.inherited {
			if fits(socket) {
				u.inherited = append(u.inherited[:i:i], u.inherited[i+1:]...)
				if u.lent[socket.Listener] {
					u.offer(forLent+address, socket.Listener)
				} else {
					u.offer(purpose+address, socket.Listener)
				}
				return socket.Listener, true
			}
		}
		fits = func(socket takeover.Socket) bool { // the same place in other words
			return purpose != forLocal && strings.HasPrefix(socket.Name, purpose) && sameAddress(socket.Listener, address)
		}
	}
	return nil, false
}

func (u *upgrade) offer(name string, listener net.Listener) {
	u.sockets = append(u.sockets, takeover.Socket{Name: name, Listener: listener})
}
