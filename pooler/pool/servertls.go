package pool

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"pitr/config"
)

// ServerTLS is how connections to Postgres are encrypted, where that is not left to postgres.dsn.
type ServerTLS struct{ mode, ca, cert, key string }

// encryptionOf returns what pooler.server_tls_* say.
func encryptionOf(cfg config.Pooler) ServerTLS {
	return ServerTLS{cfg.ServerTLSSSLMode, cfg.ServerTLSCAFile, cfg.ServerTLSCertFile, cfg.ServerTLSKeyFile}
}

// apply replaces what the DSN says about encryption, for each of its hosts.
func (e ServerTLS) apply(cfg *pgconn.Config) error {
	if e.mode == "" {
		return nil
	}
	type place struct{ host, port string }
	places := []place{{cfg.Host, strconv.Itoa(int(cfg.Port))}}
	for _, fallback := range cfg.Fallbacks {
		next := place{fallback.Host, strconv.Itoa(int(fallback.Port))}
		if next != places[len(places)-1] {
			places = append(places, next)
		}
	}
	hosts, ports := make([]string, len(places)), make([]string, len(places))
	for i, one := range places {
		hosts[i], ports[i] = one.host, one.port
	}
	var dsn strings.Builder
	for _, word := range [][2]string{
		{"host", strings.Join(hosts, ",")}, {"port", strings.Join(ports, ",")}, {"sslmode", e.mode}, {"sslrootcert", e.ca}, {"sslcert", e.cert}, {"sslkey", e.key}, {"sslnegotiation", cfg.SSLNegotiation},
	} {
		if word[1] != "" {
			value := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(word[1])
			fmt.Fprintf(&dsn, "%s='%s' ", word[0], value)
		}
	}
	parsed, err := pgconn.ParseConfig(dsn.String())
	if err != nil {
		return fmt.Errorf("pooler.server_tls_sslmode: %w", err)
	}
	cfg.TLSConfig, cfg.Fallbacks = parsed.TLSConfig, parsed.Fallbacks
	return nil
}

// CheckEncryption reports whether Postgres can be reached as pooler.server_tls_* say: whether the files can be read.
func CheckEncryption(cfg config.Pooler) error {
	return encryptionOf(cfg).apply(&pgconn.Config{Host: net.IPv4(127, 0, 0, 1).String(), Port: 5432})
}
