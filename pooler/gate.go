package pooler

import (
	"net"
	"net/netip"

	"pitr/config"
	"pitr/pooler/auth"
)

// gate is all that decides who may come in: users, rules, certificates. A login holds on to the one that it began with.
type gate struct {
	cfg     config.Pooler
	users   *auth.Users
	tls     *clientTLS // nil without
	proxies []netip.Prefix
}

// newGate reads the files that the settings name: users, HBA rules, ident maps and certificates. Who is in already stays when another gate takes its place, and so does the
// encryption of its connection.
func (p *Pooler) newGate(cfg config.Pooler) (*gate, error) {
	g := &gate{cfg: cfg}
	query := auth.Query(p.askSecret)
	if !asksServers(cfg) {
		query = nil
	}
	var err error
	if g.users, err = auth.Load(cfg.Auth, cfg.Users, query); err != nil {
		return nil, err
	}
	if g.tls, err = newClientTLS(cfg); err != nil {
		return nil, err
	}
	if g.proxies, err = proxies(cfg.ProxyProtocolFrom); err != nil {
		return nil, err
	}
	return g, nil
}

// mustEncrypt reports whether a client is refused that has not encrypted. As with PgBouncer, one over a Unix socket is not.
func (g *gate) mustEncrypt(conn net.Conn) bool {
	switch g.cfg.ClientTLSSSLMode {
	case "require", "verify-ca", "verify-full":
		return addressOf(conn).IsValid()
	}
	return false
}
