package pooler

import (
	"slices"
	"sync"

	"pitr/pooler/loop"
	"pitr/pooler/pool"
)

// subscriptions are who listens to what in one database, in transaction mode, where a server is nobody's for long: one connection
// listens for all of them, and what comes is passed on in the order of its coming. Delivery is at most once: what is sent while that
// connection is lost, or while a client does not read, does not arrive.
type subscriptions struct {
	pooler   *Pooler
	listener *pool.Listener

	// mu guards the map. The listener's lock, and the mailbox of a loop, are taken under it.
	mu      sync.Mutex
	clients map[string]map[*client]struct{} // by channel
}

// subscriptions returns those of a client's database.
func (p *Pooler) subscriptions(c *client) *subscriptions {
	p.mu.Lock()
	defer p.mu.Unlock()
	database := c.pool.Key().Database
	subs := p.listens[database]
	if subs == nil {
		subs = &subscriptions{pooler: p, clients: map[string]map[*client]struct{}{}}
		subs.listener = c.pool.NewListener(subs.deliver)
		p.listens[database] = subs
	}
	return subs
}

// set makes channels those that a client listens to, and calls done on its thread once that is so.
func (s *subscriptions) set(c *client, channels []string, done func(error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for channel, clients := range s.clients {
		if _, found := clients[c]; found && !slices.Contains(channels, channel) {
			delete(clients, c)
			if len(clients) == 0 {
				delete(s.clients, channel)
			}
		}
	}
	for _, channel := range channels {
		if s.clients[channel] == nil {
			s.clients[channel] = map[*client]struct{}{}
		}
		s.clients[channel][c] = struct{}{}
	}
	wanted := make([]string, 0, len(s.clients))
	for channel := range s.clients {
		wanted = append(wanted, channel)
	}
	s.listener.Want(wanted, func(err error) {
		c.worker.Post(loop.Func(func() { done(err) }))
	})
}

// deliver passes a notification on. It is called by the listening connection's goroutine.
func (s *subscriptions) deliver(n pool.Notification) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.clients[n.Channel] {
		if c.notes.Add(1) > int64(s.pooler.cfg.MaxClientNotifications) {
			c.notes.Add(-1)
			s.pooler.counters.notificationsDropped.Add(1)
			continue
		}
		c.worker.Post(loop.Func(func() { c.notified(n) }))
	}
}

// notified tells the client.
func (c *client) notified(n pool.Notification) {
	c.notes.Add(-1)
	if c.ended || c.entry != nil {
		return
	}
	if c.conn.Blocked() || !c.machine.Notify(n.Process, n.Channel, n.Payload) {
		c.pooler.counters.notificationsDropped.Add(1)
		return
	}
	c.say()
}

// subscribe brings what is listened to up to date with what the client has asked for. The answer to its LISTEN waits until that is so,
// so that nothing is missed that is sent after it.
func (c *client) subscribe() {
	channels, changed := c.machine.Listens()
	if !changed {
		return
	}
	c.listens = true
	c.subscribing++
	c.pooler.subscriptions(c).set(c, channels, c.subscribed)
}

func (c *client) subscribed(err error) {
	c.subscribing--
	if err != nil {
		c.pooler.counters.notificationsDropped.Add(1)
	}
	if c.ended || c.subscribing > 0 {
		return
	}
	c.say()
	if c.waits == waitsForChannels {
		c.waits = waitsForNothing
		c.conn.Resume()
	}
	c.settle()
}

// unsubscribe forgets a client that has ended.
func (c *client) unsubscribe() {
	if c.listens {
		c.pooler.subscriptions(c).set(c, nil, func(error) {})
	}
}
