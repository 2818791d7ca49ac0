package pool

import (
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pitr/config"
)

// view is what a server has said of itself.
type view struct {
	standby  bool
	readOnly bool          // transactions are, unless they say otherwise
	timeline uint64        // of a primary
	system   string        // the cluster's identifier
	lag      time.Duration // of a standby that has not replayed all that it has received
}

// host is what is known of one server, whoever uses it.
type host struct {
	reached   bool      // since the process began
	deadUntil time.Time // it could not be reached; others are tried before it
	asked     time.Time // when view was had; zero: never
	view      view
	caughtUp  time.Time // when it was last seen to be not behind
	down      bool      // as it was logged
}

// hosts is what is known of all servers.
type hosts struct {
	// mu guards the rest. It may be taken under Pool.mu, and nothing is taken under it.
	mu    sync.Mutex
	known map[Address]*host
}

// of returns the entry of a host. The caller holds mu.
func (h *hosts) of(at Address) *host {
	if h.known[at] == nil {
		if h.known == nil {
			h.known = map[Address]*host{}
		}
		h.known[at] = &host{}
	}
	return h.known[at]
}

// met notes that a host has let us in.
func (h *hosts) met(at Address) {
	h.mu.Lock()
	defer h.mu.Unlock()
	one := h.of(at)
	one.reached, one.deadUntil = true, time.Time{}
}

// saw notes what a host has said of itself, and reports whether it is another than it was.
func (h *hosts) saw(at Address, v view, now time.Time) (changed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	one := h.of(at)
	changed = !one.asked.IsZero() && (one.view.standby != v.standby || one.view.readOnly != v.readOnly)
	// What a standby lacks has come since it lacked nothing. Without that one which gets its first transaction after an hour would be an hour behind for a moment.
	if v.lag == 0 {
		one.caughtUp = now
	} else if !one.caughtUp.IsZero() {
		v.lag = min(v.lag, now.Sub(one.caughtUp))
	}
	one.reached, one.deadUntil, one.asked, one.view = true, time.Time{}, now, v
	return changed
}

// failed notes that a host could not be reached.
func (h *hosts) failed(at Address, until time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.of(at).deadUntil = until
}

// turned notes whether a host is down, and reports whether that is news.
func (h *hosts) turned(at Address, down bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	one := h.of(at)
	news := one.down != down
	one.down = down
	return news
}

// everReached reports whether any of the hosts has let us in since the process began.
func (h *hosts) everReached(targets []target) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(targets, func(t target) bool { return h.of(t.Address).reached })
}

// target is one host and how it is logged in to.
type target struct {
	Address
	config *pgconn.Config
}

// rule is which of its hosts a database uses.
type rule struct {
	attrs     string // libpq's target_session_attrs
	inherited string // what postgres.dsn says of that
	balance   bool   // each new connection goes to the next host
	lagMax    time.Duration
	interval  time.Duration // of polling
}

func newRule(cfg *config.Pooler, db config.Database, inherited string) rule {
	turns := "disable" // who names hosts in postgres.dsn means what libpq does with them
	if db.Host != "" {
		turns = cfg.LoadBalanceHosts
	}
	return rule{attrs: first(db.TargetSessionAttrs, inherited, "any"), inherited: inherited, balance: first(db.LoadBalanceHosts, turns) == "round-robin",
		lagMax: first(db.MaxReplicaLag, cfg.MaxReplicaLag).D(), interval: cfg.HostPollInterval.D()}
}

// attrsOf is the target_session_attrs of a DSN, which pgconn keeps as the function that checks it; "" for any.
func attrsOf(cfg *pgconn.Config) string {
	if cfg.ValidateConnect == nil {
		return ""
	}
	for attrs, check := range map[string]pgconn.ValidateConnectFunc{
		"read-write": pgconn.ValidateConnectTargetSessionAttrsReadWrite, "read-only": pgconn.ValidateConnectTargetSessionAttrsReadOnly,
		"primary": pgconn.ValidateConnectTargetSessionAttrsPrimary, "standby": pgconn.ValidateConnectTargetSessionAttrsStandby,
		"prefer-standby": pgconn.ValidateConnectTargetSessionAttrsPreferStandby,
	} {
		if reflect.ValueOf(check).Pointer() == reflect.ValueOf(cfg.ValidateConnect).Pointer() {
			return attrs
		}
	}
	return ""
}

