package main

import (
	"math"
	"slices"
	"testing"
	"time"
)

func TestMedianAndSpread(t *testing.T) {
	expect := func(want spread, values ...float64) {
		t.Helper()
		if got := summarize(values); got != want {
			t.Errorf("summarize(%v) = %+v, want %+v", values, got, want)
		}
	}
	expect(spread{n: 1, median: 7, min: 7, max: 7}, 7)
	expect(spread{n: 3, median: 2, min: 1, max: 9}, 9, 1, 2)
	expect(spread{n: 4, median: 2.5, min: 1, max: 9}, 9, 1, 2, 3)
	if none := summarize(nil); none.n != 0 || !math.IsNaN(none.median) {
		t.Errorf("of nothing: %+v", none)
	}
}

func TestPercentileIsTheNearestRank(t *testing.T) {
	expect := func(want int64, p float64, sorted ...int64) {
		t.Helper()
		if got := percentile(sorted, p); got != want {
			t.Errorf("percentile(%v, %v) = %d, want %d", sorted, p, got, want)
		}
	}
	hundred := make([]int64, 100)
	for i := range hundred {
		hundred[i] = int64(i + 1)
	}
	expect(99, 99, hundred...)
	expect(100, 100, hundred...)
	expect(1, 0.1, hundred...)
	expect(5, 99, 5)
	expect(3, 50, 1, 3, 7)
}

func TestRatiosAreTakenWithinARound(t *testing.T) {
	got := ratios(map[int]float64{1: 10, 2: 30, 3: 5, 5: 1}, map[int]float64{1: 5, 2: 10, 4: 7, 5: 0})
	slices.Sort(got)
	if want := []float64{2, 3}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v: rounds 3 and 4 have one side only, and nothing is a ratio to zero", got, want)
	}
}

func TestGoalsKnowTheirDirection(t *testing.T) {
	expect := func(want bool, g goal, ratio float64) {
		t.Helper()
		if g.reached(ratio) != want {
			t.Errorf("%s reached by %.2f: %v, want %v", g, ratio, !want, want)
		}
	}
	expect(true, goal{tps, 1.15}, 1.15)
	expect(false, goal{tps, 1.15}, 1.14)
	expect(true, goal{cpuPerTxn, 0.78}, 0.78)
	expect(false, goal{cpuPerTxn, 0.78}, 0.79)
	expect(false, goal{rss, 0.8}, 4)
}

func TestCPUTimeIsThatOfTheInterval(t *testing.T) {
	second := func(s float64) time.Time { return time.Unix(1000, int64(s*1e9)) }
	seen := usage{{second(0), 5 * time.Second, 10}, {second(1), 6 * time.Second, 30}, {second(2), 8 * time.Second, 20}}
	expect := func(want time.Duration, from, to float64) {
		t.Helper()
		got, err := seen.cpuBetween(second(from), second(to))
		if err != nil || got != want {
			t.Errorf("between %v and %v: %v, %v; want %v", from, to, got, err, want)
		}
	}
	expect(3*time.Second, 0, 2)
	expect(time.Second, 0.5, 1.25)
	expect(time.Second, 1.5, 3) // what is behind the last sample is not known, and not invented
	if _, err := seen.cpuBetween(second(-1), second(1)); err == nil {
		t.Error("an interval that begins before the first sample has no error")
	}
	if _, err := (usage{}).cpuBetween(second(0), second(1)); err == nil {
		t.Error("no samples have no error")
	}
	if peak := seen.rssPeak(); peak != 30 {
		t.Errorf("peak %d, want 30", peak)
	}
}

func TestStatOfAProcessWithAnyName(t *testing.T) {
	// The name holds spaces and parentheses; behind it, utime 250 and stime 150 are fields 14 and 15, rss 7 is field 24.
	stat := "4242 (a) b (c) S 1 4242 4242 0 -1 4194560 1 2 3 4 250 150 0 0 20 0 7 0 100 1000000 7 18446744073709551615 1 1"
	cpu, resident, err := parseStat([]byte(stat))
	if err != nil || cpu != 4*time.Second || resident%7 != 0 || resident == 0 {
		t.Errorf("cpu %v, rss %d, %v", cpu, resident, err)
	}
	for _, broken := range []string{"", "4242 (a) S 1", "4242 (a) S 1 4242 4242 0 -1 4194560 1 2 3 4 x 150 0 0 20 0 7 0 100 1000000 7 1"} {
		if _, _, err := parseStat([]byte(broken)); err == nil {
			t.Errorf("%q has no error", broken)
		}
	}
}

func TestMemoryInKilobytes(t *testing.T) {
	status := []byte("Name:\tpitr\nVmHWM:\t   99 kB\nVmRSS:\t    1024 kB\n")
	if n, err := kilobytes(status, "VmRSS:"); err != nil || n != 1<<20 {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := kilobytes(status, "Pss:"); err == nil {
		t.Error("a missing line has no error")
	}
}
