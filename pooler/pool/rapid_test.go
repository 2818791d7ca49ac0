package pool

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"pitr/config"
	"pitr/pooler/session"
)

// TestNoServerIsLentTwiceAndNobodyIsForgotten plays random clients, servers that die, logins that fail, cancels and time that
// passes, and asks after each step whether what the pool has given out fits.
func TestNoServerIsLentTwiceAndNobodyIsForgotten(t *testing.T) {
	synctest.Test(t, func(bubble *testing.T) {
		rapid.Check(struct{ testing.TB }{bubble}, func(t *rapid.T) { // without Deadline, which a bubble does not allow
			cfg := settings(rapid.IntRange(1, 3).Draw(t, "size"))
			cfg.QueryWaitTimeout = config.Duration(60 * time.Second)
			cfg.ServerIdleTimeout = config.Duration(20 * time.Second)
			cfg.ServerLifetime = config.Duration(50 * time.Second)
			m := &model{world: newWorld(bubble, cfg)}
			defer m.set.Close()
			t.Repeat(map[string]func(*rapid.T){
				"acquire":  m.acquire,
				"release":  m.release,
				"quit":     m.quit,
				"die":      m.die,
				"hold":     m.hold,
				"unhold":   m.unhold,
				"postgres": m.postgres,
				"time": func(t *rapid.T) {
					pass(rapid.SampledFrom([]time.Duration{1, 7000, 61000}).Draw(t, "ms") * time.Millisecond)
				},
				"": m.check,
			})
			m.settle(t)
		})
	})
}

// model is what the clients of a pool know together.
type model struct {
	*world
	queue []*borrower // those who wait, in the order of their coming
	lent  []*borrower // those who have a server
	held  []*Server   // with a cancel on its way
}

func (m *model) acquire(t *rapid.T) {
	if len(m.queue) < 8 {
		m.queue = append(m.queue, m.borrow())
	}
}

func (m *model) release(t *rapid.T) {
	if len(m.lent) == 0 {
		t.Skip("nothing is lent")
	}
	n := rapid.IntRange(0, len(m.lent)-1).Draw(t, "who")
	b := m.lent[n]
	m.lent = slices.Delete(m.lent, n, n+1)
	m.pool.Release(b.server, rapid.SampledFrom([]session.Condition{session.Clean, session.Clean, session.Dirty, session.Broken}).Draw(t, "condition"))
}

func (m *model) quit(t *rapid.T) {
	if len(m.queue) == 0 {
		t.Skip("nobody waits")
	}
	m.queue[rapid.IntRange(0, len(m.queue)-1).Draw(t, "who")].quit()
	synctest.Wait()
	m.collect(t)
}

func (m *model) die(t *rapid.T) {
	m.fake.mu.Lock()
	n := len(m.fake.backends)
	m.fake.mu.Unlock()
	if n == 0 {
		t.Skip("there is no server")
	}
	m.fake.backends[rapid.IntRange(max(0, n-3), n-1).Draw(t, "which")].Close()
}

func (m *model) hold(t *rapid.T) {
	if len(m.lent) == 0 {
		t.Skip("nothing is lent")
	}
	server := rapid.SampledFrom(m.lent).Draw(t, "whose").server
	m.pool.Hold(server)
	m.held = append(m.held, server)
}

func (m *model) unhold(t *rapid.T) {
	if len(m.held) == 0 {
		t.Skip("nothing is held")
	}
	n := rapid.IntRange(0, len(m.held)-1).Draw(t, "which")
	server := m.held[n]
	m.held = slices.Delete(m.held, n, n+1)
	m.pool.Unhold(server, rapid.Bool().Draw(t, "delivered"))
}

func (m *model) postgres(t *rapid.T) {
	refuses, hangs := rapid.IntRange(0, 2).Draw(t, "refuses") == 0, rapid.IntRange(0, 3).Draw(t, "hangs") == 0
	m.fake.set(func(f *postgres) { f.refuses, f.hangs = refuses, hangs })
}

// collect takes those from the queue whose wait has ended. Whoever was served must have been the first of those who went on waiting.
func (m *model) collect(t *rapid.T) {
	var waiting []*borrower
	for _, b := range m.queue {
		server, err := b.outcome()
		switch {
		case b.waits():
			waiting = append(waiting, b)
		case err != nil:
		case len(waiting) > 0:
			t.Fatal("a client was served before one who came earlier")
		case slices.Contains(m.held, server):
			t.Fatalf("server %d was lent while a cancel was on its way to it", server.Process())
		default:
			for _, other := range m.lent {
				if other.server == server {
					t.Fatalf("server %d was lent twice", server.Process())
				}
			}
			m.lent = append(m.lent, b)
		}
	}
	m.queue = waiting
}

func (m *model) check(t *rapid.T) {
	synctest.Wait()
	m.collect(t)
	m.pool.mu.Lock()
	defer m.pool.mu.Unlock()
	lent := 0
	for server := range m.pool.servers {
		if server.state == stateActive {
			lent++
		}
	}
	// All of these are read while nothing moves.
	if lent != len(m.lent) || m.pool.waiters.n != len(m.queue) {
		t.Fatalf("%d servers are lent and %d clients wait; the pool says %d and %d", len(m.lent), len(m.queue), lent, m.pool.waiters.n)
	}
	if n := len(m.pool.servers) + m.pool.connecting; n > m.pool.limits.size {
		t.Fatalf("%d servers of %d", n, m.pool.limits.size)
	}
	if len(m.pool.idle) > 0 && len(m.queue) > 0 {
		t.Fatal("a server is idle and a client waits")
	}
	if len(m.queue) > 0 && len(m.pool.servers)+m.pool.connecting == 0 && m.pool.failures == 0 {
		t.Fatal("a client waits for a server that nobody connects")
	}
}

// settle brings everything to an end: in a world without failures whoever waits is served, and whatever was lent comes back.
func (m *model) settle(t *rapid.T) {
	m.fake.set(func(f *postgres) { f.refuses, f.hangs = false, false })
	for _, server := range m.held {
		m.pool.Unhold(server, true)
	}
	m.held = nil
	for rounds := 0; len(m.queue)+len(m.lent) > 0; rounds++ {
		if rounds > 20 {
			t.Fatalf("%d clients are forgotten", len(m.queue))
		}
		for _, b := range m.lent {
			m.pool.Release(b.server, session.Clean)
		}
		m.lent = nil
		m.check(t)
		pass(2 * time.Second)
		m.check(t)
	}
	pass(2 * time.Minute)
	if st := m.stats(); st.Active+st.Idle+st.Cleaning+st.Connecting+st.Waiting != 0 || st.Closed != st.Connects {
		t.Fatalf("something is left: %+v", st)
	}
}
