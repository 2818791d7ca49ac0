package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pitr/internal/pg"
	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
	"pitr/internal/store/s3/s3test"
)

// TestTorture kills the archiver and the pooler while clients write, and restores to random instants. What must come back is decided by
// pg_waldump, not by our decoder. `make torture ROUNDS=20` runs more rounds.
func TestTorture(t *testing.T) {
	rounds := envInt(t, "PITR_TORTURE_ROUNDS", 3)
	seed := envInt(t, "PITR_TORTURE_SEED", int(time.Now().UnixNano()%1_000_000_000))
	t.Logf("seed %d: PITR_TORTURE_SEED=%d repeats it", seed, seed)
	for round := range rounds {
		store := "file"
		if round%2 == 1 {
			store = "s3"
		}
		t.Run(fmt.Sprintf("round %d on %s", round+1, store), func(t *testing.T) {
			tortureRound(t, rand.New(rand.NewPCG(uint64(seed), uint64(round))), store)
		})
	}
}

func envInt(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Sizes of a round.
const (
	tortureWriters  = 16
	tortureSpan     = 5 * time.Second
	tortureInstants = 10
)

// ledgerRow is a row of the ledger: which client, its how manieth transaction, which row of it.
type ledgerRow struct {
	Client, Seq, Part int
}

func tortureRound(t *testing.T, rng *rand.Rand, storeKind string) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	store := ""
	if storeKind == "s3" {
		store = s3test.Start(t).URL("torture")
	}
	h := newHarness(t, store)
	h.start(ctx, "archiver")
	h.start(ctx, "pooler")
	h.psql(ctx, "create table ledger (client int, seq int, part int, xid bigint, primary key (client, seq, part))")
	h.mustPitr(ctx, "backup")

	acked := tortureWork(ctx, h, rng)
	h.archived(ctx)
	ledger := readLedger(ctx, t, h)
	committed := ledger.rows(ctx, t, h)
	lost := 0
	for row := range acked {
		if !committed[row] {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d acknowledged transactions are not in the table", lost, len(acked))
	}
	missing, extra := 0, 0
	for i := range tortureInstants {
		m, e := tortureRestore(ctx, h, ledger, ledger.instant(rng, i))
		missing, extra = missing+m, extra+e
	}
	t.Logf("%d acknowledged rows, %d in the table, %d ends in the ledger; %d restores: %d missing, %d extra", len(acked), len(committed), len(ledger.ends),
		tortureInstants, missing, extra)
	if len(acked) < 100 {
		t.Errorf("only %d rows were acknowledged: the round shows nothing", len(acked))
	}
}

// tortureWork lets writers write at full speed through the pooler while services are killed, and returns what was acknowledged.
func tortureWork(ctx context.Context, h *harness, rng *rand.Rand) map[ledgerRow]bool {
	var mu sync.Mutex
	acked := map[ledgerRow]bool{}
	var stop atomic.Bool
	var writers sync.WaitGroup
	for client := range tortureWriters {
		own := rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))
		writers.Go(func() {
			for seq := 0; !stop.Load(); {
				seq = tortureConnection(ctx, h, own, client, seq, &stop, func(row ledgerRow) {
					mu.Lock()
					defer mu.Unlock()
					acked[row] = true
				})
			}
		})
	}
	for end := time.Now().Add(tortureSpan); time.Now().Before(end); {
		waitFor(ctx, time.Duration(300+rng.IntN(900))*time.Millisecond)
		service := []string{"archiver", "pooler"}[rng.IntN(2)]
		h.kill(service)
		waitFor(ctx, time.Duration(rng.IntN(300))*time.Millisecond)
		h.start(ctx, service)
	}
	waitFor(ctx, time.Second)
	stop.Store(true)
	writers.Wait()
	return acked
}

