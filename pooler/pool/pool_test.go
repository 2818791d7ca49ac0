package pool

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pitr/config"
	"pitr/pooler/session"
)

func TestClientsAreServedInTheOrderOfTheirComing(t *testing.T) {
	inBubble(t, settings(1), func(t *testing.T, w *world) {
		server := w.borrow().must(t)
		var queue []*borrower
		for range 5 {
			queue = append(queue, w.borrow())
		}
		for n, first := range queue {
			for _, other := range queue[n:] {
				if !other.waits() {
					t.Fatalf("somebody was served before number %d", n)
				}
			}
			w.pool.Release(server, session.Clean)
			synctest.Wait()
			if got := first.must(t); got != server {
				t.Errorf("number %d got another server", n)
			}
		}
	})
}

func TestTheServerThatCameBackLastIsLentFirst(t *testing.T) {
	inBubble(t, settings(3), func(t *testing.T, w *world) {
		var servers []*Server
		for range 3 {
			servers = append(servers, w.borrow().must(t))
		}
		for _, server := range servers {
			w.pool.Release(server, session.Clean)
		}
		for n := 2; n >= 0; n-- {
			if w.borrow().must(t) != servers[n] {
				t.Errorf("server %d was not the next", n)
			}
		}
	})
}

func TestNoMoreServersThanPoolSize(t *testing.T) {
	inBubble(t, settings(3), func(t *testing.T, w *world) {
		var all []*borrower
		for range 10 {
			all = append(all, w.borrow())
		}
		if st := w.stats(); st.Active != 3 || st.Waiting != 7 || len(w.fake.connects()) != 3 {
			t.Errorf("%+v, %d connects", st, len(w.fake.connects()))
		}
		for range 7 { // each release serves one more
			w.pool.Release(all[0].must(t), session.Broken)
			synctest.Wait()
			all = all[1:]
		}
		if st := w.stats(); st.Active != 3 || st.Waiting != 0 || st.Connects != 10 || st.Closed != 7 {
			t.Errorf("%+v", st)
		}
	})
}

func TestWaitEndsAtQueryWaitTimeout(t *testing.T) {
	inBubble(t, settings(1), func(t *testing.T, w *world) {
		server := w.borrow().must(t)
		late := w.borrow()
		pass(119 * time.Second)
		early := w.borrow()
		if !late.waits() || w.stats().MaxWait != 119*time.Second {
			t.Errorf("waits %v, %+v", late.waits(), w.stats())
		}
		pass(time.Second)
		if _, err := late.outcome(); err != ErrWaitTimeout || late.waited != 120*time.Second {
			t.Errorf("after %v: %v", late.waited, err)
		}
		w.pool.Release(server, session.Clean)
		synctest.Wait()
		if early.must(t) != server {
			t.Error("the server went elsewhere")
		}
		st := w.stats()
		if st.WaitTimeouts != 1 || st.WaitTotal != 121*time.Second || st.Waits[len(WaitBuckets)] != 1 || st.Waits[7] != 1 {
			t.Errorf("%+v", st)
		}
		w.again(late) // the same place in another queue
		pass(119 * time.Second)
		if !late.waits() {
			t.Error("the timer of the wait before went on")
		}
	})
}

func TestZeroQueryWaitTimeoutIsNone(t *testing.T) {
	cfg := settings(1)
	cfg.QueryWaitTimeout = 0
	inBubble(t, cfg, func(t *testing.T, w *world) {
		server := w.borrow().must(t)
		patient := w.borrow()
		pass(100 * time.Hour)
		w.pool.Release(server, session.Clean)
		pass(0)
		patient.must(t)
	})
}

