package pooler

import (
	"crypto/tls"
	"net"
	"os/user"
	"strconv"
	"syscall"

	"pitr/pooler/loop"
)

// peerOf returns the name of the system's user at the other end of a Unix socket, empty if that is not known: SO_PEERCRED in unix(7).
func peerOf(conn net.Conn) string {
	if secure, encrypted := conn.(*tls.Conn); encrypted {
		conn = secure.NetConn()
	}
	if stream, wrapped := conn.(*loop.Stream); wrapped {
		conn = stream.Conn
	}
	socket, isUnix := conn.(*net.UnixConn)
	if !isUnix {
		return ""
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return ""
	}
	var peer *syscall.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		peer, failed = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err != nil || failed != nil {
		return ""
	}
	who, err := user.LookupId(strconv.FormatUint(uint64(peer.Uid), 10))
	if err != nil {
		return ""
	}
	return who.Username
}
