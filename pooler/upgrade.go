package pooler

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"pitr/pooler/takeover"
)

// upgrade is how a pooler takes the place of another one, and how another one takes its place: docs/decisions/0026-takeover.md.
type upgrade struct {
	inherited   []takeover.Socket     // handed over, and not wanted
	lent        map[net.Listener]bool // Unix sockets whose files are a supervisor's
	sockets     []takeover.Socket     // what a successor gets
	door        *net.UnixListener     // where it asks; nil without pooler.takeover_socket
	predecessor atomic.Pointer[takeover.Link]
	successor   atomic.Pointer[takeover.Link]
	succeeded   chan *takeover.Link // a successor serves
	events      Events
	work        sync.WaitGroup

	// mu guards the rest and, as long as Run has not ended them, inherited and what becomes of files.
	mu     sync.Mutex
	asking *net.UnixConn // a successor that does not serve yet
	ended  bool          // nobody may ask any more
}

// Events are what a supervisor of processes wants to know. Each may be nil.
type Events struct {
	Serving   func()        // clients are served, by nobody else
	Reloading func()        // the configuration is read again
	Reloaded  func()        // and that has ended
	Succeeded func(pid int) // another process has taken our place
	Stopping  func()        // the end has begun, and nobody has taken our place
}

// Tell sets the events. It is called before Run.
func (p *Pooler) Tell(events Events) { p.upgrade.events = events }

func tell(event func()) {
	if event != nil {
		event()
	}
}

// askPredecessor gets the sockets of the pooler whose place we are to take, if there is one.
func (p *Pooler) askPredecessor() error {
	if p.cfg.TakeoverSocket == "" {
		return nil
	}
	link, sockets, err := takeover.Ask(p.cfg.TakeoverSocket)
	if errors.Is(err, takeover.ErrNobody) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pooler.takeover_socket: take over: %w", err)
	}
	lent := p.upgrade.inherited // the same, if a supervisor has started us both
	p.upgrade.inherited = nil
	for _, socket := range sockets {
		p.upgrade.inherit(socket)
	}
	p.upgrade.inherited = append(p.upgrade.inherited, lent...)
	p.upgrade.predecessor.Store(link)
	p.log.Info("takeover began", "pid", link.Peer, "sockets", len(sockets))
	return nil
}

// listenForSuccessors opens pooler.takeover_socket. It is called after askPredecessor, so that whoever listened there has gone if its file is there still.
func (p *Pooler) listenForSuccessors() error {
	path := p.cfg.TakeoverSocket
	if path == "" {
		return nil
	}
	listener, taken := p.upgrade.take(forUpgrade, "")
	if !taken {
		info, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err == nil && info.Mode().Type() != fs.ModeSocket:
			return fmt.Errorf("pooler.takeover_socket: %s is there and is no socket", path)
		case err == nil:
			err = os.Remove(path)
			fallthrough
		default:
			if err != nil {
				return fmt.Errorf("pooler.takeover_socket: %w", err)
			}
		}
		if listener, err = net.Listen("unixpacket", path); err != nil {
			return fmt.Errorf("pooler.takeover_socket: %w", err)
		}
		p.upgrade.offer(forUpgrade, listener)
	}
	p.upgrade.door = listener.(*net.UnixListener)
	if err := os.Chmod(path, 0o600); err != nil {
		return fmt.Errorf("pooler.takeover_socket: %w", err)
	}
	return nil
}

// close closes what a pooler has that will not run, and the door of one that ends.
func (u *upgrade) close() {
	for _, socket := range u.inherited {
		socket.Close()
	}
	if u.door != nil {
		u.door.Close()
	}
}

// unlinking says whether the files of Unix sockets are removed when they are closed here. They are not while another process has them, too. The caller has mu, or is alone.
func (u *upgrade) unlinking(on bool) {
	for _, sockets := range [][]takeover.Socket{u.sockets, u.inherited} {
		for _, socket := range sockets {
			if unix, isUnix := socket.Listener.(*net.UnixListener); isUnix && !u.lent[unix] {
				unix.SetUnlinkOnClose(on)
			}
		}
	}
}

// runUpgrades tells the predecessor that we serve, and waits for successors.
func (p *Pooler) runUpgrades(ctx context.Context) {
	p.upgrade.work.Go(func() {
		link := p.upgrade.predecessor.Load()
		if link != nil {
			p.takePlace(link)
		}
		for _, socket := range p.upgrade.own() {
			p.log.Info("address closed", "address", socket.Addr().String())
			socket.Close()
		}
		if link != nil {
			p.heed(link)
		}
		tell(p.upgrade.events.Serving)
		if p.upgrade.door != nil {
			p.awaitSuccessors(ctx)
		}
	})
}

// takePlace makes the predecessor stop to accept.
func (p *Pooler) takePlace(link *takeover.Link) {
	if err := link.Serving(); err != nil {
		p.log.Error("the pooler before us may still accept clients", "pid", link.Peer, "error", err)
	} else {
		p.log.Info("place of another pooler taken", "pid", link.Peer)
	}
}