func waitFor(ctx context.Context, span time.Duration) {
	timer := time.NewTimer(span)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// tortureConnection writes over one connection until it breaks: single statements, transactions of several rows, and some that are
// rolled back. It returns the next sequence number; one that broke is never used again.
func tortureConnection(ctx context.Context, h *harness, rng *rand.Rand, client, seq int, stop *atomic.Bool, ack func(ledgerRow)) int {
	conn, err := h.connect(ctx, h.pooler)
	if err != nil {
		waitFor(ctx, 10*time.Millisecond)
		return seq
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	const insert = "insert into ledger values ($1, $2, $3, pg_current_xact_id()::text::bigint)"
	for ; !stop.Load(); seq++ {
		parts := 1
		if rng.IntN(4) > 0 {
			if _, err := conn.Exec(ctx, insert, client, seq, 0); err != nil {
				return seq + 1
			}
		} else {
			parts = 1 + rng.IntN(3)
			rollback := rng.IntN(3) == 0
			if err := tortureTransaction(ctx, conn, insert, client, seq, parts, rollback); err != nil {
				return seq + 1
			}
			if rollback {
				continue
			}
		}
		for part := range parts {
			ack(ledgerRow{client, seq, part})
		}
	}
	return seq
}

func tortureTransaction(ctx context.Context, conn *pgx.Conn, insert string, client, seq, parts int, rollback bool) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	for part := range parts {
		if _, err := tx.Exec(ctx, insert, client, seq, part); err != nil {
			return err
		}
	}
	if rollback {
		return tx.Rollback(ctx)
	}
	return tx.Commit(ctx)
}

// ledger is what pg_waldump says: the ends of transactions in WAL order, and the rows of each.
type ledger struct {
	ends   []ledgerEnd
	byXID  map[uint64][]ledgerRow
	first  time.Time // restores can go back to here
	newest time.Time
}

type ledgerEnd struct {
	XID       uint64
	Time      time.Time
	LSN       pg.LSN
	Committed bool
}

var waldumpEnd = regexp.MustCompile(`tx: +(\d+), lsn: ([0-9A-F/]+), prev [0-9A-F/]+, desc: (COMMIT|ABORT) (\S+ \S+) UTC`)

// readLedger runs pg_waldump over everything that the server has written since the first backup.
func readLedger(ctx context.Context, t *testing.T, h *harness) *ledger {
	t.Helper()
	l := &ledger{byXID: map[uint64][]ledgerRow{}}
	backup := backupOf(ctx, t, h)
	l.first = backup.StopTime
	end := h.psql(ctx, "select pg_current_wal_flush_lsn()")
	cmd := h.install.Command(ctx, "pg_waldump", "-p", filepath.Join(h.server.Dir, "pg_wal"), "-r", "Transaction", "-s", backup.Start.String(), "-e", end)
	cmd.Env = append(cmd.Env, "TZ=UTC")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("pg_waldump: %v\n%s", err, stderr.String())
	}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		m := waldumpEnd.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		xid, err1 := strconv.ParseUint(m[1], 10, 32)
		lsn, err2 := pg.ParseLSN(m[2])
		at, err3 := time.Parse("2006-01-02 15:04:05.999999", m[4])
		if err1 != nil || err2 != nil || err3 != nil {
			t.Fatal(err1, err2, err3)
		}
		l.ends = append(l.ends, ledgerEnd{xid, at, lsn, m[3] == "COMMIT"})
		if at.After(l.newest) {
			l.newest = at
		}
	}
	return l
}

// rows reads the table and notes the rows of each transaction.
func (l *ledger) rows(ctx context.Context, t *testing.T, h *harness) map[ledgerRow]bool {
	t.Helper()
	all := map[ledgerRow]bool{}
	for row, xid := range readRows(ctx, t, h, h.server.Port) {
		all[row] = true
		l.byXID[xid] = append(l.byXID[xid], row)
	}
	return all
}

func readRows(ctx context.Context, t *testing.T, h *harness, port int) map[ledgerRow]uint64 {
	t.Helper()
	conn, err := h.connect(ctx, port)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	result, err := conn.Query(ctx, "select client, seq, part, xid from ledger")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[ledgerRow]uint64{}
	var row ledgerRow
	var xid uint64
	if _, err := pgx.ForEachRow(result, []any{&row.Client, &row.Seq, &row.Part, &xid}, func() error {
		rows[row] = xid
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return rows
}

// instant picks a target: mostly anywhere, but also exactly at a commit and a microsecond before one.
func (l *ledger) instant(rng *rand.Rand, i int) time.Time {
	end := l.ends[rng.IntN(len(l.ends))]
	at := l.first.Add(time.Duration(rng.Int64N(int64(l.newest.Sub(l.first)))))
	switch {
	case i == 0 && end.Time.After(l.first):
		at = end.Time
	case i == 1 && end.Time.After(l.first.Add(time.Microsecond)):
		at = end.Time.Add(-time.Microsecond)
	case i == 2:
		at = l.newest
	}
	return at.Truncate(time.Microsecond)
}

// until returns the rows that must be there at an instant: those of transactions that committed, in WAL order, before the first that
// ended later.
func (l *ledger) until(at time.Time) map[ledgerRow]bool {
	want := map[ledgerRow]bool{}
	for _, end := range l.ends {
		if end.Time.After(at) {
			break
		}
		if !end.Committed {
			continue
		}
		for _, row := range l.byXID[end.XID] {
			want[row] = true
		}
	}
	return want
}

func tortureRestore(ctx context.Context, h *harness, l *ledger, at time.Time) (missing, extra int) {
	h.t.Helper()
	into := filepath.Join(h.dir, "restored")
	port := postmastertest.FreePort(h.t)
	h.mustPitr(ctx, "restore", "--to", at.Format("2006-01-02 15:04:05.000000Z07:00"), "--into", into, "--start", "--port", strconv.Itoa(port))
	got := readRows(ctx, h.t, h, port)
	if err := h.install.Attach(into, port).Stop(ctx, postmaster.Immediate); err != nil {
		h.t.Fatal(err)
	}
	if err := os.RemoveAll(into); err != nil {
		h.t.Fatal(err)
	}
	want := l.until(at)
	for row := range want {
		if _, found := got[row]; !found {
			missing++
		}
	}
	for row := range got {
		if !want[row] {
			extra++
		}
	}
	if missing+extra > 0 {
		h.t.Errorf("at %s: %d rows are missing, %d are extra, of %d", at.Format(time.RFC3339Nano), missing, extra, len(want))
	}
	return missing, extra
}
