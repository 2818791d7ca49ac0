package pool

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pitr/config"
	"pitr/pooler/session"
)

var errRefused = &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}

// namedWorld is a pool whose server is called db.example.
func namedWorld(t *testing.T, cfg config.Pooler, fake *postgres, addresses *[]string) *world {
	t.Helper()
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := fake.dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		host, _, err := net.SplitHostPort(address)
		return &placed{conn, &net.TCPAddr{IP: net.ParseIP(host), Port: 5432}}, err
	}
	resolve := func(_ context.Context, host string) ([]string, error) {
		fake.mu.Lock()
		defer fake.mu.Unlock()
		if host != "db.example" || len(*addresses) == 0 {
			return nil, &net.DNSError{Err: "no such host", Name: host}
		}
		return append([]string(nil), *addresses...), nil
	}
	set := NewSet(cfg, "host=db.example user=u sslmode=disable", func(string) Credentials { return Credentials{} },
		Driver{Dial: dial, Resolve: resolve, Attach: attach}, slog.New(slog.NewTextHandler(io.Discard, nil)))
	pool, err := set.Get("d", "u")
	if err != nil {
		t.Fatal(err)
	}
	return &world{set: set, pool: pool, fake: fake}
}

// placed is a connection to somewhere.
type placed struct {
	net.Conn
	remote net.Addr
}

func (p *placed) RemoteAddr() net.Addr { return p.remote }

func TestServersAtAnAddressThatTheNameHasNoMoreAreLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake, addresses := &postgres{}, []string{"10.0.0.1"}
		cfg := settings(3)
		cfg.DNSMaxTTL = second(15)
		w := namedWorld(t, cfg, fake, &addresses)
		defer w.set.Close()
		lent, idle := w.borrow().must(t), w.borrow().must(t)
		w.pool.Release(idle, session.Clean)
		synctest.Wait()
		if got := lent.remote.String(); got != "10.0.0.1:5432" {
			t.Fatalf("it went to %s", got)
		}
		pass(40 * time.Second)
		if st := w.stats(); st.Closed != 0 {
			t.Fatalf("%d servers were closed although nothing has changed", st.Closed)
		}
		fake.set(func(*postgres) { addresses = nil })
		pass(40 * time.Second)
		if st := w.stats(); st.Closed != 0 {
			t.Fatalf("%d servers were closed since nobody knows the name", st.Closed)
		}
		fake.set(func(*postgres) { addresses = []string{"10.0.0.2"} })
		pass(16 * time.Second)
		if st := w.stats(); st.Closed != 1 || st.Active != 1 {
			t.Fatalf("%d servers were closed, %d are lent", st.Closed, st.Active)
		}
		w.pool.Release(lent, session.Clean)
		synctest.Wait()
		if st := w.stats(); st.Closed != 2 {
			t.Errorf("the server at the old address was kept when it was released")
		}
		if got := w.borrow().must(t).remote.String(); got != "10.0.0.2:5432" {
			t.Errorf("it went to %s", got)
		}
		if names := w.set.Names(); len(names) != 1 || names[0].Host != "db.example" || names[0].Addresses[0] != "10.0.0.2" {
			t.Errorf("the names are %v", names)
		}
	})
}

func TestClientsWaitForAServerThatWasReachedBefore(t *testing.T) {
	inBubble(t, settings(2), func(t *testing.T, w *world) {
		w.fake.set(func(f *postgres) { f.refusal = errRefused })
		var refused *ConnectError
		if _, err := w.borrow().outcome(); !errors.As(err, &refused) || refused.Code != "08001" {
			t.Fatalf("a server that was never reached: %v", err)
		}
		w.fake.set(func(f *postgres) { f.refusal = nil })
		pass(time.Second)
		server := w.borrow().must(t)
		w.fake.set(func(f *postgres) { f.refusal = errRefused })
		w.pool.Release(server, session.Broken)
		before := len(w.fake.connects())
		first := w.borrow()
		pass(20 * time.Second)
		late := w.borrow()
		if !first.waits() || !late.waits() {
			t.Fatalf("it waits %v, %v: %v", first.waits(), late.waits(), first.err)
		}
		if n := len(w.fake.connects()) - before; n < 15 || n > 50 {
			t.Errorf("%d attempts in 20 s", n)
		}
		w.fake.set(func(f *postgres) { f.refusal = nil })
		pass(1100 * time.Millisecond)
		w.pool.Release(first.must(t), session.Broken)
		w.pool.Release(late.must(t), session.Broken)
		w.fake.set(func(f *postgres) { f.refusal = errRefused })
		b := w.borrow()
		pass(121 * time.Second)
		if _, err := b.outcome(); !errors.Is(err, ErrWaitTimeout) {
			t.Errorf("after query_wait_timeout: %v", err)
		}
		w.fake.set(func(f *postgres) { f.refusal, f.code = nil, "28P01" })
		b = w.borrow()
		pass(2 * time.Second)
		if _, err := b.outcome(); err == nil || !strings.Contains(err.Error(), "not now") {
			t.Errorf("a refusal for good: %v", err)
		}
	})
}

