package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
)

// validateLogin checks what pooler.auth and the settings of TLS demand of each other.
func validateLogin(cfg Pooler) []Problem {
	var problems []Problem
	check := func(ok bool, key, text string) {
		if !ok {
			problems = append(problems, Problem{Key: key, Text: text})
		}
	}
	mode := cfg.ClientTLSSSLMode
	encrypts := mode != "" && mode != "disable"
	verifies := mode == "verify-ca" || mode == "verify-full"
	check(!encrypts || cfg.ClientTLSCertFile != "", "pooler.client_tls_sslmode", "needs pooler.client_tls_cert_file")
	check(!encrypts || cfg.ClientTLSKeyFile != "", "pooler.client_tls_sslmode", "needs pooler.client_tls_key_file")
	check(!verifies || cfg.ClientTLSCAFile != "", "pooler.client_tls_sslmode", "needs pooler.client_tls_ca_file")
	files := cfg.ServerTLSCAFile + cfg.ServerTLSCertFile + cfg.ServerTLSKeyFile
	check(files == "" || cfg.ServerTLSSSLMode != "", "pooler.server_tls_sslmode", "must be set with any of the other settings pooler.server_tls_*")
	check((cfg.ServerTLSCertFile == "") == (cfg.ServerTLSKeyFile == ""), "pooler.server_tls_cert_file", "needs pooler.server_tls_key_file, and that needs it")
	check(len(cfg.UnixSocketDir) <= socketPathMax-len("/.s.PGSQL.65535"), "pooler.unix_socket_dir", "is too long for the path of a Unix socket")
	_, err := strconv.ParseUint(cfg.UnixSocketMode, 8, 9)
	check(err == nil, "pooler.unix_socket_mode", fmt.Sprintf("%q is no file mode in octal digits", cfg.UnixSocketMode))
	check(cfg.TakeoverSocket == "" || filepath.IsAbs(cfg.TakeoverSocket) && len(cfg.TakeoverSocket) <= socketPathMax, "pooler.takeover_socket", fmt.Sprintf("must be an absolute path of at most %d bytes", socketPathMax))
	check(len(cfg.Peers) == 0 || cfg.PeerID > 0, "pooler.peers", "needs pooler.peer_id, which is part of the cancel keys")
	for name, peer := range cfg.Peers {
		id, err := strconv.ParseUint(name, 10, 14) // 16383 is the largest
		check(err == nil && id > 0 && strconv.FormatUint(id, 10) == name, "pooler.peers."+name, fmt.Sprintf("%q is no peer_id, a number from 1 to 16383", name))
		check(peer.Host != "", "pooler.peers."+name+".host", "is needed")
	}
	for _, text := range cfg.ProxyProtocolFrom {
		_, notNetwork := netip.ParsePrefix(text)
		_, notAddress := netip.ParseAddr(text)
		check(notNetwork == nil || notAddress == nil, "pooler.proxy_protocol_from", fmt.Sprintf("%q is neither an address nor a network", text))
	}
	switch cfg.Auth.Type {
	case "cert":
		check(verifies, "pooler.auth.type", "is cert, which needs pooler.client_tls_sslmode verify-full")
	case "peer":
		check(cfg.UnixSocketDir != "", "pooler.auth.type", "is peer, which needs pooler.unix_socket_dir")
	case "hba":
		check(cfg.Auth.HBAFile != "", "pooler.auth.type", "is hba, which needs pooler.auth.hba_file")
	case "any":
		check(len(cfg.Databases) > 0, "pooler.auth.type", "is any, which needs a user in each entry of pooler.databases")
		for name, db := range cfg.Databases {
			check(db.User != "", "pooler.databases."+name+".user", "is needed, since pooler.auth.type is any")
		}
	}
	check(strings.Contains(cfg.Auth.Query, "$1"), "pooler.auth.query", "does not use $1, the name of the user")
	for name, db := range cfg.Databases {
		check(db.AuthQuery == "" || strings.Contains(db.AuthQuery, "$1"), "pooler.databases."+name+".auth_query", "does not use $1, the name of the user")
		check(isConfigured(cfg, db.AuthDBName), "pooler.databases."+name+".auth_dbname", fmt.Sprintf("%q is no entry of pooler.databases", db.AuthDBName))
	}
	check(isConfigured(cfg, cfg.Auth.DBName), "pooler.auth.dbname", fmt.Sprintf("%q is no entry of pooler.databases", cfg.Auth.DBName))
	return problems
}

// isConfigured reports whether a database may be named: it has an entry, or every name is good.
func isConfigured(cfg Pooler, database string) bool {
	if database == "" || len(cfg.Databases) == 0 {
		return true
	}
	_, found := cfg.Databases[database]
	_, rest := cfg.Databases["*"]
	return found || rest
}
