package pool

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pitr/config"
	"pitr/pooler/session"
)

func second(n float64) config.Duration { return config.Duration(n * float64(time.Second)) }

func TestClientsWaitForAServerThatSaysNotNow(t *testing.T) {
	for _, code := range []string{"57P03", "53300"} {
		inBubble(t, settings(2), func(t *testing.T, w *world) {
			w.fake.set(func(f *postgres) { f.code = code })
			first := w.borrow()
			pass(20 * time.Second)
			late := w.borrow()
			if !first.waits() || !late.waits() {
				t.Fatalf("%s: %v", code, first.err)
			}
			// It is tried at least each second, and not much more often.
			if n := len(w.fake.connects()); n < 15 || n > 40 {
				t.Errorf("%s: %d attempts in 20 s", code, n)
			}
			w.fake.set(func(f *postgres) { f.code = "" })
			pass(3 * time.Second)
			first.must(t)
			late.must(t)
		})
	}
	inBubble(t, settings(2), func(t *testing.T, w *world) {
		w.fake.set(func(f *postgres) { f.code = "57P03" })
		b := w.borrow()
		pass(121 * time.Second)
		if _, err := b.outcome(); !errors.Is(err, ErrWaitTimeout) {
			t.Errorf("after query_wait_timeout: %v", err)
		}
		w.fake.set(func(f *postgres) { f.code = "28P01" })
		other := w.borrow()
		pass(2 * time.Second)
		if _, err := other.outcome(); err == nil || !strings.Contains(err.Error(), "not now") {
			t.Errorf("a refusal for good: %v", err)
		}
	})
}

func TestConnectsToAHostComeNoFasterThanTheRate(t *testing.T) {
	cfg := settings(100)
	cfg.ServerConnectRate = 10
	inBubble(t, cfg, func(t *testing.T, w *world) {
		var all []*borrower
		for range 50 {
			all = append(all, w.borrow())
		}
		pass(5 * time.Second)
		for _, b := range all {
			b.must(t)
		}
		times := w.fake.connects()
		if len(times) != 50 {
			t.Errorf("%d connects", len(times))
		}
		for i := range times {
			n := 0
			for _, at := range times[i:] {
				if at.Sub(times[i]) < time.Second {
					n++
				}
			}
			if n > 20 { // a full bucket, and what runs into it in a second
				t.Errorf("%d connects within a second", n)
			}
		}
		if _, _, hits := w.set.LimitHits(); hits == 0 {
			t.Error("the limit was reached, and not counted")
		}
	})
}

func TestTheReserveIsForThoseWhoHaveWaited(t *testing.T) {
	cfg := settings(1)
	cfg.ReservePoolSize, cfg.ReservePoolTimeout = 1, second(5)
	inBubble(t, cfg, func(t *testing.T, w *world) {
		w.borrow().must(t)
		first, next := w.borrow(), w.borrow()
		pass(4 * time.Second)
		if !first.waits() {
			t.Error("the reserve was used at once")
		}
		pass(4 * time.Second)
		first.must(t)
		pass(20 * time.Second)
		if !next.waits() {
			t.Error("more than the reserve was used")
		}
	})
}

func TestAPoolKeepsItsMinimum(t *testing.T) {
	cfg := settings(5)
	cfg.MinPoolSize = 3
	inBubble(t, cfg, func(t *testing.T, w *world) {
		pass(time.Hour + 10*time.Minute) // idle for longer than server_idle_timeout, and older than server_lifetime
		if st := w.stats(); st.Idle != 3 || st.Min != 3 {
			t.Errorf("%+v", st)
		}
		w.pool.Leave()
		pass(time.Hour)
		if st := w.stats(); st.Idle != 0 {
			t.Errorf("without clients: %+v", st)
		}
	})
	cfg.Databases = map[string]config.Database{"forced": {User: "u", MinPoolSize: 2}, "*": {}}
	cfg.MinPoolSize = 0
	inBubble(t, cfg, func(t *testing.T, w *world) {
		pass(time.Hour)
		pools, _ := w.set.Stats()
		i := slices.IndexFunc(pools, func(p Stats) bool { return p.Database == "forced" })
		if i < 0 || pools[i].Idle != 2 || pools[i].Clients != 0 {
			t.Errorf("%+v", pools)
		}
	})
}

// other makes the world's client one of another pool.
func (w *world) other(t *testing.T, database, user string) *world {
	t.Helper()
	p, err := w.set.Get(database, user)
	if err != nil {
		t.Fatal(err)
	}
	return &world{set: w.set, pool: p, fake: w.fake}
}

func TestPoolsOfADatabaseOrAUserShareALimit(t *testing.T) {
	for name, limit := range map[string]func(*config.Pooler) (database, user string){
		"max_db_connections":   func(cfg *config.Pooler) (string, string) { cfg.MaxDBConnections = 2; return "d", "v" },
		"max_user_connections": func(cfg *config.Pooler) (string, string) { cfg.MaxUserConnections = 2; return "e", "u" },
		"of the database": func(cfg *config.Pooler) (string, string) {
			cfg.Databases = map[string]config.Database{"d": {MaxDBConnections: 2}}
			return "d", "v"
		},
		"of the user": func(cfg *config.Pooler) (string, string) {
			cfg.Users = map[string]config.User{"u": {MaxUserConnections: 2}}
			return "e", "u"
		},
	} {
		cfg := settings(5)
		database, user := limit(&cfg)
		inBubble(t, cfg, func(t *testing.T, w *world) {
			there := w.other(t, database, user)
			first, second := w.borrow().must(t), w.borrow().must(t)
			third, from := w.borrow(), there.borrow()
			pass(10 * time.Second)
			if !third.waits() || !from.waits() || len(w.fake.connects()) != 2 {
				t.Fatalf("%s: more than two servers", name)
			}
			w.pool.Release(first, session.Clean)
			synctest.Wait()
			if third.must(t) != first {
				t.Errorf("%s: it was not handed on", name)
			}
			w.pool.Release(first, session.Clean) // nobody else of this pool wants it: it makes room
			pass(time.Second)
			from.must(t)
			if st := w.stats(); st.Idle != 0 || st.Active != 1 {
				t.Errorf("%s: %+v", name, st)
			}
			w.pool.Release(second, session.Broken)
			pass(time.Second)
			there.borrow().must(t)
			if perDatabase, perUser, _ := w.set.LimitHits(); perDatabase+perUser == 0 {
				t.Errorf("%s: it was not counted", name)
			}
		})
	}
}

