package pooler

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"pitr/internal/pgwire"
	"pitr/pooler/loop"
)

// proxySignature begins a header of the PROXY protocol, version 2: section 2.2 of HAProxy's doc/proxy-protocol.txt.
var proxySignature = []byte("\r\n\r\n\x00\r\nQUIT\n")

const (
	proxyHeaderLen = 16
	// proxyLenMax bounds what follows a header: the longest address has 216 bytes, the rest are notes that nobody reads here.
	proxyLenMax = 4096

	proxyLocal  = 0x20 // version 2, LOCAL: the proxy speaks for itself
	proxyRemote = 0x21 // version 2, PROXY
	proxyTCP4   = 0x11
	proxyTCP6   = 0x21
)

// proxied is a connection that has come through a proxy, which has told from whom.
type proxied struct {
	*net.TCPConn
	remote *net.TCPAddr
}

// RemoteAddr implements net.Conn.
func (p proxied) RemoteAddr() net.Addr { return p.remote }

// proxies reads pooler.proxy_protocol_from.
func proxies(texts []string) ([]netip.Prefix, error) {
	var list []netip.Prefix
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			address, failed := netip.ParseAddr(text)
			if failed != nil {
				return nil, fmt.Errorf("pooler.proxy_protocol_from: %q is neither an address nor a network", text)
			}
			prefix = netip.PrefixFrom(address, address.BitLen())
		}
		list = append(list, prefix)
	}
	return list, nil
}

// isProxy reports whether a connection comes from a proxy that tells from whom it has it.
func (p *Pooler) isProxy(conn net.Conn) bool {
	address := addressOf(conn)
	for _, prefix := range p.gate.Load().proxies {
		if prefix.Contains(address) {
			return true
		}
	}
	return false
}

// countedAddress is the address that a connection counts for in max_login_conn_per_address: none, if it is not known yet.
func (p *Pooler) countedAddress(conn net.Conn) netip.Addr {
	if p.isProxy(conn) {
		return netip.Addr{}
	}
	return addressOf(conn)
}

// readProxy reads the header of a connection that comes from a proxy, and counts it for the address that is told. Others are left as they are.
func (p *Pooler) readProxy(raw net.Conn) (net.Conn, netip.Addr, error) {
	if !p.isProxy(raw) {
		return loop.NewStream(raw), addressOf(raw), nil
	}
	if err := raw.SetDeadline(time.Now().Add(p.cfg.ClientLoginTimeout.D())); err != nil {
		return raw, netip.Addr{}, err
	}
	remote, err := proxyHeader(raw)
	if err != nil {
		return raw, netip.Addr{}, err
	}
	conn := raw
	if remote.IsValid() {
		conn = proxied{raw.(*net.TCPConn), net.TCPAddrFromAddrPort(remote)}
	}
	address := addressOf(conn)
	if !p.entrance.count(address) {
		return raw, netip.Addr{}, p.tooMany()
	}
	return loop.NewStream(conn), address, nil
}

// proxyHeader reads a header and nothing behind it. The address is not valid if the proxy speaks for itself, or does not know.
func proxyHeader(in io.Reader) (remote netip.AddrPort, err error) {
	var head [proxyHeaderLen]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return remote, err
	}
	command, family, length := head[12], head[13], int(binary.BigEndian.Uint16(head[14:]))
	if !bytes.Equal(head[:12], proxySignature) || command != proxyLocal && command != proxyRemote || length > proxyLenMax {
		return remote, pgwire.Fatal("08P01", "a header of the PROXY protocol, version 2, is expected of this address (pooler.proxy_protocol_from)")
	}
	var body [proxyLenMax]byte
	if _, err := io.ReadFull(in, body[:length]); err != nil {
		return remote, err
	}
	switch {
	case command == proxyRemote && family == proxyTCP4 && length >= 12:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(body[:4])), binary.BigEndian.Uint16(body[8:])), nil
	case command == proxyRemote && family == proxyTCP6 && length >= 36:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(body[:16])), binary.BigEndian.Uint16(body[32:])), nil
	case command == proxyRemote && (family == proxyTCP4 || family == proxyTCP6):
		return remote, pgwire.Fatal("08P01", "the header of the PROXY protocol is too short for its address")
	}
	return remote, nil
}