func TestWhoQuitsLeavesTheQueue(t *testing.T) {
	inBubble(t, settings(1), func(t *testing.T, w *world) {
		server := w.borrow().must(t)
		gone, next := w.borrow(), w.borrow()
		gone.quit()
		synctest.Wait()
		if _, err := gone.outcome(); err != errQuit || w.stats().Waiting != 1 {
			t.Errorf("%v, %+v", err, w.stats())
		}
		w.pool.Release(server, session.Clean)
		synctest.Wait()
		next.must(t)
	})
}

// TestHandOverAtTheTimeoutLosesNoServer releases a server in the instant in which the wait for it ends.
func TestHandOverAtTheTimeoutLosesNoServer(t *testing.T) {
	cfg := settings(1)
	cfg.ServerLifetime = 0
	inBubble(t, cfg, func(t *testing.T, w *world) {
		server := w.borrow().must(t)
		served := 0
		for range 200 {
			waiter := w.borrow()
			time.AfterFunc(120*time.Second, func() { w.pool.Release(server, session.Clean) })
			pass(120 * time.Second)
			got, err := waiter.outcome()
			st := w.stats()
			switch {
			case got == server && st.Active == 1:
				served++
			case err == ErrWaitTimeout && st.Idle == 1:
				w.borrow().must(t)
			default:
				t.Fatalf("got %p, %v, %+v", got, err, st)
			}
			if w.stats().Waiting != 0 {
				t.Fatal("somebody is forgotten")
			}
		}
		t.Logf("%d of 200 were served", served)
	})
}

func TestFailedLoginsAreToldAtOnceAndBackOff(t *testing.T) {
	cfg := settings(5)
	cfg.ServerLoginRetry = config.Duration(time.Second)
	inBubble(t, cfg, func(t *testing.T, w *world) {
		w.fake.set(func(f *postgres) { f.refuses = true })
		var refused *ConnectError
		for range 100 { // ten seconds
			b := w.borrow()
			if _, err := b.outcome(); !errors.As(err, &refused) || refused.Code != "08001" || b.waited != 0 {
				t.Fatalf("after %v: %v", b.waited, err)
			}
			pass(100 * time.Millisecond)
		}
		attempts := w.fake.connects()
		for n, least := range []time.Duration{100, 200, 400, 800, 1000, 1000, 1000} {
			if pause := attempts[n+1].Sub(attempts[n]); pause < least*time.Millisecond || pause > (least+100)*time.Millisecond {
				t.Errorf("pause %d took %v", n, pause)
			}
		}
		if st := w.stats(); st.ConnectFailures != uint64(len(attempts)) || st.ConnectRefusals != 100-st.ConnectFailures || st.LastConnectErr == "" {
			t.Errorf("%d attempts, %+v", len(attempts), st)
		}
		w.fake.set(func(f *postgres) { f.refuses = false })
		pass(time.Second)
		w.borrow().must(t)
		if st := w.stats(); st.LastConnectErr != "" || st.Connects != 1 {
			t.Errorf("%+v", st)
		}
	})
}

// A server that goes down fails all logins that are on their way. It may be back at once.
func TestLoginsThatFailTogetherBackOffOnce(t *testing.T) {
	inBubble(t, settings(8), func(t *testing.T, w *world) {
		w.fake.set(func(f *postgres) { f.refuses, f.late = true, true })
		for range 8 {
			w.borrow()
		}
		pass(50 * time.Millisecond)
		if st := w.stats(); st.ConnectFailures != 8 || st.Waiting != 0 {
			t.Fatalf("%+v", st)
		}
		w.fake.set(func(f *postgres) { f.refuses = false })
		pass(backoffMin)
		b := w.borrow()
		pass(50 * time.Millisecond)
		b.must(t)
	})
}

func TestFailedLoginLeavesThoseInTheQueueWhoCanStillBeServed(t *testing.T) {
	inBubble(t, settings(2), func(t *testing.T, w *world) {
		server := w.borrow().must(t)
		w.fake.set(func(f *postgres) { f.refuses = true })
		first, second := w.borrow(), w.borrow()
		if !first.waits() || !second.waits() {
			t.Fatal("a client was sent away although the pool has a server")
		}
		w.pool.Release(server, session.Clean)
		synctest.Wait()
		first.must(t)
		w.fake.set(func(f *postgres) { f.refuses = false })
		pass(20 * time.Second) // the janitor tries again
		second.must(t)
	})
}

