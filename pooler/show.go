package pooler

import (
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"
	"time"
	"unsafe"

	"pitr/config"
	"pitr/pooler/admin"
	"pitr/pooler/pool"
)

// shows are the rows of each table of the console, in the order of its columns: see package admin. What they tell comes from snapshots.
var shows = map[string]func(*Pooler) [][]any{
	"ACTIVE_SOCKETS": showSockets(true),
	"CLIENTS":        showClients,
	"CONFIG":         showConfig,
	"DATABASES":      showDatabases,
	"DNS_HOSTS":      showNames,
	"DNS_ZONES":      showNothing,
	"LISTS":          showLists,
	"MEM":            showMemory,
	"PEERS":          showPeers,
	"PEER_POOLS":     showPeerPools,
	"POOLS":          showPools,
	"SERVERS":        showServers,
	"SOCKETS":        showSockets(false),
	"STATE":          showState,
	"STATS":          showStats,
	"STATS_AVERAGES": showAverages,
	"STATS_TOTALS":   showTotalsOfDatabases,
	"TOTALS":         showTotals,
	"USERS":          showUsers,
	"VERSION":        func(*Pooler) [][]any { return [][]any{{"PgBouncer " + admin.Version}} },
	"WAITS":          showWaits,
}

func showNothing(*Pooler) [][]any { return nil }

func showConfig(p *Pooler) (rows [][]any) {
	for _, setting := range config.PoolerSettings(p.now()) {
		changeable := "no"
		if setting.Reload {
			changeable = "yes"
		}
		rows = append(rows, []any{setting.Name, setting.Value, setting.Default, changeable})
	}
	return rows
}

// databaseNames are those that are configured, and those that have a pool.
func databaseNames(cfg *config.Pooler, pools []pool.Stats) []string {
	names := map[string]bool{}
	for name := range cfg.Databases {
		names[name] = name != "*"
	}
	for _, one := range pools {
		names[one.Database] = true
	}
	maps.DeleteFunc(names, func(_ string, listed bool) bool { return !listed })
	return slices.Sorted(maps.Keys(names))
}

// text is a value that may be missing.
func text(value string) any {
	if value == "" {
		return nil
	}
	return value
}

func either(values ...int) int {
	for _, value := range values {
		if value != 0 {
			return value
		}
	}
	return 0
}

func showDatabases(p *Pooler) (rows [][]any) {
	cfg := p.now()
	pools, _ := p.pools.Stats()
	p.mu.Lock()
	clients := maps.Clone(p.tallies.databases)
	p.mu.Unlock()
	for _, name := range databaseNames(cfg, pools) {
		db, _ := p.pools.Database(name)
		servers := 0
		for _, one := range pools {
			if one.Database == name {
				servers += one.Active + one.Idle + one.Used + one.Cleaning + one.Connecting
			}
		}
		var host, balance any
		port := 0
		if hosts, turns, err := p.pools.Hosts(name); err == nil {
			host, port, balance = hostList(hosts), hosts[0].Port, balancing(len(hosts), turns)
		}
		dbname := db.DBName
		if dbname == "" {
			dbname = name
		}
		lifetime := cfg.ServerLifetime
		if db.ServerLifetime > 0 {
			lifetime = db.ServerLifetime
		}
		paused, disabled := p.pools.Paused(name)
		rows = append(rows, []any{name, host, port, dbname, text(db.User), either(db.PoolSize, cfg.DefaultPoolSize), either(db.MinPoolSize, cfg.MinPoolSize),
			either(db.ReservePoolSize, cfg.ReservePoolSize), int(lifetime.D().Seconds()), text(db.PoolMode), balance, either(db.MaxDBConnections, cfg.MaxDBConnections), servers,
			either(db.MaxDBClientConnections, cfg.MaxDBClientConnections), clients[name], boolInt(paused), boolInt(disabled)})
	}
	return append(rows, []any{admin.Database, nil, 0, admin.Database, admin.Database, 0, 0, 0, 0, "statement", nil, 0, 0, 0, len(p.operators()), 0, 0})
}

// hostList is hosts as they may be configured; the port is told where it is not that of the first.
func hostList(hosts []pool.Address) string {
	var list []string
	for _, one := range hosts {
		if one.Port == hosts[0].Port {
			list = append(list, one.Host)
		} else {
			list = append(list, one.String())
		}
	}
	return strings.Join(list, ",")
}

// balancing is load_balance_hosts where there are several hosts.
func balancing(hosts int, turns bool) any {
	switch {
	case hosts < 2:
		return nil
	case turns:
		return "round-robin"
	}
	return "disable"
}

// showNames tells what the names of hosts stood for when they were looked up last.
func showNames(p *Pooler) (rows [][]any) {
	ttl := p.now().DNSMaxTTL.D()
	for _, one := range p.pools.Names() {
		left := max(ttl-time.Since(one.Asked), 0)
		rows = append(rows, []any{one.Host, int(left.Seconds()), strings.Join(one.Addresses, ",")})
	}
	return rows
}

func showUsers(p *Pooler) (rows [][]any) {
	cfg := p.now()
	pools, _ := p.pools.Stats()
	names, servers := map[string]bool{}, map[string]int{}
	for name := range cfg.Users {
		names[name] = true
	}
	for _, one := range pools {
		names[one.User] = true
		servers[one.User] += one.Active + one.Idle + one.Used + one.Cleaning + one.Connecting
	}
	p.mu.Lock()
	clients := maps.Clone(p.tallies.users)
	p.mu.Unlock()
	for name := range clients {
		names[name] = true
	}
	number := func(n int) any {
		if n == 0 {
			return nil
		}
		return n
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		user := cfg.Users[name]
		rows = append(rows, []any{name, number(user.PoolSize), number(user.ReservePoolSize), text(user.PoolMode), either(user.MaxUserConnections, cfg.MaxUserConnections), servers[name],
			either(user.MaxUserClientConnections, cfg.MaxUserClientConnections), clients[name]})
	}
	return rows
}