func TestWhichHostsFit(t *testing.T) {
	now := time.Now()
	primary, standby, late := view{timeline: 3, system: "a"}, view{standby: true, system: "a"}, view{standby: true, system: "a", lag: time.Minute}
	old, other, frozen := view{timeline: 2, system: "a"}, view{timeline: 1, system: "b"}, view{timeline: 3, system: "a", readOnly: true}
	is := func(attrs string, want []fit, views ...view) {
		t.Helper()
		var h hosts
		d := dialer{rule: rule{attrs: attrs, lagMax: time.Second, interval: time.Second}}
		for i, v := range views {
			at := Address{"h", i}
			d.targets = append(d.targets, target{Address: at})
			h.saw(at, v, now)
		}
		for i, got := range h.judge(d, now) {
			if got != want[i] {
				t.Errorf("%s: host %d, %+v: %d, want %d", attrs, i, views[i], got, want[i])
			}
		}
		for i, got := range h.judge(d, now.Add(time.Hour)) {
			if got != unknown && got != unfit {
				t.Errorf("%s: host %d after an hour: %d", attrs, i, got)
			}
		}
	}
	is("any", []fit{suits, suits, unfit, suits}, primary, standby, late, old)
	is("primary", []fit{suits, unfit, unfit, unfit, suits, suits}, primary, standby, late, old, other, frozen)
	is("read-write", []fit{suits, unfit, unfit, unfit, suits, unfit}, primary, standby, late, old, other, frozen)
	is("read-only", []fit{unfit, suits, unfit, unfit, unfit, suits}, primary, standby, late, old, other, frozen)
	is("standby", []fit{unfit, suits, unfit}, primary, standby, late)
	is("prefer-standby", []fit{serves, suits, unfit, unfit}, primary, standby, late, old)
}

func TestInWhichOrderHostsAreTried(t *testing.T) {
	now := time.Now()
	is := func(r rule, turn uint64, want ...int) {
		t.Helper()
		var h hosts
		d := dialer{rule: r}
		for i := range 3 {
			d.targets = append(d.targets, target{Address: Address{"h", i}})
		}
		h.failed(Address{"h", 1}, now.Add(time.Second))
		var got []int
		for _, next := range h.order(d, turn, now) {
			got = append(got, next.i)
		}
		if len(got) != len(want) {
			t.Fatalf("%v, want %v", got, want)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("%v, want %v", got, want)
			}
		}
	}
	is(rule{attrs: "any"}, 7, 0, 2, 1)
	is(rule{attrs: "any", balance: true}, 0, 0, 2, 1)
	is(rule{attrs: "any", balance: true}, 1, 2, 0, 1)
	is(rule{attrs: "any", balance: true}, 5, 2, 0, 1)
	is(rule{attrs: "prefer-standby"}, 0, 0, 2, 0, 2, 1, 1)
}

func TestAStandbyIsNotFurtherBehindThanSinceItWasNot(t *testing.T) {
	var h hosts
	at, now := Address{"h", 1}, time.Now()
	h.saw(at, view{standby: true}, now)
	h.saw(at, view{standby: true, lag: time.Hour}, now.Add(time.Second))
	if lag := h.of(at).view.lag; lag != time.Second {
		t.Errorf("it is %v behind", lag)
	}
}

func TestHostsOfPostgresDSN(t *testing.T) {
	s := &Set{dsn: "host=a,b,/run port=1,2,3 user=u sslmode=prefer target_session_attrs=standby"}
	s.live.Store(&config.Pooler{LoadBalanceHosts: "round-robin"})
	is := func(db config.Database, attrs string, want ...Address) {
		t.Helper()
		d, err := s.newDialer(db, Key{"d", "u"}, Credentials{})
		if err != nil {
			t.Fatal(err)
		}
		if len(d.targets) != len(want) || d.rule.attrs != attrs {
			t.Fatalf("%d hosts, %s", len(d.targets), d.rule.attrs)
		}
		for i, got := range d.targets {
			if got.Address != want[i] {
				t.Errorf("host %d is %s, not %s", i, got, want[i])
			}
			for _, fallback := range got.config.Fallbacks {
				if fallback.Host != got.Host {
					t.Errorf("host %s falls back on %s", got, fallback.Host)
				}
			}
			if encrypts := got.config.TLSConfig != nil; encrypts == strings.HasPrefix(got.Host, "/") {
				t.Errorf("host %s: encrypted %v", got, encrypts)
			}
		}
	}
	is(config.Database{}, "standby", Address{"a", 1}, Address{"b", 2}, Address{"/run", 3})
	is(config.Database{Port: "9"}, "standby", Address{"a", 9}, Address{"b", 9}, Address{"/run", 9})
	is(config.Database{Host: "c, d", Port: "4,5", TargetSessionAttrs: "any"}, "any", Address{"c", 4}, Address{"d", 5})
	is(config.Database{Host: "c,/tmp"}, "standby", Address{"c", 1}, Address{"/tmp", 1})
	for _, db := range []config.Database{{Host: "a,b", Port: "1,2,3"}, {Host: "a", Port: "1,2"}, {Host: "a,,b"}, {Port: "0"}, {Port: "65536"}, {Port: "x"}, {Host: strings.Repeat("a,", 70) + "a"}} {
		if _, err := s.newDialer(db, Key{"d", "u"}, Credentials{}); err == nil {
			t.Errorf("hosts %q with ports %q", db.Host, db.Port)
		}
	}
}