func TestLastServerThatGoesTakesNoWaiterAlong(t *testing.T) {
	inBubble(t, settings(1), func(t *testing.T, w *world) {
		server := w.borrow().must(t)
		waiter := w.borrow()
		w.fake.backends[0].Close()
		synctest.Wait()
		w.pool.Release(server, session.Clean) // its owner has not noticed
		synctest.Wait()
		if got := waiter.must(t); got == server {
			t.Error("a server that is lost was lent")
		}
	})
}

func TestIdleServersAreClosedInTime(t *testing.T) {
	inBubble(t, settings(2), func(t *testing.T, w *world) {
		first, second := w.borrow().must(t), w.borrow().must(t)
		w.pool.Release(first, session.Clean)
		pass(300 * time.Second)
		w.pool.Release(second, session.Clean)
		pass(299 * time.Second)
		if st := w.stats(); st.Idle != 2 {
			t.Errorf("too early: %+v", st)
		}
		pass(3 * time.Second)
		if st := w.stats(); st.Idle != 1 || w.borrow().must(t) != second {
			t.Errorf("%+v", st)
		}
	})
}

func TestOldServersAreClosedOnceNobodyHasThem(t *testing.T) {
	cfg := settings(2)
	cfg.ServerIdleTimeout = 0
	inBubble(t, cfg, func(t *testing.T, w *world) {
		lent, idle := w.borrow().must(t), w.borrow().must(t)
		w.pool.Release(idle, session.Clean)
		pass(3602 * time.Second)
		if st := w.stats(); st.Idle != 0 || st.Active != 1 {
			t.Errorf("%+v", st)
		}
		w.borrow().must(t)
		waiter := w.borrow()
		w.pool.Release(lent, session.Clean)
		synctest.Wait()
		if waiter.must(t) == lent || w.stats().Connects != 4 {
			t.Errorf("the old server was lent again: %+v", w.stats())
		}
	})
}

func TestDirtyServersAreCleanedBeforeTheNext(t *testing.T) {
	inBubble(t, settings(1), func(t *testing.T, w *world) {
		server := w.borrow().must(t)
		waiter := w.borrow()
		w.pool.Release(server, session.Dirty)
		synctest.Wait()
		if waiter.must(t) != server || w.fake.discards != 1 || w.stats().Cleanings != 1 {
			t.Errorf("%d cleanings, %+v", w.fake.discards, w.stats())
		}
		w.fake.set(func(f *postgres) { f.hangs = true })
		w.pool.Release(server, session.Dirty)
		next := w.borrow()
		pass(14 * time.Second)
		if !next.waits() || w.stats().Cleaning != 1 {
			t.Errorf("%+v", w.stats())
		}
		pass(3 * time.Second)
		if next.must(t) == server {
			t.Error("a server that hangs was lent")
		}
	})
}

// TestSlowLoginLeavesNobodyReading lets writes of the login take so long that pgconn begins to read in the background.
func TestSlowLoginLeavesNobodyReading(t *testing.T) {
	inBubble(t, settings(1), func(t *testing.T, w *world) {
		w.fake.set(func(f *postgres) { f.stalls = true })
		first := w.borrow()
		pass(time.Second)
		server := first.must(t)
		w.pool.Release(server, session.Dirty)
		pass(time.Second)
		if st := w.stats(); st.Idle != 1 || w.borrow().must(t) != server {
			t.Errorf("the server's answer went to somebody else: %+v", st)
		}
	})
}

