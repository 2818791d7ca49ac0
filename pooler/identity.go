package pooler

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"pitr/internal/pgwire"
)

// identity is who a client is, and where. It does not change.
type identity struct {
	database, user string
	remote, local  net.Addr
	tls            string // version and cipher; empty without
}

func identityOf(conn net.Conn, ask request) *identity {
	who := &identity{database: ask.database, user: ask.user, remote: conn.RemoteAddr(), local: conn.LocalAddr()}
	if secure, encrypted := conn.(*tls.Conn); encrypted {
		state := secure.ConnectionState()
		who.tls = strings.Replace(tls.VersionName(state.Version), " ", "v", 1) + "/" + tls.CipherSuiteName(state.CipherSuite) // TLSv1.3/…, as PgBouncer writes it
	}
	return who
}

// tallies count clients. Pooler.mu guards them.
type tallies struct {
	databases, users map[string]int
}

// enroll counts a client that has shown who it is in the limits of its database and of its user.
func (p *Pooler) enroll(c *client, conn net.Conn, ask request) error {
	who := identityOf(conn, ask)
	cfg := p.now()
	db, _ := p.pools.Database(ask.database)
	perDatabase, perUser := cfg.MaxDBClientConnections, cfg.MaxUserClientConnections
	if db.MaxDBClientConnections > 0 {
		perDatabase = db.MaxDBClientConnections
	}
	if own := cfg.Users[ask.user].MaxUserClientConnections; own > 0 {
		perUser = own
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if perDatabase > 0 && p.tallies.databases[who.database] >= perDatabase {
		p.counters.databaseLimitHits.Add(1)
		return pgwire.Fatal("53300", "client connections exceeded (max_db_client_connections)")
	}
	if perUser > 0 && p.tallies.users[who.user] >= perUser {
		p.counters.userLimitHits.Add(1)
		return pgwire.Fatal("53300", "client connections exceeded (max_user_client_connections)")
	}
	p.tallies.databases[who.database]++
	p.tallies.users[who.user]++
	c.who = who
	return nil
}

// leave ends what enroll has begun. The caller holds mu.
func (p *Pooler) leave(c *client) {
	if c.who == nil {
		return
	}
	lessen(p.tallies.databases, c.who.database)
	lessen(p.tallies.users, c.who.user)
}

func lessen(counts map[string]int, name string) {
	if counts[name]--; counts[name] == 0 {
		delete(counts, name)
	}
}

// closing tells the log that a client goes, in PgBouncer's words.
func (c *client) closing(level slog.Level) {
	log := c.pooler.log
	if c.entry != nil || !log.Enabled(context.Background(), level) {
		return
	}
	age := int(time.Since(c.arrived).Seconds())
	log.Log(context.Background(), level, fmt.Sprintf("closing because: %s (age=%ds)", c.because, age),
		"database", c.who.database, "user", c.who.user, "client", c.who.remote.String(), "id", c.process)
}
