package takeover

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
)

// calls are the cancel requests that wait for the other side.
type calls struct {
	// mu guards what follows.
	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan struct{} // by id; nil once the link has ended
}

// begin returns an id and what is closed when the answer has come, nil after the link's end.
func (c *calls) begin() (uint64, chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == nil {
		return 0, nil
	}
	done := make(chan struct{})
	c.last++
	c.waiting[c.last] = done
	return c.last, done
}

func (c *calls) end(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if done, waits := c.waiting[id]; waits {
		delete(c.waiting, id)
		close(done)
	}
}

func (c *calls) endAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, done := range c.waiting {
		close(done)
	}
	c.waiting = nil
}

// Cancel lets the other side deal with a cancel request, and waits until it has. The caller bounds how many do so at a time.
func (l *Link) Cancel(ctx context.Context, process uint32, secret []byte) error {
	id, done := l.begin()
	if done == nil {
		return nil // it has ended, and so have its clients
	}
	defer l.end(id)
	if err := l.send(fmt.Sprintf("cancel %d %d %x", id, process, secret), nil); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run lets cancel deal with the requests that come from the other side, each in a goroutine of its own, until the link ends: with nil, when the other process has gone or Close was called here.
func (l *Link) Run(cancel func(process uint32, secret []byte)) error {
	var work sync.WaitGroup
	defer work.Wait()
	defer l.endAll()
	for {
		text, file, err := l.receive(0)
		closeFile(file)
		if err != nil {
			return ended(err)
		}
		var id uint64
		var process uint32
		var digits string
		switch word, rest, _ := strings.Cut(text, " "); word {
		case "cancel":
			if _, err := fmt.Sscanf(rest, "%d %d %s", &id, &process, &digits); err != nil {
				return fmt.Errorf("unexpected %.40q", text)
			}
			secret, err := hex.DecodeString(digits)
			if err != nil {
				return fmt.Errorf("unexpected %.40q", text)
			}
			work.Go(func() {
				cancel(process, secret)
				_ = l.send(fmt.Sprintf("canceled %d", id), nil) // who cannot be answered has gone, which receive tells
			})
		case "canceled":
			if _, err := fmt.Sscanf(rest, "%d", &id); err != nil {
				return fmt.Errorf("unexpected %.40q", text)
			}
			l.end(id)
		default:
			return fmt.Errorf("unexpected %.40q", text)
		}
	}
}

// ended makes nil of what is no more than the end.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return err
}