func TestServerOnHoldGoesNowhere(t *testing.T) {
	inBubble(t, settings(1), func(t *testing.T, w *world) {
		for _, delivered := range []bool{true, false} {
			server := w.borrow().must(t)
			cleanings := w.stats().Cleanings
			w.pool.Hold(server)
			w.pool.Hold(server)
			waiter := w.borrow()
			w.pool.Release(server, session.Clean)
			w.pool.Unhold(server, delivered)
			pass(time.Minute)
			if !waiter.waits() {
				t.Fatal("the server was lent while a cancel was on its way")
			}
			w.pool.Unhold(server, true)
			synctest.Wait()
			got := waiter.must(t)
			if delivered && (got != server || w.stats().Cleanings != cleanings+1) {
				t.Errorf("the server was not cleaned and given on: %+v", w.stats())
			}
			if !delivered && got == server {
				t.Error("a server was lent that a cancel may still hit")
			}
			w.pool.Release(got, session.Clean)
		}
	})
}

func TestServerThatSpeaksOrDiesWhileIdleIsForgotten(t *testing.T) {
	inBubble(t, settings(1), func(t *testing.T, w *world) {
		for n, ends := range []func(){
			func() { w.fake.backends[0].Close() },
			func() { _, _ = w.fake.backends[1].Write([]byte("N\x00\x00\x00\x05\x00")) },
			func() { _, _ = w.fake.backends[2].Write([]byte("E")) },
		} {
			server := w.borrow().must(t)
			w.pool.Release(server, session.Clean)
			ends()
			synctest.Wait()
			if st := w.stats(); st.Idle != 0 || st.Closed != uint64(n+1) {
				t.Errorf("end %d: %+v", n, st)
			}
		}
		w.borrow().must(t)
	})
}

func TestCloseSendsEverybodyAway(t *testing.T) {
	inBubble(t, settings(1), func(t *testing.T, w *world) {
		server := w.borrow().must(t)
		waiter := w.borrow()
		w.set.Close()
		synctest.Wait()
		if _, err := waiter.outcome(); err != ErrClosed {
			t.Errorf("the one who waited got %v", err)
		}
		if _, err := w.borrow().outcome(); err != ErrClosed {
			t.Errorf("the next one got %v", err)
		}
		w.pool.Release(server, session.Clean)
		if _, err := w.set.Get("d", "u"); err != ErrClosed {
			t.Errorf("Get: %v", err)
		}
		if st := w.stats(); st.Active+st.Idle+st.Cleaning+st.Waiting != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestUnusedPoolsMakeRoom(t *testing.T) {
	inBubble(t, settings(1), func(t *testing.T, w *world) {
		if _, err := w.set.Get("other", "u"); err != nil {
			t.Fatal(err)
		}
		if _, err := w.set.Get("third", "u"); err != ErrTooManyPools {
			t.Errorf("a third pool: %v", err)
		}
		w.pool.Release(w.borrow().must(t), session.Clean)
		w.pool.Leave()
		pass(590 * time.Second)
		if _, err := w.set.Get("third", "u"); err != ErrTooManyPools {
			t.Errorf("a pool with a server was dropped: %v", err)
		}
		pass(15 * time.Second)
		if _, err := w.set.Get("third", "u"); err != nil {
			t.Errorf("the pool that nobody uses is still there: %v", err)
		}
		if _, hits := w.set.Stats(); hits != 2 {
			t.Errorf("max_pools was hit %d times", hits)
		}
		if _, err := w.borrow().outcome(); err != ErrClosed {
			t.Errorf("the dropped pool gave %v", err)
		}
	})
}

func TestIllegalMovesPanic(t *testing.T) {
	inBubble(t, settings(1), func(t *testing.T, w *world) {
		server := w.borrow().must(t)
		w.pool.Release(server, session.Clean)
		defer func() {
			if recover() == nil {
				t.Error("a server was released twice")
			}
			w.pool.mu.Unlock()
		}()
		w.pool.Release(server, session.Dirty)
	})
}
