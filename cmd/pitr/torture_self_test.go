package main

import (
	"maps"
	"slices"
	"testing"
	"time"
)

// TestTheTortureSeesWhatIsWrong asks whether its comparison can fail at all.
func TestTheTortureSeesWhatIsWrong(t *testing.T) {
	entries := []entry{
		{Client: 1, Seq: 0, XID: 10, Op: "put", Key: 1001, Value: 5},
		{Client: 1, Seq: 0, Part: 1, XID: 10, Op: "add", Key: 3, Value: 7},
		{Client: 2, Seq: 0, XID: 12, Op: "create"},
		{Client: 2, Seq: 1, XID: 13, Op: "fill", Key: 1, Value: 2},
		{Client: 1, Seq: 1, XID: 14, Op: "del", Key: 1001},
		{Client: 1, Seq: 2, XID: 15, Op: "put", Key: 1002, Value: 9},
	}
	differs := func(what string, want difference, spoil func(*content)) {
		t.Helper()
		got := fold(entries)
		spoil(got)
		if d := compare(got, fold(entries)); d != want {
			t.Errorf("%s: %+v, want %+v", what, d, want)
		}
	}
	differs("nothing", difference{}, func(*content) {})
	differs("a row of the journal is missing", difference{missing: 1}, func(c *content) { delete(c.journal, entries[2]) })
	differs("one is too many", difference{extra: 1}, func(c *content) { c.journal[entry{Client: 9}] = true })
	differs("a row that was deleted is there", difference{wrong: 1}, func(c *content) { c.state[1001] = 5 })
	differs("a row is gone", difference{wrong: 1}, func(c *content) { delete(c.state, 1002) })
	differs("a row has another value", difference{wrong: 1}, func(c *content) { c.state[1002]++ })
	differs("a counter has another value", difference{wrong: 1}, func(c *content) { c.counter[3]-- })
	differs("a table is gone", difference{wrong: 1}, func(c *content) { delete(c.side, 2) })
	differs("a table is empty", difference{wrong: 1}, func(c *content) { c.side[2] = nil })
	differs("a table that was never made is there", difference{wrong: 1}, func(c *content) { c.side[3] = nil })

	// The order in which entries are read is not the order in which they came.
	backwards := slices.Clone(entries)
	slices.Reverse(backwards)
	if c := fold(backwards); !maps.Equal(c.state, map[int]int64{1002: 9}) || c.counter[3] != 7 {
		t.Errorf("read backwards: %v", c.state)
	}

	losses := []time.Duration{4, 1, 3, 2}
	if p50, p99 := percentile(losses, 0.5), percentile(losses, 0.99); p50 != 2 || p99 != 4 {
		t.Errorf("percentiles %d and %d", p50, p99)
	}
}
