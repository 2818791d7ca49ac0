//go:build !linux

package pooler

import "net"

// peerOf knows nobody: see peer_linux.go.
func peerOf(net.Conn) string { return "" }
