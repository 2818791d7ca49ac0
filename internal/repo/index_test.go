package repo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pitr/internal/pg"
	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
	"pitr/internal/wal"
)

// ended is a commit or abort as pg_waldump tells it.
type ended struct {
	at   pg.LSN
	time time.Time
}

// walFiles runs a workload on a server with segments of 1 MiB and returns its WAL files in order, and what pg_waldump says of them.
func walFiles(t *testing.T) (files []string, want []ended) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	install := postmastertest.Find(t)
	server := postmastertest.Start(t, install, postmastertest.Options{SegmentSizeMB: 1, Settings: []string{"wal_keep_size=1GB", "timezone=UTC"}})
	for _, sql := range []string{
		"create table t (id int primary key, note text)",
		"do $$ begin for i in 1..3000 loop insert into t values (i, repeat('x', 200)); commit; end loop; end $$",
		"select pg_create_restore_point('before the flood')",
		"select pg_logical_emit_message(false, 'pitr', repeat('big', 900000))", // spans three segments
		"select pg_switch_wal()", "insert into t values (-1, 'behind a switch')",
		"do $$ begin for i in 1..500 loop insert into t values (-1-i, repeat('x', 3000)); rollback; end loop; end $$",
		"select pg_switch_wal()", "insert into t values (-2, 'the last')",
	} {
		if _, err := server.Query(ctx, "postgres", "postgres", sql); err != nil {
			t.Fatal(err)
		}
	}
	if err := server.Stop(ctx, postmaster.Fast); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(server.Dir, "pg_wal", "0000000100000000????????"))
	if err != nil || len(names) < 5 {
		t.Fatalf("%d WAL files, %v", len(names), err)
	}
	sort.Strings(names)
	cmd := install.Command(ctx, "pg_waldump", "-r", "Transaction", names[0], names[len(names)-1])
	cmd.Env = append(cmd.Env, "TZ=UTC")
	out, _ := cmd.Output() // it ends with an error where the WAL ends
	line := regexp.MustCompile(`lsn: (\S+), .* desc: (?:COMMIT|ABORT) (\S+ \S+) UTC`)
	for _, m := range line.FindAllStringSubmatch(string(out), -1) {
		lsn, err1 := pg.ParseLSN(m[1])
		at, err2 := time.Parse("2006-01-02 15:04:05.999999", m[2])
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		want = append(want, ended{lsn, at})
	}
	if len(want) < 3500 {
		t.Fatalf("pg_waldump shows %d commits and aborts, the workload makes more", len(want))
	}
	return names, want
}

func TestIndexTellsEveryCommitAndAbortThatPgWaldumpShows(t *testing.T) {
	files, want := walFiles(t)
	var b IndexBuilder
	first, err := pg.ParseSegmentName(filepath.Base(files[0]), mib)
	if err != nil {
		t.Fatal(err)
	}
	decoder := wal.NewDecoder(wal.Options{Start: first.Start(mib), SegmentSize: mib, Timeline: 1}, b.Add)
	var indexes []Index
	var points []RestorePoint
	spanning := 0
	for i, name := range files {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		_, err = decoder.Write(content)
		if err != nil && !errors.Is(err, wal.ErrEnd) {
			t.Fatal(err)
		}
		segment := pg.Segment{Timeline: 1, Number: first.Number + uint64(i)}
		index := b.Finish(segment, mib, decoder.UnfinishedRecord())
		if index.LastRecord == 0 && err == nil {
			spanning++ // the big record goes on for the whole segment
			if index.Unfinished == 0 || index.Unfinished >= segment.Start(mib) {
				t.Errorf("%s: no record ends in it, and the unfinished one begins at %s", index.Segment, index.Unfinished)
			}
		}
		indexes = append(indexes, index)
		points = append(points, index.RestorePoints...)
		if errors.Is(err, wal.ErrEnd) {
			break
		}
	}
	if spanning == 0 {
		t.Error("no record spans a whole segment")
	}
	if len(points) != 1 || points[0].Name != "before the flood" {
		t.Errorf("restore points %v", points)
	}
	checkMarks(t, indexes, want)
}

