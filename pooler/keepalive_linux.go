package pooler

import (
	"errors"
	"syscall"
)

// The pauses of the kernel's probes, in seconds, and how many may go unanswered; those of Go's package net but for their number.
const (
	keepAliveIdle     = 15
	keepAliveInterval = 15
	keepAliveCount    = 4
)

func setKeepAlive(fd int) error {
	return errors.Join(
		syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1),
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, keepAliveIdle),
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, keepAliveInterval),
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, keepAliveCount),
	)
}
