package wal_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pitr/internal/pg"
	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
	"pitr/internal/wal"
)

// dumped is what pg_waldump and the decoder both say of a record.
type dumped struct {
	Rmgr         string
	RecLen, Len  string
	XID          string
	LSN, Prev    pg.LSN
	Blocks       []string
	End          string // commit or abort with its time, or the name of a restore point
	TwoPhaseXact string
}

// TestEveryRecordEqualsPgWaldump compares, on WAL that pgbench and DDL have made, every record with the installed version's pg_waldump.
func TestEveryRecordEqualsPgWaldump(t *testing.T) {
	for _, mb := range []int{1, 16} {
		t.Run(fmt.Sprintf("segments of %dMB", mb), func(t *testing.T) {
			dir, install := clusterWithHistory(t, mb)
			size := pg.SegmentSize(mb) << 20
			files := segmentFiles(t, dir)
			want := pgWaldump(t, install, dir, files)
			got := decodeFiles(t, dir, files, size, 4096+13)
			if len(want) < 5000 {
				t.Fatalf("pg_waldump printed %d records, the workload makes more", len(want))
			}
			n := min(len(got), len(want))
			for i := range n {
				if diff := cmp.Diff(want[i], got[i]); diff != "" {
					t.Fatalf("record %d of %d: -pg_waldump +decoder\n%s", i, len(want), diff)
				}
			}
			if len(got) != len(want) {
				t.Fatalf("decoder found %d records, pg_waldump %d", len(got), len(want))
			}
			kinds := map[string]int{}
			for _, record := range got {
				kinds[strings.SplitN(record.End, " ", 2)[0]]++
			}
			for _, kind := range []string{"COMMIT", "ABORT", "COMMIT_PREPARED", "ABORT_PREPARED", "RESTORE_POINT"} {
				if kinds[kind] == 0 {
					t.Errorf("the workload made no %s", kind)
				}
			}
			t.Logf("%d records in %d segments are equal; ends %v", len(got), len(files), kinds)
		})
	}
}

// clusterWithHistory makes a cluster, runs the workload and stops it cleanly.
func clusterWithHistory(t *testing.T, segmentMB int) (string, *postmaster.Install) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	install := postmastertest.Find(t)
	server := postmastertest.Start(t, install, postmastertest.Options{SegmentSizeMB: segmentMB, Settings: []string{
		"wal_level=logical", "wal_compression=on", "max_prepared_transactions=5", "wal_keep_size=2GB", "max_wal_size=64MB"}})
	for _, sql := range []string{
		"create table t (id int primary key, note text); insert into t select i, repeat('x', i % 500) from generate_series(1, 20000) i",
		"update t set note = 'y' where id % 3 = 0; delete from t where id % 7 = 0",
		"begin; insert into t values (-1, 'gone'); rollback",
		"begin; savepoint a; insert into t values (-2, 'sub'); release a; insert into t values (-3, 'top'); commit",
		"begin; create table dropped (i int); insert into dropped values (1); commit", "drop table dropped", "truncate t",
		"begin; insert into t values (-4, 'prepared'); prepare transaction 'one'", "commit prepared 'one'",
		"begin; create table never (i int); prepare transaction 'two'", "rollback prepared 'two'",
		"select pg_create_restore_point('before the flood')", "checkpoint", "vacuum full t", "create index on t (note)",
		"create database other", "select pg_switch_wal()", "select pg_logical_emit_message(false, 'pitr', repeat('big', 700000))",
		"drop database other", "create sequence s", "select nextval('s')",
	} {
		for _, statement := range strings.Split(sql, ";;") {
			if _, err := server.Query(ctx, "postgres", "postgres", statement); err != nil {
				t.Fatal(err)
			}
		}
	}
	bench := func(args ...string) {
		args = append(args, "-h", server.Dir, "-p", fmt.Sprint(server.Port), "-U", "postgres", "postgres")
		if out, err := install.Command(ctx, "pgbench", args...).CombinedOutput(); err != nil {
			t.Fatalf("pgbench: %v\n%s", err, out)
		}
	}
	bench("-i", "-s", "1", "-q")
	bench("-c", "4", "-t", "200", "-n")
	if err := server.Stop(ctx, postmaster.Fast); err != nil {
		t.Fatal(err)
	}
	return server.Dir, install
}

func segmentFiles(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "pg_wal"))
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, entry := range entries {
		if pg.IsSegmentName(entry.Name()) {
			files = append(files, entry.Name())
		}
	}
	return files
}

