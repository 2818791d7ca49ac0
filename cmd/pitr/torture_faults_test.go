package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

// fault is something that goes wrong in a round.
type fault struct {
	name   string
	fits   func(*torture) bool // nil: always
	strike func(context.Context, *torture)
}

func onS3(t *torture) bool { return t.store != nil }

// faults are all kinds. Those of the store last until it is healed; the others end by themselves.
var faults = []fault{
	{name: "kill archiver", strike: func(ctx context.Context, t *torture) {
		t.kill("archiver")
		t.pause(ctx, 0, 300)
		t.launch("archiver")
	}},
	{name: "kill pooler", strike: func(ctx context.Context, t *torture) {
		t.kill("pooler")
		t.pause(ctx, 0, 300)
		t.launch("pooler")
	}},
	{name: "kill Postgres", strike: func(ctx context.Context, t *torture) {
		t.primary.kill()
		t.pause(ctx, 0, 300)
		t.startPrimary(ctx)
	}},
	{name: "backup", strike: func(ctx context.Context, t *torture) { t.backupAside(ctx) }},
	{name: "slot dropped", strike: func(ctx context.Context, t *torture) { t.dropSlot(ctx) }},
	{name: "slot dropped, WAL gone", strike: func(ctx context.Context, t *torture) { t.dropSlotAndWAL(ctx) }, fits: func(t *torture) bool { return t.gaps == nil }},
	{name: "failover", strike: func(ctx context.Context, t *torture) { t.failover(ctx) }, fits: func(t *torture) bool { return t.standby != nil }},
	{name: "clock step", strike: func(_ context.Context, t *torture) {
		offsets := []time.Duration{0, -time.Minute, 2 * time.Minute, -time.Hour, time.Hour, 3 * time.Hour, -7 * time.Second, 7 * time.Second}
		t.primary.step(offsets[t.rng.IntN(len(offsets))])
	}, fits: func(t *torture) bool { return t.primary.clock != "" }},

	{name: "kill store", fits: onS3, strike: func(ctx context.Context, t *torture) {
		t.store.server.Kill()
		t.pause(ctx, 100, 1500)
		t.store.server.Restart()
	}},
	{name: "store 500", fits: onS3, strike: sickRequests(faultError500)},
	{name: "store 503", fits: onS3, strike: sickRequests(faultSlowDown)},
	{name: "store answer lost", fits: onS3, strike: sickRequests(faultAnswerLost)},
	{name: "store truncated", fits: onS3, strike: sickRequests(faultTruncated)},
	{name: "store latency", fits: onS3, strike: sickWire("latency", `"latency": 150, "jitter": 100`)},
	{name: "store bandwidth", fits: onS3, strike: sickWire("bandwidth", `"rate": 400`)},
	{name: "store timeout", fits: onS3, strike: sickWire("timeout", `"timeout": 0`)},
	{name: "store reset", fits: onS3, strike: sickWire("reset_peer", `"timeout": 30`)},
	{name: "store slow close", fits: onS3, strike: sickWire("slow_close", `"delay": 400`)},
	{name: "store away", fits: func(t *torture) bool { return t.store == nil }, strike: func(ctx context.Context, t *torture) {
		if err := os.Rename(t.repository, t.repository+".away"); err != nil {
			t.t.Fatal(err)
		}
		t.pause(ctx, 100, 1500)
		if err := os.Rename(t.repository+".away", t.repository); err != nil {
			t.t.Fatal(err)
		}
	}},
}

// faultNamed finds a kind.
func faultNamed(name string) fault {
	for _, f := range faults {
		if f.name == name {
			return f
		}
	}
	panic("torture: no fault " + name)
}

func sickRequests(kind string) func(context.Context, *torture) {
	return func(ctx context.Context, t *torture) {
		t.sick = true
		t.store.requests.set(kind, 0.3+0.6*t.rng.Float64())
		t.pause(ctx, 300, 1000)
	}
}

func sickWire(kind, attributes string) func(context.Context, *torture) {
	return func(ctx context.Context, t *torture) {
		t.store.heal(ctx) // one toxic of a kind at a time
		t.sick = true
		t.store.toxic(t.t, kind, attributes)
		t.pause(ctx, 300, 1000)
	}
}

// storm lets faults strike one after the other. Every one that is wanted does, and others are chosen at random.
func (t *torture) storm(ctx context.Context, wanted []string, others int) {
	t.t.Helper()
	var chosen []fault
	for _, name := range wanted {
		chosen = append(chosen, faultNamed(name))
	}
	for range others {
		chosen = append(chosen, faults[t.rng.IntN(len(faults))])
	}
	t.rng.Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
	for _, f := range chosen {
		t.pause(ctx, 200, 700)
		if t.sick && t.rng.IntN(2) == 0 {
			t.heal(ctx)
		}
		if f.fits != nil && !f.fits(t) {
			continue
		}
		t.note(f.name)
		f.strike(ctx, t)
		t.lastFault = time.Now()
	}
}

