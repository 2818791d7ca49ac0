package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pitr/internal/pg"
)

// ledger is what pg_waldump says of WAL that did not pass through pitr: the ends of transactions in the order of the log, with what each has
// written, on the way to the server's timeline; and beside it, what was committed on a branch that a failover has left.
type ledger struct {
	ends []ledgerEnd
	dead []ledgerEnd
}

// ledgerEnd is the end of a transaction.
type ledgerEnd struct {
	XID       uint64
	Time      time.Time
	LSN       pg.LSN
	Timeline  pg.Timeline
	Committed bool
	Entries   []entry // of the transaction and of those of its subtransactions that count
}

// stretchOfWAL is WAL of one timeline in a node's own files.
type stretchOfWAL struct {
	node     *node
	timeline pg.Timeline
	from     pg.LSN
	to       pg.LSN // zero: to where it ends
	path     bool   // it lies on the way to the server's timeline
}

// waldump reads a ledger.
type waldump struct {
	t       *testing.T
	h       *harness
	ledger  *ledger
	written map[uint64][]entry // by (sub)transactions that have not ended
}

var (
	waldumpMessage = regexp.MustCompile(`tx: +(\d+), lsn: [0-9A-F/]+, prev [0-9A-F/]+, desc: MESSAGE transactional, prefix "torture"; payload \(\d+ bytes\): ([0-9A-F ]+)`)
	waldumpEnd     = regexp.MustCompile(`tx: +(\d+), lsn: ([0-9A-F/]+), prev [0-9A-F/]+, desc: (COMMIT|ABORT)(?:_PREPARED)? (?:(\d+): )?(\S+ \S+) UTC(.*)`)
	waldumpSubs    = regexp.MustCompile(`; subxacts:((?: \d+)+)`)
)

// readLedger runs pg_waldump over stretches that follow one another; one that is not on the path comes last of its timeline.
func readLedger(ctx context.Context, h *harness, stretches []stretchOfWAL) *ledger {
	h.t.Helper()
	w := &waldump{t: h.t, h: h, ledger: &ledger{}, written: map[uint64][]entry{}}
	for _, s := range stretches {
		if s.path {
			w.read(ctx, s, &w.ledger.ends)
			continue
		}
		aside := waldump{t: h.t, h: h, ledger: w.ledger, written: map[uint64][]entry{}}
		for xid, entries := range w.written {
			aside.written[xid] = slices.Clone(entries)
		}
		aside.read(ctx, s, &w.ledger.dead)
	}
	return w.ledger
}

