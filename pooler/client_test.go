package pooler

import (
	"net"
	"testing"
	"testing/synctest"

	"pitr/internal/pgwire"
	"pitr/pooler/session"
)

// TestOwnRepliesAreBounded lets a client ask for what the machine answers itself, while somebody else is busy writing to it.
func TestOwnRepliesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		p := &Pooler{}
		p.cfg.PktBuf = 4 << 10
		c := newClient(p, near)
		c.join(nil, sessionOptions(p.cfg, true))
		c.machine = session.New(c.options, session.NoParams)
		c.speaking = true
		asked := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			for goOn := true; goOn && asked < 100_000; asked++ {
				_, _, goOn = c.handle(pgwire.AppendEmpty(nil, pgwire.Sync))
			}
		}()
		synctest.Wait()
		if answer := len(pgwire.AppendReady(nil, pgwire.Idle)); asked*answer > 2*int(p.cfg.PktBuf) {
			t.Errorf("%d answers of %d bytes wait for a client that does not read", asked, answer)
		}
		far.Close()
		c.mu.Lock()
		c.speaking = false
		c.turn.Broadcast()
		c.mu.Unlock()
		<-done
	})
}