func showPools(p *Pooler) (rows [][]any) {
	cfg := p.now()
	pools, _ := p.pools.Stats()
	for _, one := range pools {
		db, _ := p.pools.Database(one.Database)
		rows = append(rows, []any{one.Database, one.User, max(one.Clients-one.Waiting, 0), one.Waiting, one.Cancels, 0, one.Active, one.Cancels, one.Held, one.Idle, one.Used,
			one.Cleaning - one.Held, one.Connecting, int64(one.MaxWait / time.Second), int64(one.MaxWait % time.Second / time.Microsecond), poolMode(cfg, db, one.User), nil})
	}
	return append(rows, []any{admin.Database, admin.Database, len(p.operators()), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, "statement", nil})
}

func showLists(p *Pooler) [][]any {
	st := p.Stats()
	servers := 0
	for _, one := range st.Pools {
		servers += one.Active + one.Idle + one.Used + one.Cleaning
	}
	return [][]any{
		{"databases", len(databaseNames(p.now(), st.Pools)) + 1}, {"users", len(showUsers(p))}, {"peers", len(p.now().Peers)}, {"pools", len(st.Pools) + 1}, {"peer_pools", len(p.now().Peers)},
		{"free_clients", 0}, {"used_clients", st.Clients + len(p.operators())}, {"login_clients", st.ClientsLogin}, {"free_servers", 0}, {"used_servers", servers},
		{"dns_names", len(p.pools.Names())}, {"dns_zones", 0}, {"dns_queries", 0}, {"dns_pending", 0},
	}
}

func showState(p *Pooler) [][]any {
	active, paused := "yes", "no"
	if all, _ := p.pools.Paused(""); all {
		active, paused = "no", "yes"
	}
	return [][]any{{"active", active}, {"paused", paused}}
}

// showMemory tells what clients, servers and pools take by themselves, and the memory of the whole process.
func showMemory(p *Pooler) [][]any {
	st := p.Stats()
	servers := len(p.pools.Servers())
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	row := func(name string, size uintptr, used int) []any {
		return []any{name, int(size), used, 0, min(int(size)*used, math.MaxInt32)}
	}
	return [][]any{
		row("client_cache", unsafe.Sizeof(client{}), st.Clients), row("server_cache", unsafe.Sizeof(pool.Server{}), servers), row("pool_cache", unsafe.Sizeof(pool.Pool{}), len(st.Pools)),
		{"heap", 1, min(int(memory.HeapInuse), math.MaxInt32), min(int(memory.HeapIdle-memory.HeapReleased), math.MaxInt32), min(int(memory.Sys-memory.HeapReleased), math.MaxInt32)},
	}
}

// totalsRow is what a database has counted, in the order of PgBouncer's columns.
func totalsRow(t pool.Totals) []any {
	return []any{t.Assignments, t.Transactions, t.Queries, t.Received, t.Sent, t.TransactionTime.Microseconds(), t.QueryTime.Microseconds(), t.WaitTime.Microseconds(),
		t.ClientParses, t.ServerParses, t.Binds, t.Logins}
}

// averagesRow is that of the last stats_period: as much per second, but for the times of transactions and queries, which are those of one of them
// (calc_average in PgBouncer's src/stats.c).
func averagesRow(a average) []any {
	return []any{a.perSecond(a.Assignments), a.perSecond(a.Transactions), a.perSecond(a.Queries), a.perSecond(a.Received), a.perSecond(a.Sent),
		each(a.TransactionTime, a.Transactions), each(a.QueryTime, a.Queries), a.perSecond(uint64(a.WaitTime.Microseconds())),
		a.perSecond(a.ClientParses), a.perSecond(a.ServerParses), a.perSecond(a.Binds), a.perSecond(a.Logins)}
}

// statsOf makes a row for each database.
func statsOf(p *Pooler, row func(database string, t pool.Totals) []any) (rows [][]any) {
	for database, t := range p.pools.Totals() {
		rows = append(rows, append([]any{database}, row(database, t)...))
	}
	return rows
}

func showStats(p *Pooler) [][]any {
	return statsOf(p, func(database string, t pool.Totals) []any {
		return append(totalsRow(t), averagesRow(p.averages.of(database))...)
	})
}

func showTotalsOfDatabases(p *Pooler) [][]any {
	return statsOf(p, func(_ string, t pool.Totals) []any { return totalsRow(t) })
}

func showAverages(p *Pooler) [][]any {
	return statsOf(p, func(database string, _ pool.Totals) []any { return averagesRow(p.averages.of(database)) })
}

// totalNames are those of SHOW TOTALS, behind total_ and avg_.
var totalNames = []string{"server_assignment_count", "xact_count", "query_count", "client_bytes", "server_bytes", "xact_time", "query_time", "wait_time",
	"ps_client_parse_count", "ps_server_parse_count", "ps_bind_count", "client_login_count"}

func showTotals(p *Pooler) (rows [][]any) {
	var all pool.Totals
	var recent average
	for database, t := range p.pools.Totals() {
		all = all.Plus(t)
		one := p.averages.of(database)
		recent.Totals, recent.period = recent.Plus(one.Totals), max(recent.period, one.period)
	}
	for i, value := range totalsRow(all) {
		rows = append(rows, []any{"total_" + totalNames[i], value})
	}
	for i, value := range averagesRow(recent) {
		rows = append(rows, []any{"avg_" + totalNames[i], value})
	}
	return rows
}
