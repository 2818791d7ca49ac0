package pooler

import (
	"crypto/tls"
	"fmt"
	"net"

	"pitr/config"
)

// serverTLS returns how clients are offered encryption, nil if they are not.
func serverTLS(cfg config.Pooler) (*tls.Config, error) {
	if cfg.ClientTLSSSLMode == "" || cfg.ClientTLSSSLMode == "disable" {
		return nil, nil
	}
	certificate, err := tls.LoadX509KeyPair(cfg.ClientTLSCertFile, cfg.ClientTLSKeyFile)
	if err != nil {
		return nil, fmt.Errorf("pooler.client_tls_cert_file: %w", err)
	}
	return &tls.Config{
		Certificates:           []tls.Certificate{certificate},
		MinVersion:             tls.VersionTLS12,
		SessionTicketsDisabled: true, // libpq does not resume sessions
		// Small records at the beginning help browsers that show a page before it is complete. A client of a database waits for all.
		DynamicRecordSizingDisabled: true,
	}, nil
}

// encrypt accepts a client's request for encryption.
func (p *Pooler) encrypt(conn net.Conn) (net.Conn, error) {
	if _, err := conn.Write([]byte{'S'}); err != nil {
		return nil, err
	}
	secure := tls.Server(conn, p.tls)
	if err := secure.Handshake(); err != nil {
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return secure, nil
}
