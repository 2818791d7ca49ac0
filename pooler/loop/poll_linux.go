package loop

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"
)

// readiness is what a poller says of a socket.
type readiness uint32

const (
	readable readiness = syscall.EPOLLIN
	writable readiness = syscall.EPOLLOUT
	hungUp   readiness = syscall.EPOLLRDHUP | syscall.EPOLLHUP | syscall.EPOLLERR
)

// edgeTriggered is EPOLLET, whose sign differs between the constants of package syscall.
const edgeTriggered = 1 << 31

// batchLen is how many events are fetched at once.
const batchLen = 256

// poller is an epoll set, and an eventfd that ends a wait.
type poller struct {
	fd     int
	waker  int
	events []syscall.EpollEvent
}

func newPoller() (poller, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return poller{}, fmt.Errorf("epoll_create1: %w", err)
	}
	waker, _, errno := syscall.Syscall(syscall.SYS_EVENTFD2, 0, syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if errno != 0 {
		syscall.Close(fd)
		return poller{}, fmt.Errorf("eventfd2: %w", errno)
	}
	p := poller{fd: fd, waker: int(waker), events: make([]syscall.EpollEvent, batchLen)}
	wake := syscall.EpollEvent{Events: syscall.EPOLLIN | edgeTriggered, Fd: int32(waker)}
	if err := syscall.EpollCtl(fd, syscall.EPOLL_CTL_ADD, p.waker, &wake); err != nil {
		p.close()
		return poller{}, fmt.Errorf("epoll_ctl: %w", err)
	}
	return p, nil
}

func (p *poller) close() {
	syscall.Close(p.fd)
	syscall.Close(p.waker)
}

// wake ends the present or the next wait. Its counter cannot overflow, so that the edge comes each time.
func (p *poller) wake() {
	one := [8]byte{1}
	_, _ = syscall.Write(p.waker, one[:]) // an eventfd takes it, or is about to be closed
}

// add watches a socket for all edges there are; it need never be changed.
func (p *poller) add(fd int32, gen uint32) error {
	ev := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLOUT | syscall.EPOLLRDHUP | edgeTriggered, Fd: fd, Pad: int32(gen)}
	return syscall.EpollCtl(p.fd, syscall.EPOLL_CTL_ADD, int(fd), &ev)
}

func (p *poller) remove(fd int32) error {
	return syscall.EpollCtl(p.fd, syscall.EPOLL_CTL_DEL, int(fd), &syscall.EpollEvent{})
}

// patienceRaw is how long a wait keeps the scheduler's P, in milliseconds. A wait that gives it up makes the scheduler's monitor take it
// away every time, and look for more to take away every 20 µs from then on, which costs more than the wait itself (retake and sysmon
// in src/runtime/proc.go). Whoever wants to stop the world interrupts the wait with a signal. An idle loop gives it up.
const patienceRaw = 5

// wait returns how many events there are.
func (p *poller) wait(milliseconds int) (int, error) {
	list := uintptr(unsafe.Pointer(&p.events[0]))
	first := milliseconds
	if first < 0 || first > patienceRaw {
		first = patienceRaw
	}
	n, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(p.fd), list, batchLen, uintptr(first), 0, 0)
	if errno == 0 && n == 0 && first != milliseconds {
		n, _, errno = syscall.Syscall6(syscall.SYS_EPOLL_PWAIT, uintptr(p.fd), list, batchLen, uintptr(milliseconds), 0, 0)
	}
	runtime.KeepAlive(p.events)
	if errno == syscall.EINTR {
		return 0, nil
	}
	if errno != 0 {
		return 0, fmt.Errorf("epoll_wait: %w", errno)
	}
	return int(n), nil
}

func (p *poller) event(i int) (fd int32, gen uint32, ready readiness) {
	ev := &p.events[i]
	return ev.Fd, uint32(ev.Pad), readiness(ev.Events)
}

// receive reads once, without waiting. The raw call spares the scheduler's bookkeeping, which is as costly as the call itself.
func receive(fd int32, b []byte) (int, syscall.Errno) { return receiveWith(fd, b, 0) }

// peek looks at the next byte without reading it.
func peek(fd int32) (int, syscall.Errno) {
	var one [1]byte
	return receiveWith(fd, one[:], syscall.MSG_PEEK)
}

func receiveWith(fd int32, b []byte, flags uintptr) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), flags|syscall.MSG_DONTWAIT, 0, 0)
		if errno != syscall.EINTR {
			return int(n), errno
		}
	}
}

func transmit(fd int32, b []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), syscall.MSG_NOSIGNAL|syscall.MSG_DONTWAIT, 0, 0)
		if errno != syscall.EINTR {
			return int(n), errno
		}
	}
}
