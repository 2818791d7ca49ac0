package pgwire

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// StartupLenMax is MAX_STARTUP_PACKET_LENGTH in src/include/libpq/pqcomm.h, the largest first packet that a server reads.
const StartupLenMax = 10_000

// startupLenMin is sizeof(ProtocolVersion): ProcessStartupPacket in src/backend/postmaster/postmaster.c refuses less. The length
// word itself comes on top.
const startupLenMin = 4 + 4

// Codes in the place of a protocol version: src/include/libpq/pqcomm.h.
const (
	cancelRequestCode = 1234<<16 | 5678 // CANCEL_REQUEST_CODE
	negotiateSSLCode  = 1234<<16 | 5679 // NEGOTIATE_SSL_CODE
	negotiateGSSCode  = 1234<<16 | 5680 // NEGOTIATE_GSS_CODE
)

// PG_PROTOCOL(3, 0), and PG_PROTOCOL_LATEST of PostgreSQL 18, src/include/libpq/pqcomm.h. They differ in the length of cancel keys; 3.1 was never used.
const (
	Version30 = 3 << 16
	Version32 = 3<<16 | 2
)

// cancelKeyLenMax is MAX_CANCEL_KEY_LENGTH in src/include/libpq/pqcomm.h (PostgreSQL 18); before it was always four.
const cancelKeyLenMax = 256

// StartupKind says what a client's first packet asks for.
type StartupKind uint8

// What a client may send first.
const (
	StartupSession StartupKind = iota + 1
	StartupSSL
	StartupGSS
	StartupCancel
)

// Param is one run-time parameter with its value.
type Param struct{ Name, Value string }

// Startup is a decoded first packet.
type Startup struct {
	Kind    StartupKind
	Version uint32  // StartupSession: the requested protocol version
	Params  []Param // StartupSession: in the order in which they came, "user" and "database" included
	Process uint32  // StartupCancel: the process id of the connection to cancel
	Secret  []byte  // StartupCancel: its secret key; valid as long as the packet
}

// StartupLen returns the length of the packet that begins with these four bytes, the four included. It is at most StartupLenMax,
// so that the caller may allocate it.
func StartupLen(head [4]byte) (int, error) {
	length := binary.BigEndian.Uint32(head[:])
	if length < startupLenMin || length > StartupLenMax {
		return 0, &ProtocolError{fmt.Sprintf("invalid length of startup packet: %d", length)}
	}
	return int(length), nil
}

// ParseStartup decodes a whole first packet, as ProcessStartupPacket in src/backend/postmaster/postmaster.c does.
func ParseStartup(packet []byte) (Startup, error) {
	if len(packet) < startupLenMin {
		return Startup{}, &ProtocolError{"incomplete startup packet"}
	}
	code, rest := binary.BigEndian.Uint32(packet[4:]), packet[8:]
	switch code {
	case negotiateSSLCode:
		return Startup{Kind: StartupSSL}, exact(rest, "SSLRequest")
	case negotiateGSSCode:
		return Startup{Kind: StartupGSS}, exact(rest, "GSSENCRequest")
	case cancelRequestCode:
		if len(rest) < 4+1 || len(rest) > 4+cancelKeyLenMax {
			return Startup{}, &ProtocolError{"invalid length of query cancel packet"}
		}
		return Startup{Kind: StartupCancel, Process: binary.BigEndian.Uint32(rest), Secret: rest[4:]}, nil
	}
	if code>>16 != Version30>>16 {
		return Startup{}, &ProtocolError{fmt.Sprintf("unsupported frontend protocol %d.%d: server supports 3.0 to 3.2", code>>16, code&0xffff)}
	}
	params, err := startupParams(rest)
	return Startup{Kind: StartupSession, Version: code, Params: params}, err
}

func exact(rest []byte, what string) error {
	if len(rest) != 0 {
		return &ProtocolError{"invalid length of " + what}
	}
	return nil
}

func startupParams(rest []byte) ([]Param, error) {
	errLayout := &ProtocolError{"invalid startup packet layout: expected terminator as last byte"}
	var params []Param
	for {
		name, after, found := bytes.Cut(rest, []byte{0})
		if !found {
			return nil, errLayout
		}
		if len(name) == 0 {
			if len(after) != 0 {
				return nil, errLayout
			}
			return params, nil
		}
		value, after, found := bytes.Cut(after, []byte{0})
		if !found {
			return nil, errLayout
		}
		params, rest = append(params, Param{Name: string(name), Value: string(value)}), after
	}
}
