//go:build !linux

package loop

import (
	"errors"
	"syscall"
)

type readiness uint32

const (
	readable readiness = 1 << iota
	writable
	hungUp
)

// poller does not exist where there is no epoll.
type poller struct{}

func newPoller() (poller, error) { return poller{}, errors.New("the pooler needs Linux") }

func (*poller) close()                               {}
func (*poller) wake()                                {}
func (*poller) add(int32, uint32) error              { return syscall.ENOSYS }
func (*poller) remove(int32) error                   { return syscall.ENOSYS }
func (*poller) wait(int) (int, error)                { return 0, syscall.ENOSYS }
func (*poller) event(int) (int32, uint32, readiness) { return 0, 0, 0 }
func receive(int32, []byte) (int, syscall.Errno)     { return 0, syscall.ENOSYS }
func peek(int32) (int, syscall.Errno)                { return 0, syscall.ENOSYS }
func transmit(int32, []byte) (int, syscall.Errno)    { return 0, syscall.ENOSYS }
