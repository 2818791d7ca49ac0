package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// plan makes a plan along a timeline.
func planOf(t testing.TB, r *repo.Repo, to string, tli pg.Timeline) (*Plan, error) {
	t.Helper()
	target, err := ParseTarget(to, nil)
	if err != nil {
		t.Fatal(err)
	}
	return planFor(t, r, target, tli)
}

func planFor(t testing.TB, r *repo.Repo, target Target, tli pg.Timeline) (*Plan, error) {
	t.Helper()
	return NewPlan(t.Context(), r, target, PlanOptions{Timeline: tli, Now: time.Now(), Parallel: 3})
}

func instant(at time.Time) string { return at.UTC().Format("2006-01-02 15:04:05.000000Z07:00") }

// TestAnInstantStopsBeforeTheFirstLaterEnd compares plans for instants at, just before and just behind every end of a transaction, on both
// timelines, with what pg_waldump lists.
func TestAnInstantStopsBeforeTheFirstLaterEnd(t *testing.T) {
	w := theWorld(t)
	for tli, ends := range w.ends {
		compared := 0
		for _, end := range ends {
			for _, shift := range []time.Duration{-time.Microsecond, 0, time.Microsecond} {
				at := end.Time.Add(shift)
				if at.Before(w.backups[0].StopTime) {
					continue
				}
				later, found := firstLater(ends, at)
				if !found {
					continue // see the tests of idleness
				}
				plan, err := planOf(t, w.repo, instant(at), tli)
				if err != nil {
					t.Errorf("timeline %d, %s: %v", tli, instant(at), err)
					continue
				}
				compared++
				comparePlan(t, fmt.Sprintf("timeline %d, %s", tli, instant(at)), plan, ends, later)
				if plan.StopAt || plan.StopLSN != ends[later].LSN {
					t.Errorf("timeline %d, %s: it stops at %s, want before %s", tli, instant(at), plan.StopLSN, ends[later].LSN)
				}
			}
		}
		if compared < 60 {
			t.Errorf("timeline %d: %d instants were compared: the test shows nothing", tli, compared)
		}
	}
}

func firstLater(ends []Xact, at time.Time) (int, bool) {
	for i, end := range ends {
		if end.Time.After(at) {
			return i, true
		}
	}
	return len(ends), false
}

// comparePlan compares what a plan says of the transactions around its stop with the list of ends, of which the first excluded is ends[later].
func comparePlan(t testing.TB, what string, plan *Plan, ends []Xact, later int) {
	t.Helper()
	if later < len(ends) && (plan.FirstExcluded == nil || *plan.FirstExcluded != ends[later]) || later == len(ends) && plan.FirstExcluded != nil {
		t.Errorf("%s: the first excluded is %v, not number %d of %d", what, plan.FirstExcluded, later, len(ends))
	}
	if plan.LeftBehind != len(ends)-later {
		t.Errorf("%s: %d are left behind, want %d", what, plan.LeftBehind, len(ends)-later)
	}
	if later > 0 && ends[later-1].LSN >= plan.Backup.Start && (plan.LastIncluded == nil || *plan.LastIncluded != ends[later-1]) {
		t.Errorf("%s: the last included is %v, want %v", what, plan.LastIncluded, ends[later-1])
	}
	if plan.Backup.Stop > plan.StopLSN && !plan.StopAt {
		t.Errorf("%s: it stops at %s, before backup %s is consistent at %s", what, plan.StopLSN, plan.BackupID, plan.Backup.Stop)
	}
}

func TestAPositionIncludesTheRecordThere(t *testing.T) {
	w := theWorld(t)
	for tli, ends := range w.ends {
		last, err := planOf(t, w.repo, "latest", tli)
		if err != nil {
			t.Fatal(err)
		}
		for i, end := range ends {
			if end.LSN < w.backups[0].Stop {
				continue
			}
			plan := func(lsn pg.LSN) *Plan {
				t.Helper()
				plan, err := planOf(t, w.repo, "lsn:"+lsn.String(), tli)
				if err != nil {
					t.Fatal(err)
				}
				return plan
			}
			what := fmt.Sprintf("timeline %d, at %s", tli, end.LSN)
			at := plan(end.LSN)
			if !at.StopAt || at.StopLSN != end.LSN {
				t.Errorf("%s: it stops at %s", what, at.StopLSN)
			}
			comparePlan(t, what, at, ends, i+1)
			// A position between two records means the next one.
			if behind := plan(end.LSN + 1); behind.StopLSN <= end.LSN && behind.StopLSN != last.StopLSN {
				t.Errorf("%s and a byte: it stops at %s", what, behind.StopLSN)
			}
			if before := plan(end.LSN - 1); before.StopLSN > end.LSN {
				t.Errorf("%s less a byte: it stops at %s", what, before.StopLSN)
			}
		}
	}
}

