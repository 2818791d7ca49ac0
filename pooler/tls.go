package pooler

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"pitr/config"
	"pitr/internal/pgwire"
	"pitr/pooler/auth"
)

// clientTLS is how clients are offered encryption.
type clientTLS struct {
	config      *tls.Config
	binding     []byte         // tls-server-end-point of our certificate; nil if it has none
	authorities *x509.CertPool // who signs the certificates of clients; nil: nobody
}

// alpn is PG_ALPN_PROTOCOL in src/include/libpq/pqcomm.h.
const alpn = "postgresql"

// newClientTLS returns how clients are offered encryption, nil if they are not.
func newClientTLS(cfg config.Pooler) (*clientTLS, error) {
	if cfg.ClientTLSSSLMode == "" || cfg.ClientTLSSSLMode == "disable" {
		return nil, nil
	}
	certificate, err := tls.LoadX509KeyPair(cfg.ClientTLSCertFile, cfg.ClientTLSKeyFile)
	if err != nil {
		return nil, fmt.Errorf("pooler.client_tls_cert_file: %w", err)
	}
	t := &clientTLS{binding: auth.Binding(certificate.Leaf)}
	t.config = &tls.Config{
		Certificates:           []tls.Certificate{certificate},
		NextProtos:             []string{alpn},
		SessionTicketsDisabled: true, // libpq does not resume sessions
		// Small records at the beginning help browsers that show a page before it is complete. A client of a database waits for all.
		DynamicRecordSizingDisabled: true,
	}
	if t.config.MinVersion, t.config.MaxVersion, err = tlsVersions(cfg.ClientTLSProtocols); err != nil {
		return nil, fmt.Errorf("pooler.client_tls_protocols: %w", err)
	}
	if t.config.CipherSuites, err = cipherSuites(cfg.ClientTLSCiphers); err != nil {
		return nil, fmt.Errorf("pooler.client_tls_ciphers: %w", err)
	}
	if cfg.ClientTLSCAFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(cfg.ClientTLSCAFile)
	if err != nil {
		return nil, fmt.Errorf("pooler.client_tls_ca_file: %w", err)
	}
	t.authorities = x509.NewCertPool()
	if !t.authorities.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("pooler.client_tls_ca_file: %s holds no certificate", cfg.ClientTLSCAFile)
	}
	t.config.ClientAuth = tls.RequestClientCert
	if strings.HasPrefix(cfg.ClientTLSSSLMode, "verify-") {
		t.config.ClientAuth, t.config.ClientCAs = tls.RequireAndVerifyClientCert, t.authorities
	}
	return t, nil
}

// tlsProtocols are the words of client_tls_protocols in PgBouncer's manual, in their order.
var tlsProtocols = []string{"tlsv1.0", "tlsv1.1", "tlsv1.2", "tlsv1.3"}

// tlsVersions reads client_tls_protocols.
func tlsVersions(text string) (lowest, highest uint16, err error) {
	switch text {
	case "", "secure":
		text = "tlsv1.2,tlsv1.3"
	case "all", "legacy":
		text = strings.Join(tlsProtocols, ",")
	}
	var wanted [4]bool
	first, last, n := len(tlsProtocols), -1, 0
	for word := range strings.SplitSeq(text, ",") {
		i := slices.Index(tlsProtocols, strings.TrimSpace(word))
		if i < 0 {
			return 0, 0, fmt.Errorf("%q is none of secure, all, %s", word, strings.Join(tlsProtocols, ", "))
		}
		if !wanted[i] {
			n++
		}
		wanted[i] = true
		first, last = min(first, i), max(last, i)
	}
	if n != last-first+1 {
		return 0, 0, fmt.Errorf("%q leaves a version out between others", text)
	}
	return tls.VersionTLS10 + uint16(first), tls.VersionTLS10 + uint16(last), nil
}

