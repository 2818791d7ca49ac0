package pooler

import (
	"errors"
	"syscall"
	"time"

	"pitr/config"
)

// tcpUserTimeout is TCP_USER_TIMEOUT of linux/tcp.h, which package syscall lacks.
const tcpUserTimeout = 18

// tune sets the options of a TCP socket that the settings name; what is zero stays as the kernel has it.
func tune(fd int, cfg config.Pooler) error {
	var errs []error
	set := func(level, option, value int) {
		if value > 0 {
			errs = append(errs, syscall.SetsockoptInt(fd, level, option, value))
		}
	}
	if cfg.TCPKeepalive == "on" {
		set(syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1)
		set(syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, wholeSeconds(cfg.TCPKeepidle))
		set(syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, wholeSeconds(cfg.TCPKeepintvl))
		set(syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, cfg.TCPKeepcnt)
	}
	set(syscall.IPPROTO_TCP, tcpUserTimeout, int(cfg.TCPUserTimeout.D().Milliseconds()))
	return errors.Join(errs...)
}

// wholeSeconds rounds up: the kernel knows no less than a second, and none is to become zero.
func wholeSeconds(d config.Duration) int { return int((d.D() + time.Second - 1) / time.Second) }
