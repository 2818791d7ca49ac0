package takeover

import (
	"errors"
	"net"
	"syscall"
)

// peer returns the user and the process at the other end: SO_PEERCRED in unix(7).
func peer(conn *net.UnixConn) (uid, pid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var found *syscall.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		found, failed = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err = errors.Join(err, failed); err != nil {
		return 0, 0, err
	}
	return int(found.Uid), int(found.Pid), nil
}
