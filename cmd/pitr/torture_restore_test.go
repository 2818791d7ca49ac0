package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"pitr/internal/pg"
	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
	"pitr/internal/repo"
)

// gap is WAL that the server has removed before it was archived.
type gap struct{ from, to pg.LSN }

// readContent reads all tables of a restored copy. What was prepared there and not committed is rolled back before: it may have locked tables.
func readContent(ctx context.Context, h *harness, port int) (*content, error) {
	conn, err := h.connect(ctx, port)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(ctx) }()
	rows, err := conn.Query(ctx, "select gid from pg_prepared_xacts")
	if err != nil {
		return nil, err
	}
	gids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	for _, gid := range gids {
		if _, err := conn.Exec(ctx, fmt.Sprintf("rollback prepared '%s'", gid)); err != nil {
			return nil, err
		}
	}
	c := &content{state: map[int]int64{}, counter: map[int]int64{}, side: map[int][]string{}}
	if c.journal, err = readJournal(ctx, conn); err != nil {
		return nil, err
	}
	for table, into := range map[string]map[int]int64{"select key, value from state": c.state, "select key, total from counter": c.counter} {
		if err := readPairs(ctx, conn, table, func(key int, value int64) { into[key] = value }); err != nil {
			return nil, err
		}
	}
	rows, err = conn.Query(ctx, "select substr(tablename, 6)::int from pg_tables where tablename like 'side\\_%'")
	if err != nil {
		return nil, err
	}
	clients, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		return nil, err
	}
	for _, client := range clients {
		c.side[client] = nil
		err := readPairs(ctx, conn, fmt.Sprintf("select key, value from side_%d", client), func(key int, value int64) {
			c.side[client] = append(c.side[client], fmt.Sprint(key, " ", value))
		})
		if err != nil {
			return nil, err
		}
		slices.Sort(c.side[client])
	}
	return c, nil
}

func readJournal(ctx context.Context, conn *pgx.Conn) (map[entry]bool, error) {
	rows, err := conn.Query(ctx, "select client, seq, part, xid, op, key, value from journal")
	if err != nil {
		return nil, err
	}
	journal := map[entry]bool{}
	var e entry
	_, err = pgx.ForEachRow(rows, []any{&e.Client, &e.Seq, &e.Part, &e.XID, &e.Op, &e.Key, &e.Value}, func() error {
		journal[e] = true
		return nil
	})
	return journal, err
}

func readPairs(ctx context.Context, conn *pgx.Conn, query string, each func(int, int64)) error {
	rows, err := conn.Query(ctx, query)
	if err != nil {
		return err
	}
	var key int
	var value int64
	_, err = pgx.ForEachRow(rows, []any{&key, &value}, func() error {
		each(key, value)
		return nil
	})
	return err
}

// transactions are those of which the journal has a row.
func (c *content) transactions() map[transactionID]bool {
	all := map[transactionID]bool{}
	for e := range c.journal {
		all[transactionID{e.Client, e.Seq}] = true
	}
	return all
}

// difference is how a restored copy differs from what it should be, row by row.
type difference struct{ missing, extra, wrong int }

func (d difference) any() bool { return d != difference{} }

func (d *difference) add(other difference) {
	d.missing += other.missing
	d.extra += other.extra
	d.wrong += other.wrong
}

// compare counts rows of the journal, and of the tables that it speaks of.
func compare(got, want *content) difference {
	var d difference
	for e := range want.journal {
		if !got.journal[e] {
			d.missing++
		}
	}
	for e := range got.journal {
		if !want.journal[e] {
			d.extra++
		}
	}
	d.wrong = differing(got.state, want.state) + differing(got.counter, want.counter)
	for client := range tortureWriters {
		g, gotTable := got.side[client]
		w, wantTable := want.side[client]
		if gotTable != wantTable || !slices.Equal(g, w) {
			d.wrong++
		}
	}
	return d
}

func differing(got, want map[int]int64) (n int) {
	for key, value := range want {
		if other, found := got[key]; !found || other != value {
			n++
		}
	}
	for key := range got {
		if _, found := want[key]; !found {
			n++
		}
	}
	return n
}

// restored brings a target back, starts it, and returns what it holds.
func (t *torture) restored(ctx context.Context, target string) (*content, error) {
	t.t.Helper()
	into := filepath.Join(t.dir, "restored")
	port := postmastertest.FreePort(t.t)
	_, err := t.pitr(ctx, "restore", "--to", target, "--into", into, "--start", "--port", strconv.Itoa(port))
	var c *content
	if err == nil {
		if c, err = readContent(ctx, t.harness, port); err != nil {
			t.t.Fatal(err)
		}
	}
	if err := t.install.Attach(into, port).Stop(ctx, postmaster.Immediate); err != nil {
		t.t.Fatal(err)
	}
	if err := os.RemoveAll(into); err != nil {
		t.t.Fatal(err)
	}
	return c, err
}

// instants are what a round is restored to, and what must be there.
type instants struct {
	ledger  *ledger
	backups []repo.Backup // on the way to the timeline, oldest first
	gaps    []gap
	stepped bool // the server's clock was
	first   time.Time
	newest  time.Time
}

func (t *torture) instants(ctx context.Context, l *ledger) *instants {
	t.t.Helper()
	in := &instants{ledger: l, gaps: t.gaps, stepped: t.primary.clock != ""}
	for _, b := range t.backups(ctx) {
		if t.left == 0 || b.Timeline != 1 || b.Stop <= t.left {
			in.backups = append(in.backups, b)
		}
	}
	if len(in.backups) == 0 || len(l.ends) == 0 {
		t.t.Fatalf("%d backups, %d ends: the round shows nothing", len(in.backups), len(l.ends))
	}
	in.first = in.backups[0].StopTime
	for _, end := range l.ends {
		if end.Time.After(in.newest) {
			in.newest = end.Time
		}
	}
	return in
}

