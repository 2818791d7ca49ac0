package loop

import (
	"sync"
	"sync/atomic"
)

// table finds the socket of a file descriptor. A descriptor belongs to one socket of the process at a time, and is put in before a
// poller can name it and taken out before it is closed.
var table struct {
	mu   sync.Mutex // guards pages growing
	list atomic.Pointer[[]*page]
}

const pageLen = 1 << 10

type page [pageLen]atomic.Pointer[Conn]

// generations tells sockets apart that have the same descriptor one after the other.
var generations atomic.Uint32

func lookup(fd int32, gen uint32) *Conn {
	list := table.list.Load()
	if list == nil || int(fd)/pageLen >= len(*list) {
		return nil
	}
	c := (*list)[fd/pageLen][fd%pageLen].Load()
	if c == nil || c.gen != gen {
		return nil
	}
	return c
}

func enter(c *Conn) {
	table.mu.Lock()
	defer table.mu.Unlock()
	var list []*page
	if old := table.list.Load(); old != nil {
		list = *old
	}
	if int(c.fd)/pageLen >= len(list) {
		grown := append([]*page(nil), list...)
		for int(c.fd)/pageLen >= len(grown) {
			grown = append(grown, new(page))
		}
		list = grown
		table.list.Store(&grown)
	}
	list[c.fd/pageLen][c.fd%pageLen].Store(c)
}

func remove(c *Conn) {
	list := *table.list.Load()
	list[c.fd/pageLen][c.fd%pageLen].CompareAndSwap(c, nil)
}

func forEach(do func(*Conn)) {
	list := table.list.Load()
	if list == nil {
		return
	}
	for _, p := range *list {
		for i := range p {
			if c := p[i].Load(); c != nil {
				do(c)
			}
		}
	}
}