// checkMarks holds the marks, in order, against the transactions in order.
func checkMarks(t *testing.T, indexes []Index, want []ended) {
	t.Helper()
	commits := 0
	for _, index := range indexes {
		commits += index.Commits()
		for _, mark := range index.Marks {
			if mark.Count == 0 || mark.Count > len(want) || want[0].at != mark.At {
				t.Fatalf("%s: mark %+v, and the next of %d transactions is at %s", index.Segment, mark, len(want), want[0].at)
			}
			low, high := want[0].time, want[0].time
			for _, x := range want[:mark.Count] {
				if x.time.Before(low) {
					low = x.time
				}
				if x.time.After(high) {
					high = x.time
				}
				if x.at-mark.At > markStretch {
					t.Fatalf("%s: mark %+v stands for the transaction at %s too", index.Segment, mark, x.at)
				}
			}
			if !mark.Min.Equal(low) || !mark.Max.Equal(high) {
				t.Fatalf("%s: mark %+v, its transactions ended from %s to %s", index.Segment, mark, low, high)
			}
			want = want[mark.Count:]
		}
	}
	if len(want) != 0 {
		t.Errorf("%d transactions are in no mark, the first at %s", len(want), want[0].at)
	}
	t.Logf("%d commits and aborts in %d segments", commits, len(indexes))
}

func TestIndexReadsBackAndTheFirstOneStays(t *testing.T) {
	r := newRepo(t, nil)
	want := Index{Segment: segmentTwo.Name(mib), LastRecord: two + 8, Unfinished: two + 0x100, Clocks: []Clock{{two + 1, clockZero}},
		Marks:         []Mark{{two, 3, clockZero, clockZero.Add(time.Second)}},
		RestorePoints: []RestorePoint{{two, "naïve \x00 name", clockZero}}}
	for range 2 {
		if err := r.PutIndex(t.Context(), mib, segmentTwo, want); err != nil {
			t.Fatal(err)
		}
	}
	other := want
	other.Clocks = nil
	if err := r.PutIndex(t.Context(), mib, segmentTwo, other); err != nil {
		t.Fatal(err)
	}
	got, err := r.ReadIndex(t.Context(), mib, segmentTwo)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestClocksOfAnIndexAreTenSecondsApart(t *testing.T) {
	var b IndexBuilder
	for i := range 100 {
		b.Clock(Clock{pg.LSN(i), clockZero.Add(time.Duration(i) * time.Second)})
	}
	if n := len(b.Finish(segmentTwo, mib, 0).Clocks); n != 10 {
		t.Errorf("%d clocks of 100 s", n)
	}
}

func TestIdleClocksAreListedInTheOrderOfTheLogAndReplaced(t *testing.T) {
	r := newRepo(t, nil)
	a, b := Clock{two, clockZero}, Clock{two, clockZero.Add(time.Hour)}
	later := Clock{two + 8, clockZero.Add(time.Minute)}
	for _, c := range []Clock{later, b, a, a} {
		if err := r.PutClock(t.Context(), 1, c); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := r.Clocks(t.Context(), 1); err != nil || !cmp.Equal(got, []Clock{a, b, later}) {
		t.Errorf("got %v, %v", got, err)
	}
	if err := r.DeleteClock(t.Context(), 1, a); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Clocks(t.Context(), 1); err != nil || len(got) != 2 {
		t.Errorf("got %v, %v", got, err)
	}
	overwrite(t, r, fmt.Sprintf("%s%s/nonsense", clocksDir, pg.Timeline(1).Hex()), nil)
	if _, err := r.Clocks(t.Context(), 1); !errors.Is(err, ErrDamaged) {
		t.Errorf("a name that is no clock: %v", err)
	}
}