func TestPositionsThatTheArchiveLacksAreRefused(t *testing.T) {
	w := theWorld(t)
	refused := func(to string, tli pg.Timeline, want string) {
		t.Helper()
		_, err := planOf(t, w.repo, to, tli)
		var e *UnreachableError
		if !errors.As(err, &e) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", to, err, want)
		}
	}
	refused("lsn:0/1", 1, "the first base backup is consistent from "+w.backups[0].Stop.String())
	refused("lsn:"+(w.backups[0].Stop-1).String(), 1, "the first base backup is consistent from")
	refused("lsn:FF/0", 1, "the archive ends at")
	refused("name:nonesuch", 1, `no restore point of the name "nonesuch"`)
	refused("name:twice", 1, `2 restore points have the name "twice"; choose by lsn:`)
	refused(instant(time.Now().Add(time.Hour)), 1, "it lies in the future")
	refused(instant(w.backups[0].StopTime.Add(-time.Microsecond)), 1, "the first base backup ended at")
	refused("latest", 9, "the repository has no timeline 9")
}

func TestAnUnreachableTargetSaysWhatCanBeReached(t *testing.T) {
	w := theWorld(t)
	_, err := planOf(t, w.repo, "lsn:0/1", 1)
	var e *UnreachableError
	if !errors.As(err, &e) || len(e.Windows) != 1 {
		t.Fatalf("%v, want one window", err)
	}
	newest := w.ends[1][len(w.ends[1])-1].Time
	if window := e.Windows[0]; !window.From.Equal(w.backups[0].StopTime) || window.To.Before(newest) {
		t.Errorf("the window is %v, want one from %s to at least %s", window, w.backups[0].StopTime, newest)
	}
}

func TestLatestIncludesEverything(t *testing.T) {
	w := theWorld(t)
	for tli, ends := range w.ends {
		plan, err := planOf(t, w.repo, "latest", tli)
		if err != nil {
			t.Fatal(err)
		}
		comparePlan(t, fmt.Sprintf("timeline %d", tli), plan, ends, len(ends))
		if !plan.StopAt || plan.Timeline != tli {
			t.Errorf("timeline %d: %+v", tli, plan)
		}
	}
	plan, err := planOf(t, w.repo, "latest", 0)
	if err != nil || plan.Timeline != 2 {
		t.Errorf("without a timeline latest is on %v (%v), want 2", plan, err)
	}
}

func TestAStopOnAnAncestorBranchesOffTheAncestor(t *testing.T) {
	w := theWorld(t)
	for _, end := range w.ends[2] {
		if end.LSN < w.backups[0].Stop {
			continue
		}
		plan, err := planOf(t, w.repo, "lsn:"+end.LSN.String(), 2)
		if err != nil {
			t.Fatal(err)
		}
		want := pg.Timeline(1)
		if end.LSN >= w.fork {
			want = 2
		}
		if plan.Timeline != want {
			t.Errorf("at %s, with the fork at %s, the recovery is along timeline %d, want %d", end.LSN, w.fork, plan.Timeline, want)
		}
	}
}

// TestAnIdleServerIsKnownToBeIdle moves the end of what is known with clocks, as the archiver stores them.
func TestAnIdleServerIsKnownToBeIdle(t *testing.T) {
	w := theWorld(t)
	for _, tli := range []pg.Timeline{1, 2} {
		root, r, _ := w.copyOf(t)
		if err := os.RemoveAll(filepath.Join(root, "main", "clocks")); err != nil {
			t.Fatal(err)
		}
		ends := w.ends[tli]
		newest := ends[len(ends)-1].Time
		hour, half := newest.Add(time.Hour), newest.Add(30*time.Minute)
		reach := func(at time.Time) error {
			target := Target{Kind: AtTime, Time: at, Text: instant(at)}
			plan, err := NewPlan(t.Context(), r, target, PlanOptions{Timeline: tli, Now: hour.Add(time.Minute), Parallel: 2})
			if err == nil {
				comparePlan(t, instant(at), plan, ends, len(ends))
			}
			return err
		}
		if err := reach(half); err == nil || !strings.Contains(err.Error(), "the archive knows what happened up to") {
			t.Errorf("timeline %d: without a clock half an hour later is %v, want a refusal", tli, err)
		}
		path, err := r.Path(t.Context(), tli, w.size, 0)
		if err != nil {
			t.Fatal(err)
		}
		frontier := path.Frontier(w.size.Start(w.backups[0].Start))
		put := func(tli pg.Timeline, lsn pg.LSN) {
			t.Helper()
			if err := r.PutClock(t.Context(), tli, repo.Clock{LSN: lsn, Time: hour}); err != nil {
				t.Fatal(err)
			}
		}
		put(tli, frontier+1) // behind what is archived: something is missing
		if err := reach(half); err == nil {
			t.Errorf("timeline %d: a clock behind the end of the archive counts", tli)
		}
		if tli == 2 {
			put(1, w.fork) // the old server stands where it was left, while the new one writes
			if err := reach(half); err == nil {
				t.Errorf("the clock of the timeline that was left counts for the one that goes on")
			}
		}
		put(tli, frontier)
		if err := errors.Join(reach(half), reach(hour)); err != nil {
			t.Errorf("timeline %d: with a clock: %v", tli, err)
		}
		if err := reach(hour.Add(time.Microsecond)); err == nil {
			t.Errorf("timeline %d: an instant behind the clock is reached", tli)
		}
	}
}