// heal ends what is wrong with the store.
func (t *torture) heal(ctx context.Context) {
	if t.sick {
		t.store.heal(ctx)
		t.sick, t.lastFault = false, time.Now()
	}
}

// pause waits for a random number of milliseconds.
func (t *torture) pause(ctx context.Context, least, most int) {
	waitFor(ctx, time.Duration(least+t.rng.IntN(most-least+1))*time.Millisecond)
}

// backupAside takes a base backup while the storm goes on. It may fail; what matters is that it is never wrong.
func (t *torture) backupAside(ctx context.Context) {
	t.asides.Go(func() {
		once, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		if _, err := t.pitr(once, "backup"); err != nil {
			t.t.Logf("a backup failed during the storm: %.300s", err)
		}
	})
}

// dropSlot takes the slot from under the archiver.
func (t *torture) dropSlot(ctx context.Context) {
	t.primary.query(ctx, `do $$ begin
	for i in 1..200 loop
		begin
			perform pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = 'pitr' and active_pid is not null;
			perform pg_sleep(0.005);
			perform pg_drop_replication_slot('pitr');
			return;
		exception when object_in_use then null; when undefined_object then return;
		end;
	end loop;
end $$`)
}

// dropSlotAndWAL drops the slot while no archiver runs, and lets the server remove WAL that the archive lacks. It notes where the gap must lie.
func (t *torture) dropSlotAndWAL(ctx context.Context) {
	const slot = "from pg_replication_slots where slot_name = 'pitr'"
	t.heal(ctx)
	t.eventually(ctx, "the slot keeps WAL", func() bool {
		return t.primary.query(ctx, "select count(*) "+slot+" and restart_lsn is not null") == "1"
	})
	t.kill("archiver")
	t.eventually(ctx, "the walsender has gone", func() bool {
		return t.primary.query(ctx, "select count(*) "+slot+" and active") == "0"
	})
	from := t.primary.lsn(ctx, "restart_lsn "+slot)
	t.primary.alter(ctx, "wal_keep_size", "0")
	t.dropSlot(ctx)
	t.pause(ctx, 300, 600)
	for range 2 {
		t.primary.query(ctx, "select pg_switch_wal()")
		t.eventually(ctx, "the copies of the WAL are made", func() bool {
			return t.primary.query(ctx, "select count(*) from pg_ls_archive_statusdir() where name like '%.ready'") == "0"
		})
		t.primary.query(ctx, "checkpoint")
	}
	t.gaps = append(t.gaps, gap{from: from})
	t.launch("archiver")
	t.waitReady(ctx, "archiver")
	t.primary.alter(ctx, "wal_keep_size", tortureKeep)
	t.gaps[len(t.gaps)-1].to = t.primary.lsn(ctx, "pg_current_wal_lsn()")
}

// failover kills the primary and promotes the standby, which may have been left behind.
func (t *torture) failover(ctx context.Context) {
	standby, old := t.standby, t.primary
	behind := !t.synchronous && t.rng.IntN(2) == 0
	if behind {
		standby.kill()
		t.pause(ctx, 200, 500)
	}
	old.kill()
	if behind {
		standby.start(ctx)
	}
	t.left = standby.promote(ctx)
	t.old, t.primary, t.standby = old, standby, nil
	t.server = standby.server
	t.forgive(ctx)
	if t.synchronous {
		t.primary.alter(ctx, "synchronous_standby_names", "pitr")
	}
	t.kill("pooler")
	t.writeConfig(t.own["pooler"], fmt.Sprintf("127.0.0.1:%d", t.primary.options.Port))
	t.launch("pooler")
}

// forgive notes acknowledged transactions that the new primary does not have: a failover without synchronous standby loses them, not the archive.
func (t *torture) forgive(ctx context.Context) {
	conn, err := t.connect(ctx, t.primary.options.Port)
	if err != nil {
		t.t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	journal, err := readJournal(ctx, conn)
	if err != nil {
		t.t.Fatal(err)
	}
	has := (&content{journal: journal}).transactions()
	for id := range t.work.acknowledgedSoFar() {
		if !has[id] {
			t.forgiven[id] = true
		}
	}
	if t.synchronous && len(t.forgiven) > 0 {
		t.t.Errorf("the synchronous standby lacks %d acknowledged transactions: the test's failover is not what it should be", len(t.forgiven))
	}
}

// startPrimary starts the primary again after it was killed.
func (t *torture) startPrimary(ctx context.Context) {
	t.primary.start(ctx)
	t.server = t.primary.server
}

// note counts a fault.
func (t *torture) note(name string) {
	t.struck = append(t.struck, name)
}
