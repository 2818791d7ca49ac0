package pooler

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"time"

	"pitr/pooler/admin"
	"pitr/pooler/pool"
)

// clientView is what the console tells of one client: a copy, made by the client's own thread.
type clientView struct {
	id                     uint32
	who                    *identity
	pool                   pool.Key
	state                  string
	arrived, heard, waited time.Time // waited: since when it waits for a server; zero when it does not
	opened                 time.Time // its transaction; zero when it has none, or has no server for it
	server                 *pool.Server
	application            string
	prepared               int
	statement              string
}

// clientViews are all clients that have shown who they are, by their ids.
func (p *Pooler) clientViews() []clientView {
	var views []clientView
	p.eachClient(nil, func(one visit) { // one worker after the other: nothing is shared
		c := one.c
		if c.machine == nil || c.who == nil {
			return
		}
		v := clientView{
			id: c.process, who: c.who, pool: c.pool.Key(), state: "idle", arrived: c.arrived, heard: c.heard, server: c.server,
			application: c.machine.Setting("application_name"), prepared: c.machine.Prepared(), statement: c.machine.Statement(),
		}
		if !c.machine.Idle() {
			v.opened = c.opened
		}
		switch {
		case c.waits == waitsForServer && c.entry != nil:
			v.state, v.waited = "waiting_login", c.asked
		case c.waits == waitsForServer:
			v.state, v.waited = "waiting", c.asked
		case c.server != nil:
			v.state = "active"
		}
		views = append(views, v)
	})
	slices.SortFunc(views, func(a, b clientView) int { return cmp.Compare(a.id, b.id) })
	return views
}

// instant is a time as PgBouncer's console writes it.
func instant(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

// endpoint is an address in two columns.
func endpoint(address net.Addr) (host string, port int) {
	if tcp, isTCP := address.(*net.TCPAddr); isTCP {
		return tcp.IP.String(), tcp.Port
	}
	return "unix", 0
}

// since is a time span in whole seconds, and in microseconds beyond them.
func since(from, now time.Time) (seconds, microseconds int64) {
	if from.IsZero() || now.Before(from) {
		return 0, 0
	}
	d := now.Sub(from)
	return int64(d / time.Second), int64(d % time.Second / time.Microsecond)
}

// pointer is an id in the columns ptr and link.
func pointer(kind byte, id uint32) string { return fmt.Sprintf("%c-0x%08x", kind, id) }

func (v *clientView) row(now time.Time) []any {
	addr, port := endpoint(v.who.remote)
	localAddr, localPort := endpoint(v.who.local)
	wait, waitMicros := since(v.waited, now)
	link := ""
	if v.server != nil {
		link = pointer('S', v.server.Process())
	}
	return []any{"C", v.who.user, v.who.database, "none", v.state, addr, port, localAddr, localPort, instant(v.arrived), instant(v.heard), wait, waitMicros, 0,
		pointer('C', v.id), link, 0, v.who.tls, v.application, v.prepared, v.id}
}

func serverRow(one *pool.ServerStats, holder *clientView) []any {
	wire, _ := one.Server.Wire().(*backend)
	addr, port, localAddr, localPort := "", 0, "", 0
	if wire != nil {
		addr, port = endpoint(wire.remote)
		localAddr, localPort = endpoint(wire.local)
	}
	leaves, link, application, requested, prepared := 0, "", "", one.Since, one.Statements
	if one.Leaves {
		leaves = 1
	}
	if holder != nil {
		link, application, requested = pointer('C', holder.id), holder.application, holder.heard
	}
	return []any{"S", one.User, one.Database, "none", one.State, addr, port, localAddr, localPort, instant(one.Born), instant(requested), 0, 0, leaves,
		pointer('S', one.Server.Process()), link, one.Server.Process(), "", application, max(prepared, 0), one.Server.Process()}
}

// holders are the clients that have a server, by it.
func holders(views []clientView) map[*pool.Server]*clientView {
	byServer := map[*pool.Server]*clientView{}
	for i := range views {
		if views[i].server != nil {
			byServer[views[i].server] = &views[i]
		}
	}
	return byServer
}

// everybody is all clients and, behind them, those who have a console.
func (p *Pooler) everybody() []clientView {
	views := p.clientViews()
	for _, o := range p.operators() {
		views = append(views, clientView{id: o.console.Process, who: o.who, pool: pool.Key{Database: admin.Database, User: admin.Database}, state: "active", arrived: o.arrived, heard: o.arrived, application: o.name})
	}
	return views
}

func showClients(p *Pooler) (rows [][]any) {
	now := time.Now()
	for _, v := range p.everybody() {
		rows = append(rows, v.row(now))
	}
	return rows
}

func showServers(p *Pooler) (rows [][]any) {
	byServer := holders(p.clientViews())
	for _, one := range p.pools.Servers() {
		rows = append(rows, serverRow(&one, byServer[one.Server]))
	}
	return rows
}

// showSockets adds what PgBouncer tells of its buffers, of which nothing is kept here between two events.
func showSockets(active bool) func(*Pooler) [][]any {
	return func(p *Pooler) (rows [][]any) {
		now := time.Now()
		views := p.everybody()
		for _, v := range views {
			if !active || v.state != "idle" {
				rows = append(rows, append(v.row(now), 0, 0, 0, 0, 0, 0, 0))
			}
		}
		byServer := holders(views)
		for _, one := range p.pools.Servers() {
			if !active || one.State == "active" {
				rows = append(rows, append(serverRow(&one, byServer[one.Server]), 0, 0, 0, 0, 0, 0, 0))
			}
		}
		return rows
	}
}

// showWaits tells of each pool in which somebody waits: who waits, longest first, and who has its servers.
func showWaits(p *Pooler) (rows [][]any) {
	now := time.Now()
	views := p.clientViews()
	wanted := map[pool.Key]bool{}
	for _, v := range views {
		wanted[v.pool] = wanted[v.pool] || !v.waited.IsZero()
	}
	row := func(kind string, v *clientView, waitsFor string, wait, transaction any) []any {
		addr, port := endpoint(v.who.remote)
		var process any
		if v.server != nil {
			process = v.server.Process()
		}
		return []any{kind, v.pool.Database, v.pool.User, v.id, v.who.user, v.application, addr, port, waitsFor, wait, transaction, process, v.statement}
	}
	slices.SortStableFunc(views, func(a, b clientView) int {
		return cmp.Or(cmp.Compare(a.pool.Database, b.pool.Database), cmp.Compare(a.pool.User, b.pool.User), cmp.Compare(boolInt(a.waited.IsZero()), boolInt(b.waited.IsZero())), a.waited.Compare(b.waited), a.opened.Compare(b.opened))
	})
	for i := range views {
		v := &views[i]
		switch {
		case !wanted[v.pool]:
		case !v.waited.IsZero():
			paused, _ := p.pools.Paused(v.pool.Database)
			waitsFor := "server"
			if paused {
				waitsFor = "resume"
			}
			rows = append(rows, row("waits", v, waitsFor, now.Sub(v.waited).Microseconds(), nil))
		case v.server != nil:
			var transaction any
			if !v.opened.IsZero() {
				transaction = now.Sub(v.opened).Microseconds()
			}
			rows = append(rows, row("holds", v, "", nil, transaction))
		}
	}
	return rows
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
