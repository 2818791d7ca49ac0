package archiver

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestRiskIsHowSoonTheServerGivesWALUp(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		what string
		slot Slot
		want Risk
	}{
		{"an idle server", Slot{Status: "reserved", Retained: 1 << 20, Safe: gib}, RiskNone},
		{"a server without a limit", Slot{Status: "reserved", Retained: gib, Safe: -1, Rate: 1e9}, RiskNone},
		{"the same, past max_wal_size", Slot{Status: "extended", Retained: gib, Safe: -1, Rate: 1e9}, RiskWarning},
		{"little waits, the limit is small", Slot{Status: "reserved", Retained: 16 << 20, Safe: 64 << 20, Rate: 1e7}, RiskNone},
		{"much waits, hours are left", Slot{Status: "reserved", Retained: gib, Safe: 100 * gib, Rate: 1e6}, RiskNone},
		{"half an hour is left", Slot{Status: "reserved", Retained: gib, Safe: 18e8, Rate: 1e6}, RiskWarning},
		{"five minutes are left", Slot{Status: "extended", Retained: gib, Safe: 3e8, Rate: 1e6}, RiskCritical},
		{"nothing is left", Slot{Status: "extended", Retained: gib, Safe: 0, Rate: 1e6}, RiskCritical},
		{"nothing is left, and nothing is written", Slot{Status: "unreserved", Retained: gib, Safe: 0}, RiskCritical},
		{"an invalidated slot", Slot{Status: "lost", Safe: -1}, RiskLost},
	} {
		if got := c.slot.assess(); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
	if left, ok := (Slot{Safe: 5e15, Rate: 1e-3}).Left(); !ok || left != leftMax {
		t.Errorf("next to nothing is written: %s, %v", left, ok)
	}
	var p pace
	begin := time.Unix(1_790_000_000, 0)
	if rate := p.note(1000, begin); rate != 0 {
		t.Errorf("the first reading says %g", rate)
	}
	if rate := p.note(11_000, begin.Add(time.Second)); rate != 10_000 {
		t.Errorf("10,000 bytes in a second are %g", rate)
	}
	if rate := p.note(11_000, begin.Add(2*time.Second)); rate != 8000 {
		t.Errorf("behind an idle second it is %g", rate)
	}
	if rate := p.note(500, begin.Add(3*time.Second)); rate != 8000 {
		t.Errorf("a server that is behind itself, after a failover, makes it %g", rate)
	}
}

func TestCommitsThatWaitForEverAreTold(t *testing.T) {
	for _, c := range []struct {
		state, candidates, names, apply string
		want                            commitWait
	}{
		{"", "0", "", "f", commitWait{}},
		{"async", "0", "", "t", commitWait{}},
		{"sync", "1", "pitr", "f", commitWait{ForUs: true}},
		{"sync", "1", "pitr", "t", commitWait{ForUs: true, Stuck: true}},
		{"sync", "2", "FIRST 2 (pitr, other)", "t", commitWait{ForUs: true, Stuck: true}},
		{"potential", "1", "other, pitr", "t", commitWait{}},
		{"quorum", "2", "ANY 1 (pitr, other)", "t", commitWait{ForUs: true}},
		{"quorum", "2", "any 2(pitr, other)", "t", commitWait{ForUs: true, Stuck: true}},
		{"quorum", "3", "ANY 2 (*)", "t", commitWait{ForUs: true}},
	} {
		got, err := parseCommitWait([][]string{{c.state, c.candidates, c.names, c.apply}})
		if err != nil || got != c.want {
			t.Errorf("%+v: %+v, %v", c, got, err)
		}
	}

	b := newBench(t, 1)
	a := b.run(b.options())
	a.archived(b.written())
	b.query("create table t (i int)")
	b.query("create role app; alter role app set synchronous_commit = remote_apply")
	b.query("alter system set synchronous_standby_names = 'pitr'")
	b.query("select pg_reload_conf()")
	until(t, "the archiver knows that commits wait for it, and some for ever", func() bool {
		st := a.Stats()
		return st.CommitsWait && st.CommitsStuck
	})
	if !strings.Contains(b.log.String(), "remote_apply wait for ever") {
		t.Error("the log does not say so")
	}
	b.query("insert into t values (1)") // with synchronous_commit = on
	b.query("alter role app reset synchronous_commit")
	until(t, "nothing waits for ever", func() bool { st := a.Stats(); return st.CommitsWait && !st.CommitsStuck })
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
}

// TestSlotThatIsAboutToLoseWALIsToldBeforeItDoes holds the archiver up while the server writes towards max_slot_wal_keep_size.
func TestSlotThatIsAboutToLoseWALIsToldBeforeItDoes(t *testing.T) {
	b := newBench(t, 1, "max_slot_wal_keep_size=400MB", "max_wal_size=32MB")
	down := atomic.Bool{}
	b.store.onPut(func(_ context.Context, _ string, _ []byte, put func() error) error {
		if down.Load() {
			return errors.New("injected: 503 SlowDown")
		}
		return put()
	})
	a := b.run(b.options())
	a.archived(b.written())
	until(t, "the slot is looked at", func() bool { return a.Stats().Slot.Status == "reserved" && a.Stats().Slot.Safe > 0 })
	down.Store(true)
	b.query("create table t (x text); alter table t alter x set storage external")
	var worst Risk
	for range 300 {
		b.query("insert into t select string_agg(md5(i::text || random()::text), '') from generate_series(1, 32768) i")
		if worst = a.Stats().Slot.Risk; worst == RiskCritical {
			break
		}
	}
	until(t, "the risk is critical", func() bool { return a.Stats().Slot.Risk == RiskCritical })
	st := a.Stats()
	if st.Gaps > 0 {
		t.Fatal("it was told too late")
	}
	if left, ok := st.Slot.Left(); ok && left > criticalLeft {
		t.Errorf("%s left, %+v", left, st.Slot)
	}
	down.Store(false)
	a.archived(b.written())
	until(t, "the risk is over", func() bool { return a.Stats().Slot.Risk == RiskNone })
	if log := b.log.String(); !strings.Contains(log, "risk=critical") || !strings.Contains(log, "safer again") {
		t.Error("the log does not say so")
	}
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("told with %d bytes kept and %d left to write; %d bytes are equal", st.Slot.Retained, st.Slot.Safe, b.compareWAL(1))
}