var dumpLine = regexp.MustCompile(`^rmgr: (\S+)\s+len \(rec/tot\):\s*(\d+)/\s*(\d+), tx:\s*(\d+), lsn: (\S+), prev (\S+), desc: (.*)$`)
var dumpBlock = regexp.MustCompile(`blkref #(\d+): rel (\d+/\d+/\d+)(?: fork (\w+))? blk (\d+)( FPW)?`)
var dumpEnd = regexp.MustCompile(`^(COMMIT|ABORT|COMMIT_PREPARED|ABORT_PREPARED)(?: (\d+):)? (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ UTC)`)

func pgWaldump(t *testing.T, install *postmaster.Install, dir string, files []string) []dumped {
	t.Helper()
	cmd := install.Command(t.Context(), "pg_waldump", "-p", filepath.Join(dir, "pg_wal"), files[0], files[len(files)-1])
	cmd.Env = append(cmd.Env, "TZ=UTC")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	// pg_waldump always ends with an error at the end of valid WAL and exits 1; the last files are recycled ones.
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		t.Fatalf("pg_waldump: %v", err)
	}
	var records []dumped
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		m := dumpLine.FindStringSubmatch(lines.Text())
		if m == nil {
			t.Fatalf("pg_waldump printed %q", lines.Text())
		}
		records = append(records, parseDumped(t, m))
	}
	if len(records) == 0 {
		t.Fatalf("pg_waldump: %s", stderr.String())
	}
	return records
}

func parseDumped(t *testing.T, m []string) dumped {
	t.Helper()
	lsn, err1 := pg.ParseLSN(m[5])
	prev, err2 := pg.ParseLSN(m[6])
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	record := dumped{Rmgr: m[1], RecLen: m[2], Len: m[3], XID: m[4], LSN: lsn, Prev: prev}
	for _, b := range dumpBlock.FindAllStringSubmatch(m[7], -1) {
		fork := "main"
		if b[3] != "" {
			fork = b[3]
		}
		record.Blocks = append(record.Blocks, fmt.Sprintf("#%s %s %s %s%s", b[1], b[2], fork, b[4], b[5]))
	}
	if e := dumpEnd.FindStringSubmatch(m[7]); e != nil && m[1] == "Transaction" {
		record.End, record.TwoPhaseXact = e[1]+" "+e[3], e[2]
	}
	if name, found := strings.CutPrefix(m[7], "RESTORE_POINT "); found {
		record.End = "RESTORE_POINT " + name
	}
	return record
}

func describe(t *testing.T, r *wal.Record) dumped {
	t.Helper()
	if err := r.Decode(); err != nil {
		t.Fatal(err)
	}
	d := dumped{Rmgr: r.Rmgr.String(), RecLen: fmt.Sprint(r.LengthWithoutImages()), Len: fmt.Sprint(r.Length), XID: fmt.Sprint(r.XID), LSN: r.Start, Prev: r.Prev}
	for _, b := range r.Blocks {
		image := ""
		if b.HasImage {
			image = " FPW"
		}
		d.Blocks = append(d.Blocks, fmt.Sprintf("#%d %s %s %d%s", b.ID, b.Relation, b.Fork, b.Number, image))
	}
	xact, ok, err := r.Xact()
	if err != nil {
		t.Fatal(err)
	}
	if ok {
		kind := map[bool]string{true: "COMMIT", false: "ABORT"}[xact.Committed]
		if xact.Prepared {
			kind += "_PREPARED"
			d.TwoPhaseXact = fmt.Sprint(xact.XID)
		}
		d.End = kind + " " + xact.Time.Format("2006-01-02 15:04:05.000000 MST")
	}
	point, ok, err := r.RestorePoint()
	if err != nil {
		t.Fatal(err)
	}
	if ok {
		d.End = "RESTORE_POINT " + point.Name
	}
	return d
}

// decodeFiles feeds the segments in pieces of the given size, until the log ends.
func decodeFiles(t *testing.T, dir string, files []string, size pg.SegmentSize, piece int) []dumped {
	t.Helper()
	first, err := pg.ParseSegmentName(files[0], size)
	if err != nil {
		t.Fatal(err)
	}
	var records []dumped
	var ledger wal.Ledger
	decoder := wal.NewDecoder(wal.Options{Start: first.Start(size), SegmentSize: size, Timeline: 1}, func(r *wal.Record) error {
		records = append(records, describe(t, r))
		_, err := ledger.Add(r) // whatever Postgres writes it has to understand
		return err
	})
	for _, name := range files {
		content, err := os.ReadFile(filepath.Join(dir, "pg_wal", name))
		if err != nil {
			t.Fatal(err)
		}
		for chunk := range slices.Chunk(content, piece) {
			if _, err := decoder.Write(chunk); err != nil {
				t.Logf("the log ends: %v", err) // zeros, or an older page of a recycled file
				return records
			}
		}
	}
	return records
}
