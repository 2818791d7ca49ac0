package config

import (
	"strings"
	"testing"
)

func TestLoginSettingsThatContradictEachOther(t *testing.T) {
	check := func(text, want string) {
		t.Helper()
		_, err := Parse("pitr.yaml", []byte("pooler:\n  "+strings.ReplaceAll(text, "; ", "\n  ")))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", text, err)
		}
	}
	const pair = "client_tls_cert_file: c; client_tls_key_file: k; "
	check("client_tls_sslmode: allow; "+pair+"client_tls_protocols: secure", "")
	check("client_tls_sslmode: verify-full; "+pair, "needs pooler.client_tls_ca_file")
	check("client_tls_sslmode: verify-ca; "+pair+"client_tls_ca_file: a", "")
	check("client_tls_sslmode: always", "is none of")
	check("server_tls_ca_file: a", "pooler.server_tls_sslmode: must be set")
	check("server_tls_sslmode: require; server_tls_cert_file: c", "needs pooler.server_tls_key_file")
	check("unix_socket_dir: "+strings.Repeat("d", 100), "too long")
	check("unix_socket_mode: 0778", "is no file mode")
	check("unix_socket_mode: 0700", "")
	check("proxy_protocol_from: [10.0.0.1, '2001:db8::/32', proxy]", "\"proxy\" is neither")
	check("proxy_protocol_from: [10.0.0.1, '2001:db8::/32']", "")
	check("auth: {type: cert}", "needs pooler.client_tls_sslmode verify-full")
	check("peers: {1: {host: h}}", "needs pooler.peer_id")
	check("peer_id: 1; peers: {0: {host: h}}", `"0" is no peer_id`)
	check("peer_id: 1; peers: {16384: {host: h}}", `"16384" is no peer_id`)
	check("peer_id: 1; peers: {x: {host: h}}", `"x" is no peer_id`)
	check("peer_id: 1; peers: {2: {}}", "pooler.peers.2.host: is needed")
	check("peer_id: 16384", "pooler.peer_id")
	check("takeover_socket: relative/path", "must be an absolute path")
	check("auth: {type: peer}", "needs pooler.unix_socket_dir")
	check("auth: {type: hba}", "needs pooler.auth.hba_file")
	check("auth: {type: ldap}", "is none of")
	check("auth: {type: any}", "needs a user in each entry")
	check("auth: {type: any}; databases: {a: {user: u}, b: {}}", "pooler.databases.b.user: is needed")
	check("auth: {type: any}; databases: {a: {user: u}}", "")
	check("auth: {query: select 1}", "does not use $1")
	check("databases: {a: {auth_query: select 1}}", "pooler.databases.a.auth_query: does not use $1")
	check("auth: {dbname: b}; databases: {a: {}}", `"b" is no entry of pooler.databases`)
	check("auth: {dbname: b}; databases: {a: {}, '*': {}}", "")
	check("databases: {a: {auth_dbname: b}}", `"b" is no entry of pooler.databases`)
	check("users: {u: {password: md5d41d8cd98f00b204e9800998ecf8427e}}", "")
}