// TestTargetsBehindAGapAreReachedFromTheBackupBehindIt removes a segment between the two backups.
func TestTargetsBehindAGapAreReachedFromTheBackupBehindIt(t *testing.T) {
	w := theWorld(t)
	root, r, _ := w.copyOf(t)
	gap := w.size.Segment(1, w.backups[0].Stop).Next()
	if gap.End(w.size) > w.size.Start(w.backups[1].Start) {
		t.Fatal("there is no segment between the backups")
	}
	remove(t, filepath.Join(root, "main/wal", gap.Timeline.Hex(), gap.Name(w.size)))
	ends := w.ends[1]
	plan, err := planOf(t, r, "latest", 1)
	if err != nil {
		t.Fatal(err)
	}
	comparePlan(t, "latest", plan, ends, len(ends))
	if plan.BackupID != w.backups[1].ID {
		t.Errorf("latest is reached from %s, want %s", plan.BackupID, w.backups[1].ID)
	}
	_, err = planOf(t, r, "lsn:"+(w.backups[1].Stop-1).String(), 1)
	var e *UnreachableError
	if !errors.As(err, &e) || len(e.Windows) != 1 || !e.Windows[0].From.Equal(w.backups[1].StopTime) {
		t.Errorf("a position behind the gap and before the backup: %v", err)
	}
	if err := r.PutClock(t.Context(), 1, repo.Clock{LSN: gap.Start(w.size), Time: w.backups[0].StopTime.Add(time.Millisecond)}); err != nil {
		t.Fatal(err)
	}
	if _, err = planOf(t, r, "lsn:0/1", 1); !errors.As(err, &e) || len(e.Windows) != 2 {
		t.Errorf("with a gap the windows are %v, want two", e.Windows)
	}
	if _, err := planOf(t, r, "name:nonesuch", 1); err == nil {
		t.Error("an unknown restore point is found")
	}
}

// TestAnInterruptedPlanEnds cancels at every request in turn; a plan that waits for ever is ended by the test's own limit.
func TestAnInterruptedPlanEnds(t *testing.T) {
	w := theWorld(t)
	_, r, f := w.copyOf(t)
	f.onGet(nil)
	if _, err := planOf(t, r, "latest", 1); err != nil {
		t.Fatal(err)
	}
	for n := range f.count() {
		ctx, cancel := context.WithCancel(t.Context())
		f.onGet(func(i int, _ string, body io.ReadCloser) (io.ReadCloser, error) {
			if i == n+1 {
				cancel()
			}
			return body, nil
		})
		if _, err := NewPlan(ctx, r, Target{Text: "latest"}, PlanOptions{Timeline: 1, Now: time.Now(), Parallel: 1}); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled at request %d: %v", n+1, err)
		}
		cancel()
	}
}

func TestAVisitOfIndexesEndsWhenItIsInterrupted(t *testing.T) {
	w := theWorld(t)
	p := &planner{repo: w.repo, opt: PlanOptions{Timeline: 1, Parallel: 1}, target: Target{Text: "latest"}}
	if err := p.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		s := scan{planner: p, backup: p.backups[0]}
		err := s.visitIndexes(ctx, func(repo.Index) error {
			cancel()
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("an interrupted visit says %v", err)
		}
	}
}

// TestABackupThatHoldsLaterTransactionsIsPassedOver lets the second backup have copied files for longer than its clock says.
func TestABackupThatHoldsLaterTransactionsIsPassedOver(t *testing.T) {
	w := theWorld(t)
	p := &planner{repo: w.repo, opt: PlanOptions{Timeline: 1, Parallel: 2}}
	if err := p.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ends := w.ends[1]
	newest := ends[len(ends)-1]
	at := ends[len(ends)-4].Time
	p.target = Target{Kind: AtTime, Time: at, Text: "an instant"}
	p.backups[1].Stop, p.backups[1].StopTime = newest.LSN, at
	plan, err := p.planTime(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	later, _ := firstLater(ends, at)
	comparePlan(t, "an instant before the backup's end", plan, ends, later)
	if plan.BackupID != w.backups[0].ID {
		t.Errorf("it is reached from backup %s, which holds later transactions", plan.BackupID)
	}
}
