package pool

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pitr/pooler/session"
)

func TestAPauseWaitsForWhoHasAServerAndHoldsBackTheOthers(t *testing.T) {
	inBubble(t, settings(2), func(t *testing.T, w *world) {
		busy, idle := w.borrow().must(t), w.borrow().must(t)
		w.pool.Release(idle, session.Clean)
		paused := make(chan error, 1)
		go func() { paused <- w.set.Pause(t.Context(), "d") }()
		pass(time.Second)
		late := w.borrow()
		if st := w.stats(); len(paused) > 0 || !late.waits() || st.Idle != 0 || st.Active != 1 {
			t.Fatalf("paused already: %d; it waits: %v; %+v", len(paused), late.waits(), st)
		}
		w.pool.Release(busy, session.Clean)
		pass(time.Second)
		if err := <-paused; err != nil || !late.waits() || w.stats().Active+w.stats().Idle != 0 {
			t.Fatalf("%v; it waits: %v; %+v", err, late.waits(), w.stats())
		}
		if err := w.set.Pause(t.Context(), "d"); !errors.Is(err, ErrPaused) {
			t.Errorf("paused again: %v", err)
		}
		connects := len(w.fake.connects())
		from, err := w.set.Move("d", Address{"127.0.0.2", 6000})
		if err != nil || from.String() != "127.0.0.1:5432" || len(w.fake.connects()) != connects {
			t.Errorf("moved from %s: %v", from, err)
		}
		if err := w.set.Resume("d"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		late.must(t)
		if at := w.pool.dial.targets[0].config; at.Host != "127.0.0.2" || at.Port != 6000 {
			t.Errorf("it connects to %s:%d", at.Host, at.Port)
		}
		other, err := w.set.Get("d", "another")
		if err != nil || other.dial.targets[0].config.Port != 6000 {
			t.Errorf("a pool that is new connects to port %d: %v", other.dial.targets[0].config.Port, err)
		}
	})
}

func TestAPauseThatIsGivenUpLeavesEverythingAsItWas(t *testing.T) {
	inBubble(t, settings(1), func(t *testing.T, w *world) {
		server := w.borrow().must(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.set.Pause(ctx, "d"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the pause: %v", err)
		}
		late := w.borrow()
		w.pool.Release(server, session.Clean)
		synctest.Wait()
		if late.must(t) != server {
			t.Error("the server was not handed on")
		}
		if _, err := w.set.Move("d", Address{"127.0.0.2", 6000}); !errors.Is(err, ErrNotPaused) {
			t.Errorf("moved without a pause: %v", err)
		}
		if err := w.set.Resume("d"); !errors.Is(err, ErrNotPaused) {
			t.Errorf("resumed without a pause: %v", err)
		}
	})
}