// backups are those in the repository, in the order of the log.
func (t *torture) backups(ctx context.Context) []repo.Backup {
	t.t.Helper()
	var list []struct {
		repo.Backup
		Packs int `json:"packs"`
	}
	if err := json.Unmarshal([]byte(t.mustPitr(ctx, "backups", "--json")), &list); err != nil {
		t.t.Fatal(err)
	}
	var all []repo.Backup
	for _, b := range list {
		all = append(all, b.Backup)
	}
	slices.SortFunc(all, func(a, b repo.Backup) int { return int(int64(a.Stop) - int64(b.Stop)) })
	return all
}

// pick picks a target: mostly anywhere, but also exactly at a commit and a microsecond before one, the last one, and within a gap.
func (in *instants) pick(rng *rand.Rand, i int) time.Time {
	ends := in.ledger.ends
	end := ends[rng.IntN(len(ends))].Time
	at := end.Add(time.Duration(rng.IntN(50_000)) * time.Microsecond)
	if rng.IntN(2) == 0 && in.newest.After(in.first) {
		at = in.first.Add(time.Duration(rng.Int64N(int64(in.newest.Sub(in.first)))))
	}
	switch {
	case i == 0:
		at = end
	case i == 1:
		at = end.Add(-time.Microsecond)
	case i == 2:
		at = in.newest
	case i == 3 && len(in.gaps) > 0:
		gap := in.gaps[0]
		inside := slices.DeleteFunc(slices.Clone(ends), func(e ledgerEnd) bool { return e.LSN < gap.from || e.LSN > gap.to })
		if len(inside) > 0 {
			at = inside[len(inside)/2].Time
		}
	}
	if at.Before(in.first) {
		at = in.first
	}
	return at.Truncate(time.Microsecond)
}

// verdict is what must come of a restore to an instant.
type verdict struct {
	want    []ledgerEnd
	refusal string // why it may be refused; empty: it may not
}

// judge follows Postgres's rule: recovery from a backup stops before the first end of a transaction, in the order of the log, that is later.
// The backup is the newest that holds nothing later.
func (in *instants) judge(at, now time.Time) verdict {
	ends := in.ledger.ends
	if at.After(now) {
		return verdict{refusal: "it lies in the future"}
	}
	for _, b := range slices.Backward(in.backups) {
		if b.StopTime.After(at) {
			continue
		}
		stop := slices.IndexFunc(ends, func(e ledgerEnd) bool { return e.LSN >= b.Start && e.Time.After(at) })
		if stop >= 0 && ends[stop].LSN < b.Stop {
			continue
		}
		v := verdict{want: ends}
		if stop >= 0 {
			v.want = ends[:stop]
		} else if in.stepped {
			v.refusal = "nothing later is known, and the clock was stepped"
		}
		for _, g := range in.gaps {
			if b.Start < g.to && (stop < 0 || ends[stop].LSN >= g.from) {
				v.refusal = "WAL on the way is lost"
			}
		}
		return v
	}
	return verdict{refusal: "no backup precedes it"}
}

// restoreToInstants restores to random instants and compares with the ledger.
func (t *torture) restoreToInstants(ctx context.Context, l *ledger, count int) {
	t.t.Helper()
	in := t.instants(ctx, l)
	for i := range count {
		at := in.pick(t.rng, i)
		for range 10 { // a clock that was stepped forwards has written times that cannot be restored to before they come
			if i > 2 && at.After(time.Now()) {
				at = in.pick(t.rng, i)
			}
		}
		v := in.judge(at, time.Now())
		target := at.Format("2006-01-02 15:04:05.000000Z07:00")
		got, err := t.restored(ctx, target)
		t.result.restores++
		switch {
		case err != nil && v.refusal != "" && strings.Contains(err.Error(), "exit status 4"):
			t.result.refused++
		case err != nil:
			t.t.Errorf("restore to %s (may be refused: %q): %v", target, v.refusal, err)
		case v.want == nil:
			t.t.Errorf("restore to %s was not refused, although %s", target, v.refusal)
		default:
			d := compare(got, contentAfter(v.want))
			t.result.difference.add(d)
			if d.any() {
				t.t.Errorf("at %s: %d rows are missing, %d are extra, %d differ, of %d", target, d.missing, d.extra, d.wrong, len(got.journal))
			}
		}
	}
}

// checkLost compares what `pitr log --lost` tells of the branch that a failover has left with what was committed on it. The archive may
// have lagged behind: it must tell the first of them, without a hole, and nothing else.
func (t *torture) checkLost(ctx context.Context, l *ledger) {
	t.t.Helper()
	var told []pg.LSN
	for line := range strings.Lines(t.mustPitr(ctx, "log", "--lost", "--json")) {
		var event struct {
			Transaction *struct {
				LSN       pg.LSN `json:"lsn"`
				Committed bool   `json:"committed"`
			} `json:"transaction"`
		}
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			t.t.Fatal(err)
		}
		if event.Transaction != nil && event.Transaction.Committed {
			told = append(told, event.Transaction.LSN)
		}
	}
	var dead []pg.LSN
	for _, end := range l.dead {
		if end.Committed {
			dead = append(dead, end.LSN)
		}
	}
	t.result.lostTold += len(told)
	if len(told) > len(dead) || !slices.Equal(told, dead[:len(told)]) {
		t.t.Errorf("pitr log --lost told %d commits, which are not the first of the %d on the dead branch", len(told), len(dead))
	}
}