func TestAServerThatWasIdleForLongIsTestedFirst(t *testing.T) {
	cfg := settings(2)
	cfg.ServerCheckQuery, cfg.ServerCheckDelay = emptyQuery, second(30)
	inBubble(t, cfg, func(t *testing.T, w *world) {
		server := w.borrow().must(t)
		w.pool.Release(server, session.Clean)
		pass(20 * time.Second)
		if w.borrow().must(t) != server || len(w.fake.texts) > 0 {
			t.Errorf("after 20 s: %q", w.fake.texts)
		}
		w.pool.Release(server, session.Clean)
		pass(40 * time.Second)
		if st := w.stats(); st.Used != 1 || st.Idle != 0 {
			t.Errorf("after 40 s: %+v", st)
		}
		b := w.borrow()
		pass(time.Millisecond)
		if b.must(t) != server || !slices.Equal(w.fake.texts, []string{""}) {
			t.Errorf("tested with %q", w.fake.texts)
		}
		w.pool.Release(server, session.Clean)
		pass(40 * time.Second)
		w.fake.set(func(f *postgres) { f.hangs = true })
		b = w.borrow()
		pass(20 * time.Second) // server_reset_timeout
		if b.must(t) == server {
			t.Error("a server that does not answer was lent")
		}
	})
	cfg.ServerCheckQuery, cfg.ServerCheckDelay = "select 1", 0
	inBubble(t, cfg, func(t *testing.T, w *world) {
		server := w.borrow().must(t)
		for range 3 {
			w.pool.Release(server, session.Clean)
			b := w.borrow()
			pass(time.Millisecond)
			b.must(t)
		}
		if !slices.Equal(w.fake.texts, []string{"select 1", "select 1", "select 1"}) {
			t.Errorf("%q", w.fake.texts)
		}
	})
}

func TestTheResetQueryComesBeforeDiscard(t *testing.T) {
	cfg := settings(1)
	cfg.ServerResetQuery, cfg.ServerResetQueryAlways = "select reset", "on"
	inBubble(t, cfg, func(t *testing.T, w *world) {
		server := w.borrow().must(t)
		w.pool.Release(server, session.Clean)
		pass(time.Millisecond)
		if w.borrow().must(t) != server || !slices.Equal(w.fake.texts, []string{"select reset", "DISCARD ALL"}) {
			t.Errorf("%q", w.fake.texts)
		}
	})
}

func TestLifetimesDiffer(t *testing.T) {
	l := limits{lifetime: time.Hour, jitter: 10}
	seen := map[time.Duration]bool{}
	for range 100 {
		span := l.lifespan()
		if span > time.Hour || span < 54*time.Minute {
			t.Errorf("%v", span)
		}
		seen[span] = true
	}
	if len(seen) < 50 {
		t.Errorf("%d of 100 lifetimes differ", len(seen))
	}
	l.jitter = 0
	if l.lifespan() != time.Hour || (&limits{jitter: 10}).lifespan() != 0 {
		t.Error("without jitter, or without a lifetime")
	}
}

func TestWhatADatabaseHasCountedStaysWhenItsPoolGoes(t *testing.T) {
	inBubble(t, settings(1), func(t *testing.T, w *world) {
		w.pool.CountLogin(time.Millisecond)
		w.pool.CountQueries(7, time.Second)
		w.pool.Leave()
		pass(time.Hour)
		if pools, _ := w.set.Stats(); len(pools) > 0 {
			t.Errorf("%+v", pools)
		}
		if got := w.set.Totals()["d"]; got.Queries != 7 || got.QueryTime != time.Second || got.Logins != 1 {
			t.Errorf("%+v", got)
		}
		if len(w.set.databases)+len(w.set.users) > 0 {
			t.Error("quotas stay")
		}
	})
}

func TestAnIdlePoolThatIsPausedIsReloadedAndKilledInAnyOrder(t *testing.T) {
	inBubble(t, settings(1), func(t *testing.T, w *world) {
		server := w.borrow().must(t)
		if err := w.set.Hold(""); err != nil {
			t.Fatal(err)
		}
		if err := w.set.Hold("d"); err != nil {
			t.Fatal(err)
		}
		cfg := settings(3)
		cfg.Databases = map[string]config.Database{"d": {Host: "127.0.0.9"}}
		if err := w.set.Reload(cfg, w.set.passwords); err != nil {
			t.Fatal(err)
		}
		if err := w.set.Reconnect("x"); !errors.Is(err, ErrUnknownDatabase) {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.set.WaitClose(ctx, "d"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("while it is lent: %v", err)
		}
		w.pool.Release(server, session.Dirty)
		if err := w.set.WaitClose(t.Context(), ""); err != nil {
			t.Error(err)
		}
		b := w.borrow()
		for _, database := range []string{"d", ""} {
			if !b.waits() {
				t.Error("it was lent a server")
			}
			if err := w.set.Resume(database); err != nil {
				t.Error(err)
			}
			pass(time.Second)
		}
		b.must(t)
	})
}
