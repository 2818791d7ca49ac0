// Package loop drives sockets: one thread waits for many of them, reads each that has something, lets its handler decide, and
// sends what is due only after the whole batch of events has been read, so that a query costs two reads and two writes and nothing
// that ends in EAGAIN. It owns file descriptors, buffers and the order of reading and writing. It knows nothing of protocols, pools
// and clients. See docs/decisions/0007-event-loop.md.
package loop

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Loop is one thread's share of the sockets. Make it with New, then call Run.
type Loop struct {
	poll    poller
	cfg     Config
	input   []byte // what is read is put here, and is only valid until the next socket is read
	plain   []byte // the same for what has been decrypted
	free    buffers
	first   []*Conn             // have something to be sent, before those of last
	last    []*Conn             // have something to be sent
	again   []*Conn             // are to be looked at without an event
	looked  []*Conn             // were looked at; to be filled again
	blocked map[*Conn]time.Time // whose kernel buffer is full, and since when it takes nothing
	ending  map[*Conn]time.Time // are closed once all was sent, or then
	now     time.Time
	ticked  time.Time
	counter Counters // may be read by others

	// mu guards mail and stopping. Nothing else is done while it is held.
	mu       sync.Mutex
	mail     []Task
	stopping bool
	spare    []Task // mail that was dealt with, to be filled again; the thread's
	asleep   atomic.Bool
}

// Config are the bounds of a loop.
type Config struct {
	WriteTimeout time.Duration // how long a Conn with Limited may take nothing of what it is sent; zero: for ever
}

// Counters count since the loop was made. They may be read at any time.
type Counters struct {
	Waits, Events, Reads, EmptyReads, Writes, Wakes atomic.Uint64
}

// Task is something that a loop is asked to do on its thread.
type Task interface{ Do() }

// Func is a Task.
type Func func()

// Do calls the function.
func (f Func) Do() { f() }

// bufferLen is how much is read at once. It is also the most that waits to be sent before nothing more is read for it.
const bufferLen = 64 << 10

// tickPause is the resolution of timeouts.
const tickPause = 100 * time.Millisecond

// New returns a loop without sockets.
func New(cfg Config) (*Loop, error) {
	poll, err := newPoller()
	if err != nil {
		return nil, err
	}
	return &Loop{poll: poll, cfg: cfg, input: make([]byte, bufferLen), blocked: map[*Conn]time.Time{}, ending: map[*Conn]time.Time{}, now: time.Now()}, nil
}

// Now returns when the present batch of events was fetched. It belongs to the loop's thread.
func (l *Loop) Now() time.Time { return l.now }

// Counters returns what the loop has counted.
func (l *Loop) Counters() *Counters { return &l.counter }

// Post lets the loop do something on its thread, after what it does now. It never waits. It reports false when the loop has been
// told to stop; the task is then not done.
func (l *Loop) Post(task Task) bool {
	l.mu.Lock()
	if l.stopping {
		l.mu.Unlock()
		return false
	}
	l.mail = append(l.mail, task)
	l.mu.Unlock()
	l.wake()
	return true
}

func (l *Loop) wake() {
	if l.asleep.Load() && l.asleep.CompareAndSwap(true, false) {
		l.counter.Wakes.Add(1)
		l.poll.wake()
	}
}

// Stop makes Run return once everything that was posted before is done. Sockets that are still open are closed.
func (l *Loop) Stop() {
	l.mu.Lock()
	l.stopping = true
	l.mu.Unlock()
	l.wake()
}

// Discard gives up a loop that will not Run.
func (l *Loop) Discard() { l.poll.close() }

// Run drives the sockets until Stop. It is called once.
func (l *Loop) Run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	moreProcessors(1)
	defer moreProcessors(-1)
	defer l.poll.close()
	for {
		if err := l.turn(); err != nil {
			return err
		}
		l.mu.Lock()
		done := l.stopping && len(l.mail) == 0
		l.mu.Unlock()
		if done {
			l.closeAll()
			return nil
		}
	}
}

// processors guards GOMAXPROCS.
var processors sync.Mutex

// moreProcessors gives Go's scheduler as many more Ps as there are loops, since a busy loop keeps one even while it waits.
func moreProcessors(n int) {
	processors.Lock()
	defer processors.Unlock()
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + n)
}

// turn is one batch: wait, read and decide, then send.
func (l *Loop) turn() error {
	n, err := l.poll.wait(l.patience())
	l.asleep.Store(false)
	if err != nil {
		return err
	}
	l.now = time.Now()
	l.counter.Waits.Add(1)
	l.counter.Events.Add(uint64(n))
	for i := range n {
		fd, gen, ready := l.poll.event(i)
		if c := lookup(fd, gen); c != nil {
			c.event(l, ready)
		}
	}
	l.catchUp()
	l.send()
	if l.now.Sub(l.ticked) >= tickPause {
		l.tick()
	}
	return nil
}

// patience is how long the next wait may last, in milliseconds; -1 is for ever.
func (l *Loop) patience() int {
	l.asleep.Store(true)
	l.mu.Lock()
	busy := len(l.mail) > 0 || l.stopping
	l.mu.Unlock()
	switch {
	case busy || len(l.again) > 0 || len(l.first) > 0 || len(l.last) > 0:
		return 0
	case len(l.blocked) > 0 || len(l.ending) > 0:
		return int(tickPause / time.Millisecond)
	}
	return -1
}

// catchUp does what was posted and looks again at the sockets that ask for it. What comes up meanwhile has its turn in the next
// batch if it is much, so that nobody keeps the others waiting.
func (l *Loop) catchUp() {
	for range 4 {
		l.mu.Lock()
		mail := l.mail
		l.mail = l.spare[:0]
		l.mu.Unlock()
		for i, task := range mail {
			mail[i] = nil
			task.Do()
		}
		l.spare = mail[:0]
		if len(l.again) == 0 && len(mail) == 0 {
			return
		}
		again := l.again
		l.again = l.looked[:0]
		for i, c := range again {
			again[i] = nil
			c.resumed(l)
		}
		l.looked = again[:0]
	}
}

// send writes what has become due: first to those who then have work to do, so that they do it while the others are written to.
func (l *Loop) send() {
	for i := 0; i < len(l.first); i++ { // flush may add to the list
		l.first[i].due(l)
		l.first[i] = nil
	}
	l.first = l.first[:0]
	for i := 0; i < len(l.last); i++ {
		l.last[i].flush()
		l.last[i] = nil
	}
	l.last = l.last[:0]
}

// tick ends those whose time is over.
func (l *Loop) tick() {
	l.ticked = l.now
	for c, deadline := range l.ending {
		if !l.now.Before(deadline) {
			c.Close()
		}
	}
	if l.cfg.WriteTimeout == 0 {
		return
	}
	for c, since := range l.blocked {
		if c.limited && l.now.Sub(since) > l.cfg.WriteTimeout {
			delete(l.blocked, c)
			c.handler.Ended(ErrWriteTimeout)
		}
	}
}

func (l *Loop) closeAll() {
	forEach(func(c *Conn) {
		if c.loop.Load() == l {
			c.Close()
		}
	})
}