// heed is there for cancel requests that come to the predecessor and are for our clients, until it has gone.
func (p *Pooler) heed(link *takeover.Link) {
	u := &p.upgrade
	u.work.Go(func() {
		err := link.Run(func(process uint32, secret []byte) { p.cancelFrom(link, process, secret) })
		u.predecessor.Store(nil)
		if err != nil {
			p.log.Warn("link to another pooler lost", "pid", link.Peer, "error", err)
		}
	})
}

// awaitSuccessors lets others ask for our place until the door is closed.
func (p *Pooler) awaitSuccessors(ctx context.Context) {
	for {
		conn, err := p.upgrade.door.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			p.log.Warn("takeovers are not heard for a moment", "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(acceptPause):
			}
		default:
			p.upgrade.work.Go(func() { p.offerPlace(conn) })
		}
	}
}

var errAsked = errors.New("another takeover is under way")

// offerPlace hands the sockets to somebody who has asked. Until he serves, everything goes on as before.
func (p *Pooler) offerPlace(conn *net.UnixConn) {
	u := &p.upgrade
	if !u.ask(conn) {
		if _, err := takeover.Offer(conn, nil, errAsked); err != nil {
			p.log.Warn("takeover refused", "error", err)
		}
		return
	}
	link, err := takeover.Offer(conn, u.sockets, nil)
	if err != nil {
		u.answered()
		p.log.Warn("takeover given up; the pooler goes on", "error", err)
		return
	}
	u.succeeded <- link
}

// own makes the files of Unix sockets ours, which go when we do, and returns the sockets that were handed over and are not wanted.
func (u *upgrade) own() []takeover.Socket {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ended {
		return nil
	}
	u.unlinking(true)
	unwanted := u.inherited
	u.inherited = nil
	return unwanted
}

// ask notes who asks, unless somebody does already.
func (u *upgrade) ask(conn *net.UnixConn) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.asking != nil || u.ended {
		return false
	}
	u.asking = conn
	u.unlinking(false)
	return true
}

// answered forgets who has asked, and will not have the sockets.
func (u *upgrade) answered() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.asking = nil
	if !u.ended {
		u.unlinking(true)
	}
}

// endUpgrades turns away who has not taken our place yet. It comes before listeners are closed, and may come twice.
func (p *Pooler) endUpgrades() {
	u := &p.upgrade
	u.mu.Lock()
	again := u.ended
	u.ended = true
	if u.asking != nil && u.successor.Load() == nil {
		u.asking.Close()
	}
	u.mu.Unlock()
	if !again && u.successor.Load() == nil {
		tell(u.events.Stopping)
	}
}

// closeLinks ends what connects us with other processes, once our clients have gone.
func (p *Pooler) closeLinks() {
	u := &p.upgrade
	for _, link := range []*takeover.Link{u.predecessor.Load(), u.successor.Load()} {
		if link != nil {
			link.Close()
		}
	}
	u.work.Wait()
	select {
	case link := <-u.succeeded: // too late, but it has our sockets
		link.Close()
	default:
	}
}

// succeeded leaves the addresses to the process that has taken our place, and waits until the last client has left. It returns when the rest is cut.
func (p *Pooler) succeeded(ctx context.Context, link *takeover.Link, accepting *sync.WaitGroup, patience *time.Timer) (limit <-chan time.Time) {
	p.leaving.Store(true)
	u := &p.upgrade
	u.successor.Store(link)
	p.closeListeners()
	for _, socket := range u.sockets {
		socket.Close() // those beside, too
	}
	accepting.Wait()
	if u.events.Succeeded != nil {
		u.events.Succeeded(link.Peer)
	}
	p.log.Info("another pooler has taken our place", "pid", link.Peer, "clients", p.Stats().Clients)
	if err := link.Released(); err != nil && !errors.Is(err, syscall.EPIPE) {
		p.log.Warn("the pooler that has taken our place was not told so", "pid", link.Peer, "error", err)
	}
	u.work.Go(func() {
		if err := link.Run(func(process uint32, secret []byte) { p.cancelFrom(link, process, secret) }); err != nil {
			p.log.Warn("link to another pooler lost", "pid", link.Peer, "error", err)
		}
	})
	deadline := time.NewTimer(p.now().TakeoverTimeout.D())
	defer deadline.Stop()
	ticker := time.NewTicker(leavePause)
	defer ticker.Stop()
	for !p.deserted() {
		select {
		case <-ctx.Done():
			patience.Reset(p.now().DrainTimeout.D())
			return patience.C
		case how := <-p.halt:
			return p.halted(ctx, how, patience)
		case <-deadline.C:
			p.log.Warn("takeover_timeout is over", "clients", p.Stats().Clients)
			patience.Reset(p.now().DrainTimeout.D())
			return patience.C
		case <-ticker.C:
		}
	}
	patience.Reset(0)
	return patience.C
}

// deserted reports whether nobody is left who could not do without us: no client, nobody who logs in, and no process before us that cancel requests reach through us. Who has a
// console does not count. Nobody is accepted any more.
func (p *Pooler) deserted() bool {
	logins := len(p.logins) // those who log in count among the clients before they cease to count here
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.clients) == 0 && logins <= len(p.consoles) && p.upgrade.predecessor.Load() == nil
}
