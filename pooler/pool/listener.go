package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Notification is what NOTIFY has sent.
type Notification struct {
	Process          uint32 // of the backend that has sent it
	Channel, Payload string
}

// Listener is the one connection over which a database's notifications come. It is opened when a channel is wanted and closed when
// none is, and opened again when it is lost; what is sent meanwhile does not arrive: at most once is the promise.
type Listener struct {
	pool    *Pool
	deliver func(Notification) // called in the order of their coming

	// mu guards the fields below. Nothing is waited for while it is held.
	mu      sync.Mutex
	wanted  map[string]struct{}
	version uint64 // counts changes of wanted
	waiters []waiting
	wake    context.CancelFunc // ends the present wait for notifications
	cut     context.CancelFunc // ends the present connection
	at      Address            // where that is
	running bool
}

// waiting is somebody who wants to know when a version is in force.
type waiting struct {
	version uint64
	tell    func(error)
}

// NewListener returns a listener that has no connection. It logs in as the pool's clients do.
func (p *Pool) NewListener(deliver func(Notification)) *Listener {
	l := &Listener{pool: p, deliver: deliver, wanted: map[string]struct{}{}, wake: func() {}, cut: func() {}}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listeners = append(p.listeners, l)
	return l
}

// errMoved says that the connection is wanted elsewhere.
var errMoved = errors.New("the database was moved")

// restart makes the connection anew, perhaps to another server.
func (l *Listener) restart() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut()
}

// leave makes the connection anew if it is where it should not be.
func (l *Listener) leave(misplaced func(Address) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if misplaced(l.at) {
		l.cut()
	}
}

// Want says which channels are wanted from now on. tell is called, by anybody, once they are listened to or that has failed.
func (l *Listener) Want(channels []string, tell func(error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wanted = map[string]struct{}{}
	for _, channel := range channels {
		l.wanted[channel] = struct{}{}
	}
	l.version++
	l.waiters = append(l.waiters, waiting{l.version, tell})
	if !l.running {
		l.running = true
		l.pool.set.work.Go(l.run)
	}
	l.wake()
}

// run is the listener's goroutine. It ends when no channel is wanted any more, and with the set.
func (l *Listener) run() {
	ctx := l.pool.set.ctx
	pause := backoffMin
	for {
		err := l.listen(ctx)
		l.mu.Lock()
		if ctx.Err() != nil {
			err = ErrClosed
		}
		over := err == nil || errors.Is(err, ErrClosed)
		for _, w := range l.waiters {
			w.tell(err)
		}
		l.waiters = nil
		l.running = !over
		l.mu.Unlock()
		if over {
			return
		}
		l.pool.log.Warn("listening connection lost; notifications are lost until it is back", "database", l.pool.key.Database, "retry_in", pause, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, max(l.pool.set.now().ServerLoginRetry.D(), backoffMin))
	}
}

// listen is one connection's life. It returns nil when no channel is wanted any more.
func (l *Listener) listen(ctx context.Context) error {
	ctx, cut := context.WithCancel(ctx)
	defer cut()
	l.mu.Lock()
	l.cut = cut
	l.mu.Unlock()
	l.pool.mu.Lock()
	dial := l.pool.dial
	l.pool.mu.Unlock()
	conn, at, err := l.pool.set.reach(ctx, dial, 0, func(config *pgconn.Config) {
		config.OnNotification = func(_ *pgconn.PgConn, n *pgconn.Notification) {
			l.deliver(Notification{Process: n.PID, Channel: n.Channel, Payload: n.Payload})
		}
		config.RuntimeParams["application_name"] = "pitr listen"
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.at = at
	l.mu.Unlock()
	defer func() {
		farewell, done := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		_ = conn.Close(farewell) // there is nothing more to be had from it
		done()
	}()
	have := map[string]struct{}{}
	for {
		version, text, over := l.due(have)
		if over {
			return nil
		}
		if text != "" {
			limited, done := context.WithTimeout(ctx, l.pool.set.now().ServerConnectTimeout.D())
			_, err := conn.Exec(limited, text).ReadAll()
			done()
			if err != nil {
				return fmt.Errorf("listen: %w", err)
			}
		}
		if err := l.wait(ctx, conn, version); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return errMoved
		}
	}
}

// due returns what makes the connection listen to what is wanted, and notes in have that it does.
func (l *Listener) due(have map[string]struct{}) (version uint64, text string, over bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.wanted) == 0 {
		for _, w := range l.waiters {
			w.tell(nil)
		}
		l.waiters = nil
		return l.version, "", true
	}
	var out strings.Builder
	for channel := range have {
		if _, still := l.wanted[channel]; !still {
			delete(have, channel)
			out.WriteString("UNLISTEN " + quoteName(channel) + ";")
		}
	}
	for channel := range l.wanted {
		if _, already := have[channel]; !already {
			have[channel] = struct{}{}
			out.WriteString("LISTEN " + quoteName(channel) + ";")
		}
	}
	return l.version, out.String(), false
}

func quoteName(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// wait tells those who wait for version, and waits for notifications until something else is wanted.
func (l *Listener) wait(ctx context.Context, conn *pgconn.PgConn, version uint64) error {
	ctx, wake := context.WithCancel(ctx)
	defer wake()
	l.mu.Lock()
	l.waiters = slices.DeleteFunc(l.waiters, func(w waiting) bool {
		if w.version > version {
			return false
		}
		w.tell(nil)
		return true
	})
	current := l.version == version
	l.wake = wake
	l.mu.Unlock()
	for current {
		if err := conn.WaitForNotification(ctx); err != nil {
			if ctx.Err() != nil && !conn.IsClosed() {
				return nil
			}
			return err
		}
	}
	return nil
}