// asks reports whether it matters what a server is.
func (r rule) asks() bool { return r.attrs != "any" || r.lagMax > 0 }

// fit is how well a host suits a database. The lower the better.
type fit int

const (
	suits  fit = iota
	serves     // while no other can be had
	unfit
	unknown // it has not been asked, or not of late, or it cannot be reached
)

// fits compares a view with what is wanted: target_session_attrs in the manual of libpq.
func (r rule) fits(v view) fit {
	yes := true
	switch r.attrs {
	case "read-write":
		yes = !v.standby && !v.readOnly
	case "read-only":
		yes = v.standby || v.readOnly
	case "primary":
		yes = !v.standby
	case "standby":
		yes = v.standby
	}
	switch {
	case !yes || v.standby && r.lagMax > 0 && v.lag > r.lagMax:
		return unfit
	case r.attrs == "prefer-standby" && !v.standby:
		return serves
	}
	return suits
}

// staleAfter is how many rounds of polling a view may be old.
const staleAfter = 3

// judge returns how each host of a database suits it. A primary whose cluster has another one on a later timeline never does: it was left behind by a promotion.
func (h *hosts) judge(d dialer, now time.Time) []fit {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]fit, len(d.targets))
	for i, t := range d.targets {
		one := h.of(t.Address)
		fresh := d.rule.interval > 0 && now.Sub(one.asked) <= staleAfter*d.rule.interval
		out[i] = h.fitOf(d, one)
		old := d.rule.asks() && !fresh && !(out[i] == unfit && h.superseded(d, one))
		if old || now.Before(one.deadUntil) && out[i] != unfit {
			out[i] = unknown
		}
	}
	return out
}

// fitOf returns how a host suits a database by what it said last, whenever that was. The caller holds mu.
func (h *hosts) fitOf(d dialer, one *host) fit {
	switch {
	case !d.rule.asks():
		return suits
	case one.asked.IsZero():
		return unknown
	case h.superseded(d, one):
		return unfit
	}
	return d.rule.fits(one.view)
}

// takes reports whether a host that has just been asked suits well enough.
func (h *hosts) takes(d dialer, next try) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.fitOf(d, h.of(d.targets[next.i].Address)) <= next.least
}

// superseded reports whether another of the hosts is the primary of the same cluster on a later timeline. The caller holds mu.
func (h *hosts) superseded(d dialer, one *host) bool {
	if one.asked.IsZero() || one.view.standby || d.rule.attrs == "any" {
		return false
	}
	return slices.ContainsFunc(d.targets, func(t target) bool {
		other := h.of(t.Address)
		return !other.asked.IsZero() && !other.view.standby && other.view.system == one.view.system && other.view.timeline > one.view.timeline
	})
}

// try is one attempt at a host: it is taken if it suits so well at least.
type try struct {
	i     int
	least fit
}

// order returns in which order hosts are tried: what may suit, then what may serve while nothing else can be had, then those that could not be reached of late.
func (h *hosts) order(d dialer, turn uint64, now time.Time) (tries []try) {
	n := uint64(len(d.targets))
	var alive, dead []int
	h.mu.Lock()
	for k := range n {
		i := int(k)
		if d.rule.balance {
			i = int((k + turn) % n)
		}
		if now.Before(h.of(d.targets[i].Address).deadUntil) {
			dead = append(dead, i)
		} else {
			alive = append(alive, i)
		}
	}
	h.mu.Unlock()
	for _, group := range [][]int{alive, dead} {
		for _, least := range []fit{suits, serves} {
			for _, i := range group {
				if least == suits || d.rule.attrs == "prefer-standby" {
					tries = append(tries, try{i, least})
				}
			}
		}
	}
	return tries
}
