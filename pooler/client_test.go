package pooler

import (
	"net"
	"testing"
	"testing/synctest"

	"pitr/config"
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

// TestHalfMessageKeepsNoServer sends a part of a Bind while the answer before is still being written.
func TestHalfMessageKeepsNoServer(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) { cfg.Pooler.DefaultPoolSize = 2 })
	near, far := net.Pipe() // whose writes last until they are read
	r.logins <- struct{}{}
	r.work.Go(func() { r.serve(near) })
	w := &wire{t: t, conn: far}
	t.Cleanup(func() { far.Close() })
	w.login()
	w.send(&pgQuery{String: "select 1"})
	var first [1]byte
	if _, err := far.Read(first[:]); err != nil || first[0] != 'T' {
		t.Fatal(first, err)
	}
	half := encode(bind("", "s1"))[:7]
	if _, err := far.Write(half); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the client has one server back and another one linked", func() bool { return r.Stats().ClientsActive == 2 })
	rest := make([]byte, 1<<10)
	for rest[0] = 0; ; {
		n, err := far.Read(rest)
		if err != nil {
			t.Fatal(err)
		}
		if n >= 6 && rest[n-6] == 'Z' {
			break
		}
	}
	eventually(t, "both servers are back", func() bool { return r.Stats().ClientsActive == 0 })
}
