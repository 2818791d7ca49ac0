package archiver

import (
	"fmt"
	"testing"
	"time"

	"pitr/archiver/replication"
	"pitr/internal/pg"
)

// The primary keeps a slot, in case the standby is lost.
func TestWALIsStreamedFromAStandbyAndNothingIsMissingWhenItIsLost(t *testing.T) {
	b := newBench(t, 1, "max_wal_size=32MB", "wal_keep_size=0")
	standby := b.standby()
	opt := b.options()
	opt.StreamFrom = replication.PreferStandby
	opt.DSN = fmt.Sprintf("postgres://postgres@127.0.0.1:%d,127.0.0.1:%d/postgres?sslmode=disable", b.server.Port, standby.Port)
	a := b.run(opt)
	b.pgbench("-i", "-s", "1", "-q")
	a.archived(b.written())
	senders := "select count(*) from pg_stat_replication where application_name = 'pitr'"
	onStandby, err := standby.Query(t.Context(), "postgres", "postgres", senders)
	if err != nil || onStandby != "1" || b.query(senders) != "0" {
		t.Fatalf("%s streams on the standby, %s on the primary; %v", onStandby, b.query(senders), err)
	}
	restart := func() pg.LSN {
		return b.lsn("select coalesce(max(restart_lsn), '0/0') from pg_replication_slots where slot_name = 'pitr'")
	}
	until(t, "the primary has a slot", func() bool { return restart() > 0 })
	was := restart()
	b.pgbench("-c", "2", "-t", "500", "-n")
	last := b.written()
	a.archived(last)
	until(t, "it is advanced", func() bool { return restart() > was })

	// The primary's clock is told for what is archived.
	begin := b.query("select (extract(epoch from clock_timestamp()) * 1000000)::bigint")
	until(t, "the clock goes on", func() bool {
		clock := a.session().latestClock()
		return clock.LSN >= last && fmt.Sprint(clock.Time.UnixMicro()) > begin
	})

	// The standby is lost, and the primary removes what no slot holds.
	if err := standby.Kill(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		b.pgbench("-c", "2", "-t", "300", "-n")
		b.query("select pg_switch_wal()")
		b.query("checkpoint")
	}
	last = b.written()
	a.archived(last)
	inv, err := b.repo.Inventory(t.Context(), 1, b.size, 0)
	if err != nil {
		t.Fatal(err)
	}
	if runs := inv.Runs(); len(runs) != 1 || runs[0].End < last || a.Stats().Gaps > 0 {
		t.Errorf("%d gaps; the archive has %v, and should go on to %s", a.Stats().Gaps, runs, last)
	}
}

func TestPromotionOfTheStandbyThatIsStreamedFromIsFollowed(t *testing.T) {
	b := newBench(t, 1)
	standby := b.standby()
	opt := b.options()
	opt.StreamFrom = replication.PreferStandby
	opt.DSN = fmt.Sprintf("postgres://postgres@127.0.0.1:%d,127.0.0.1:%d/postgres?sslmode=disable", b.server.Port, standby.Port)
	a := b.run(opt)
	b.pgbench("-i", "-s", "1", "-q")
	a.archived(b.written())
	if err := b.server.Kill(); err != nil {
		t.Fatal(err)
	}
	on := func(sql string) string {
		out, err := standby.Query(t.Context(), "postgres", "postgres", sql)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	on("select pg_promote()")
	until(t, "the standby is promoted", func() bool { return on("select pg_is_in_recovery()") == "f" })
	on("create table more (i int)")
	last, err := pg.ParseLSN(on("select pg_current_wal_flush_lsn()"))
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	until(t, "the second timeline is streamed", func() bool { st := a.Stats(); return st.Timeline == 2 && st.Stored >= last })
	t.Logf("the second timeline was archived %s after the promotion", time.Since(begin))
	if gaps := a.Stats().Gaps; gaps > 0 {
		t.Errorf("%d gaps", gaps)
	}
}