// cipherSuites reads client_tls_ciphers: nil is what Go finds safe.
func cipherSuites(text string) ([]uint16, error) {
	switch text {
	case "", "default", "secure", "fast", "normal":
		return nil, nil
	}
	suites := slices.DeleteFunc(append(tls.CipherSuites(), tls.InsecureCipherSuites()...), func(s *tls.CipherSuite) bool {
		return s.SupportedVersions[0] == tls.VersionTLS13 // Go uses all of them
	})
	var ids []uint16
	for word := range strings.FieldsFuncSeq(text, func(c rune) bool { return c == ':' || c == ',' || c == ' ' }) {
		i := slices.IndexFunc(suites, func(s *tls.CipherSuite) bool {
			return word == "all" || word == s.Name || strings.EqualFold(word, openSSLName(s.Name))
		})
		if i < 0 {
			return nil, fmt.Errorf("%q is the name of no cipher suite that is known", word)
		}
		if word == "all" {
			for _, suite := range suites {
				ids = append(ids, suite.ID)
			}
		} else {
			ids = append(ids, suites[i].ID)
		}
	}
	if len(ids) == 0 {
		return nil, errors.New("names no cipher suite")
	}
	return ids, nil
}

// openSSLName makes TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 ECDHE-RSA-AES128-GCM-SHA256, as `openssl ciphers -stdname` lists them.
func openSSLName(name string) string {
	name = strings.TrimPrefix(name, "TLS_")
	name = strings.TrimPrefix(strings.Replace(name, "_WITH_", "_", 1), "RSA_")
	if chacha, found := strings.CutSuffix(name, "_CHACHA20_POLY1305_SHA256"); found {
		name = chacha + "_CHACHA20_POLY1305"
	}
	name = strings.NewReplacer("AES_128_CBC", "AES128", "AES_256_CBC", "AES256", "AES_128", "AES128", "AES_256", "AES256", "3DES_EDE_CBC", "DES_CBC3", "RC4_128", "RC4").Replace(name)
	return strings.ReplaceAll(name, "_", "-")
}

// identify returns the names in the certificate that a client has shown. verified is false if it has shown none that an authority of ours has signed.
func (t *clientTLS) identify(state tls.ConnectionState) (verified bool, commonName, dn string) {
	if t.authorities == nil || len(state.PeerCertificates) == 0 {
		return false, "", ""
	}
	leaf, between := state.PeerCertificates[0], x509.NewCertPool()
	for _, certificate := range state.PeerCertificates[1:] {
		between.AddCert(certificate)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: t.authorities, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil || strings.ContainsRune(leaf.Subject.CommonName, 0) {
		return false, "", ""
	}
	return true, leaf.Subject.CommonName, leaf.Subject.String()
}

// encrypt accepts a client's request for encryption.
func (t *clientTLS) encrypt(conn net.Conn) (net.Conn, error) {
	if _, err := conn.Write([]byte{'S'}); err != nil {
		return nil, err
	}
	return t.handshake(conn)
}

func (t *clientTLS) handshake(conn net.Conn) (*tls.Conn, error) {
	secure := tls.Server(conn, t.config)
	if err := secure.Handshake(); err != nil {
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return secure, nil
}

// encryptDirectly begins TLS with a client that has not asked for it first (sslnegotiation=direct). It has to name the protocol, so
// that nobody can lead it here who wants something else: ProcessSSLStartup in src/backend/tcop/backend_startup.c.
func (g *gate) encryptDirectly(conn net.Conn) (net.Conn, error) {
	if g.tls == nil {
		return nil, pgwire.Fatal("08P01", "invalid length of startup packet") // what it would have been without
	}
	secure, err := g.tls.handshake(conn)
	if err != nil {
		return nil, err
	}
	if secure.ConnectionState().NegotiatedProtocol != alpn {
		return secure, pgwire.Fatal("08P01", "received direct SSL connection request without ALPN protocol negotiation extension")
	}
	return secure, nil
}