// read adds the ends of one stretch.
func (w *waldump) read(ctx context.Context, s stretchOfWAL, ends *[]ledgerEnd) {
	w.t.Helper()
	dir := s.node.walFiles(w.t)
	args := []string{"-p", dir, "-t", strconv.FormatUint(uint64(s.timeline), 10), "-s", s.from.String()}
	if s.to != 0 {
		args = append(args, "-e", s.to.String())
	}
	cmd := w.h.install.Command(ctx, "pg_waldump", args...)
	cmd.Env = append(cmd.Env, "TZ=UTC")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	// Without an end the log ends where no valid record follows, which pg_waldump calls an error.
	ended := strings.Contains(stderr.String(), "error in WAL record at") || strings.Contains(stderr.String(), "could not find a valid record after")
	if err != nil && !(s.to == 0 && ended) {
		w.t.Fatalf("pg_waldump %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		line := lines.Text()
		if m := waldumpMessage.FindStringSubmatch(line); m != nil {
			xid, e := parseMessage(w.t, m[1], m[2])
			w.written[xid] = append(w.written[xid], e)
		} else if m := waldumpEnd.FindStringSubmatch(line); m != nil {
			*ends = append(*ends, w.end(s.timeline, m))
		}
	}
	if err := lines.Err(); err != nil {
		w.t.Fatal(err)
	}
}

// parseMessage reads what the trigger of tortureSchema has written.
func parseMessage(t *testing.T, tx, payload string) (uint64, entry) {
	t.Helper()
	xid, err := strconv.ParseUint(tx, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	text, err := hex.DecodeString(strings.ReplaceAll(payload, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	var e entry
	if _, err := fmt.Sscan(string(text), &e.Client, &e.Seq, &e.Part, &e.XID, &e.Op, &e.Key, &e.Value); err != nil {
		t.Fatalf("message %q: %v", text, err)
	}
	return xid, e
}

// end takes what a transaction has written out of what is open.
func (w *waldump) end(tli pg.Timeline, m []string) ledgerEnd {
	w.t.Helper()
	xidText := m[1]
	if m[4] != "" {
		xidText = m[4] // of the transaction that was prepared
	}
	xid, err1 := strconv.ParseUint(xidText, 10, 32)
	lsn, err2 := pg.ParseLSN(m[2])
	at, err3 := time.Parse("2006-01-02 15:04:05.999999", m[5])
	if err1 != nil || err2 != nil || err3 != nil {
		w.t.Fatal(err1, err2, err3)
	}
	end := ledgerEnd{XID: xid, Time: at, LSN: lsn, Timeline: tli, Committed: m[3] == "COMMIT"}
	xids := []uint64{xid}
	if subs := waldumpSubs.FindStringSubmatch(m[6]); subs != nil {
		for _, field := range strings.Fields(subs[1]) {
			sub, err := strconv.ParseUint(field, 10, 32)
			if err != nil {
				w.t.Fatal(err)
			}
			xids = append(xids, sub)
		}
	}
	for _, x := range xids {
		if end.Committed {
			end.Entries = append(end.Entries, w.written[x]...)
		}
		delete(w.written, x)
	}
	return end
}

// committed are all rows of the journal that some ends have committed.
func committed(ends []ledgerEnd) map[transactionID][]entry {
	all := map[transactionID][]entry{}
	for _, end := range ends {
		for _, e := range end.Entries {
			id := transactionID{e.Client, e.Seq}
			all[id] = append(all[id], e)
		}
	}
	return all
}

// content is what all tables hold.
type content struct {
	journal map[entry]bool
	state   map[int]int64
	counter map[int]int64
	side    map[int][]string // rows of each client's side table, sorted; absent: there is no table
}

// contentAfter folds the changes that some ends have committed.
func contentAfter(ends []ledgerEnd) *content {
	var entries []entry
	for _, end := range ends {
		entries = append(entries, end.Entries...)
	}
	return fold(entries)
}

// fold carries out the changes of a journal, client by client in the order in which they came.
func fold(entries []entry) *content {
	c := &content{journal: map[entry]bool{}, state: map[int]int64{}, counter: map[int]int64{}, side: map[int][]string{}}
	for i := range tortureCounters {
		c.counter[i] = 0
	}
	sorted := slices.Clone(entries)
	slices.SortStableFunc(sorted, func(a, b entry) int {
		if a.XID != b.XID {
			return int(int64(a.XID) - int64(b.XID))
		}
		return a.Part - b.Part
	})
	for _, e := range sorted {
		c.journal[e] = true
		rows, isThere := c.side[e.Client]
		switch e.Op {
		case "put":
			c.state[e.Key] = e.Value
		case "del":
			delete(c.state, e.Key)
		case "add":
			c.counter[e.Key] += e.Value
		case "create":
			c.side[e.Client] = rows
		case "fill":
			if isThere {
				c.side[e.Client] = append(rows, fmt.Sprint(e.Key, " ", e.Value))
			}
		case "truncate":
			if isThere {
				c.side[e.Client] = nil
			}
		case "drop":
			delete(c.side, e.Client)
		}
	}
	for client := range c.side {
		slices.Sort(c.side[client])
	}
	return c
}

// walFiles is a directory with all WAL files of the node: those that its archive_command has copied, and those in pg_wal.
func (n *node) walFiles(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, from := range []string{n.wal, filepath.Join(n.server.Dir, "pg_wal")} {
		files, err := os.ReadDir(from)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if _, err := os.Lstat(filepath.Join(dir, file.Name())); err == nil || len(file.Name()) != 24 {
				continue
			}
			if err := os.Symlink(filepath.Join(from, file.Name()), filepath.Join(dir, file.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	// pg_waldump runs as the user who runs Postgres.
	for up := dir; up != os.TempDir() && up != "/"; up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
