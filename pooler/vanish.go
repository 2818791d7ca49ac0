package pooler

import (
	"net"
	"syscall"
)

// queued returns the clients that have waited for a server since before.
func (p *Pooler) queued(before int64) []*client {
	p.mu.Lock()
	defer p.mu.Unlock()
	var queued []*client
	for _, c := range p.clients {
		if since := c.queued.Load(); since != 0 && since < before {
			queued = append(queued, c)
		}
	}
	return queued
}

// hasVanished reports whether the other side has closed the connection and left nothing to be read. It reads nothing and does not
// wait. A client that waits for a server is not read, so that its end would not be noticed, and its queries would be run for nobody.
func hasVanished(conn net.Conn) bool {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return true
	}
	vanished := false
	err = raw.Control(func(fd uintptr) {
		var one [1]byte
		n, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		vanished = n == 0 && err == nil || err == syscall.ECONNRESET || err == syscall.ETIMEDOUT
	})
	return vanished || err != nil
}
