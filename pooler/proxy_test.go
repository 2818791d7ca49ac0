package pooler

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/config"
)

// header is what a proxy sends first.
func header(command, family byte, body []byte) []byte {
	out := append(bytes.Clone(proxySignature), command, family)
	return append(binary.BigEndian.AppendUint16(out, uint16(len(body))), body...)
}

// tells is the address part of a header, with notes behind it.
func tells(from string) []byte {
	address := netip.MustParseAddr(from)
	body := append(address.AsSlice(), address.AsSlice()...)
	return append(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(body, 4000), 5432), "notes"...)
}

func TestProxyTellsWhoItsClientsAre(t *testing.T) {
	pg := server(t)
	path := filepath.Join(t.TempDir(), "hba")
	if err := os.WriteFile(path, []byte("host all all 192.0.2.0/24 trust\nhost all all 2001:db8::/32 trust\nhost all all all reject\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := start(t, pg, func(cfg *config.Config) {
		cfg.Pooler.ProxyProtocolFrom, cfg.Pooler.MaxLoginConnPerAddress = []string{"127.0.0.0/8"}, 1
		cfg.Pooler.ClientLoginTimeout = config.Duration(2e9)
		cfg.Pooler.Auth = config.Auth{Type: "hba", HBAFile: path}
	})
	session := encode(&pgproto3.StartupMessage{ProtocolVersion: 196608, Parameters: map[string]string{"user": "postgres"}})
	try := func(want string, packets ...[]byte) {
		t.Helper()
		w := dial(t, r)
		_, _ = w.conn.Write(append(bytes.Join(packets, nil), session...))
		if want == "" {
			w.send(&pgQuery{String: "select 'in'"}, &pgproto3.Terminate{})
			want = "in"
		}
		if got := w.rest(); !strings.Contains(got, want) {
			t.Errorf("%q: got %q, want %q", packets, got, want)
		}
	}
	try("", header(proxyRemote, proxyTCP4, tells("192.0.2.7")))
	try("", header(proxyRemote, proxyTCP6, tells("2001:db8::7")))
	try("", header(proxyRemote, proxyTCP6, tells("::ffff:192.0.2.7")))
	try("rejected by the pooler's rules", header(proxyRemote, proxyTCP4, tells("198.51.100.7")))
	try("rejected by the pooler's rules", header(proxyLocal, 0, nil))
	try("rejected by the pooler's rules", header(proxyRemote, 0, nil))
	try("rejected by the pooler's rules", header(proxyRemote, 0x31, make([]byte, 216)))
	try("is expected of this address")
	try("is expected of this address", []byte("PROXY TCP4 192.0.2.7 192.0.2.7 1 2\r\n"))
	try("is expected of this address", header(0x11, proxyTCP4, tells("192.0.2.7")))
	try("is expected of this address", header(0x2f, proxyTCP4, tells("192.0.2.7")))
	try("is expected of this address", header(proxyRemote, proxyTCP4, make([]byte, proxyLenMax+1)))
	try("too short for its address", header(proxyRemote, proxyTCP4, make([]byte, 11)))
	try("too short for its address", header(proxyRemote, proxyTCP6, make([]byte, 35)))
	try("invalid length of startup packet", header(proxyRemote, proxyTCP4, tells("192.0.2.7")), header(proxyRemote, proxyTCP4, tells("192.0.2.7")))
	silent := dial(t, r)
	_, _ = silent.conn.Write(header(proxyRemote, proxyTCP4, tells("192.0.2.7"))[:20])
	if got := silent.rest(); !strings.Contains(got, "client_login_timeout") {
		t.Errorf("half a header got %q", got)
	}
	slow, other := dial(t, r), dial(t, r)
	_, _ = slow.conn.Write(header(proxyRemote, proxyTCP4, tells("192.0.2.8")))
	eventually(t, "the slow one is counted", func() bool {
		r.entrance.mu.Lock()
		defer r.entrance.mu.Unlock()
		return r.entrance.from[netip.MustParseAddr("192.0.2.8")] == 1
	})
	_, _ = other.conn.Write(header(proxyRemote, proxyTCP4, tells("192.0.2.8")))
	if got := other.rest(); !strings.Contains(got, "max_login_conn_per_address") {
		t.Errorf("a second one of that address got %q", got)
	}
	slow.conn.Close()
	eventually(t, "nobody is counted", func() bool {
		r.entrance.mu.Lock()
		defer r.entrance.mu.Unlock()
		return len(r.entrance.from) == 0
	})
	plain := start(t, pg, nil)
	w := dial(t, plain)
	_, _ = w.conn.Write(append(header(proxyRemote, proxyTCP4, tells("192.0.2.7")), session...))
	if got := w.rest(); !strings.Contains(got, "invalid length of startup packet") {
		t.Errorf("a header that nobody expects got %q", got)
	}
}

func FuzzProxyHeader(f *testing.F) {
	f.Add(header(proxyRemote, proxyTCP4, tells("192.0.2.7")))   // a client
	f.Add(header(proxyRemote, proxyTCP6, tells("2001:db8::7"))) // one with a longer address
	f.Add(header(proxyLocal, 0, nil))                           // the proxy itself
	f.Add([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff"))     // more than there is
	f.Fuzz(func(t *testing.T, text []byte) {
		in := bytes.NewReader(text)
		remote, err := proxyHeader(in)
		if used := len(text) - in.Len(); used > proxyHeaderLen+proxyLenMax {
			t.Errorf("%d bytes were read", used)
		}
		if err != nil && remote.IsValid() {
			t.Errorf("an address and an error: %v, %v", remote, err)
		}
	})
}
