package replication

import (
	"syscall"
	"unsafe"
)

// unreadBytes is what the kernel holds for a socket: SIOCINQ, tcp(7) and unix(7).
func unreadBytes(fd int) (int, error) {
	var n int32
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.TIOCINQ, uintptr(unsafe.Pointer(&n))); errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// setLowWater is how much has to be there before a socket counts as readable: SO_RCVLOWAT, socket(7).
func setLowWater(fd, n int) error {
	return syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, n)
}
