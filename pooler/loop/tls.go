package loop

import (
	"bytes"
	"crypto/tls"
	"errors"
)

// encryption is the TLS of a Conn. The handshake is over when a loop gets it.
type encryption struct {
	stream *Stream
	conn   *tls.Conn
	cipher []byte // has arrived, and was not decrypted yet; valid during a read, or a copy if ahead
	ahead  bool   // TLS may have something that was not delivered
	plain  []byte // due, and not encrypted yet
}

// readEncrypted reads once, decrypts and delivers. more says that there may be more to be read.
func (c *Conn) readEncrypted(l *Loop) (more bool) {
	if c.tls.ahead && !c.decrypt(l) {
		return false
	}
	if !c.ready {
		return false
	}
	window := l.input[:c.window]
	n, ok := c.receive(l, window)
	if !ok {
		return false
	}
	drained := n < len(window) && !c.hup
	c.ready = !drained
	c.tls.cipher = window[:n]
	return c.decrypt(l) && !drained
}

// decrypt delivers what has arrived. It reports false if that was the end, or if there is to be a pause.
func (c *Conn) decrypt(l *Loop) bool {
	if l.plain == nil {
		l.plain = make([]byte, bufferLen)
	}
	for {
		if c.closed {
			return false
		}
		e := c.tls
		if c.paused {
			e.ahead, e.cipher = true, bytes.Clone(e.cipher)
			return false
		}
		e.ahead = false
		buf, have := c.space(l.plain)
		n, err := e.conn.Read(buf[have:])
		if n > 0 {
			c.deliver(buf[:have+n])
			continue
		}
		if errors.Is(err, errNothing) {
			return true
		}
		if err != nil {
			c.handler.Ended(err)
			return false
		}
	}
}

// encrypt makes what is due due to the kernel, in as few records as possible.
func (c *Conn) encrypt(l *Loop) {
	plain := c.tls.plain
	c.tls.plain = nil
	if _, err := c.tls.conn.Write(plain); err != nil {
		c.fail(l)
	}
	l.free.put(plain)
}

// farewell tells the other side that nothing more will come, so that it knows that nothing was cut off.
func (c *Conn) farewell(l *Loop) {
	if len(c.tls.plain) > 0 {
		c.encrypt(l)
	}
	if err := c.tls.conn.CloseWrite(); err != nil {
		c.fail(l)
	}
}
