package restore

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"pitr/restore/journal"
)

// TestATransactionIsIncludedOrNotAsWasAsked compares plans for every transaction that has ended, prepared ones among them, with what pg_waldump
// lists.
func TestATransactionIsIncludedOrNotAsWasAsked(t *testing.T) {
	w := theWorld(t)
	for tli, ends := range w.ends {
		compared := 0
		for i, end := range ends {
			if end.LSN < w.backups[0].Stop {
				continue
			}
			compared++
			what := fmt.Sprintf("timeline %d, xid %d", tli, end.XID)
			at, err := planOf(t, w.repo, fmt.Sprintf("xid:%d", end.XID), tli)
			if err != nil {
				t.Errorf("%s: %v", what, err)
				continue
			}
			comparePlan(t, what, at, ends, i+1)
			if !at.StopAt || at.StopLSN != end.LSN || at.LastIncluded == nil || *at.LastIncluded != end {
				t.Errorf("%s: it stops at %s (%t) behind %v", what, at.StopLSN, at.StopAt, at.LastIncluded)
			}
			if warned := strings.Contains(strings.Join(at.Warnings, ";"), "was rolled back"); warned == end.Committed {
				t.Errorf("%s: committed %t, warnings %q", what, end.Committed, at.Warnings)
			}
			before, err := planFor(t, w.repo, BeforeTransaction(end.XID), tli)
			if err != nil {
				t.Errorf("%s: %v", what, err)
				continue
			}
			comparePlan(t, what+" excluded", before, ends, i)
			if before.StopAt || before.StopLSN != end.LSN {
				t.Errorf("%s excluded: it stops at %s (%t)", what, before.StopLSN, before.StopAt)
			}
		}
		if compared < 30 {
			t.Errorf("timeline %d: %d transactions were compared: the test shows nothing", tli, compared)
		}
	}
	for _, target := range []Target{{Kind: AtXID, XID: 4_000_000_000, Text: "xid"}, BeforeTransaction(4_000_000_000), BeforeTransaction(w.ends[1][0].XID - 3)} {
		_, err := planFor(t, w.repo, target, 1)
		var unreachable *UnreachableError
		if !errors.As(err, &unreachable) || len(unreachable.Windows) == 0 {
			t.Errorf("%s: %v", target.Text, err)
		}
	}
	if _, err := planFor(t, w.repo, BeforeDropOf("public.nothing"), 1); !errors.Is(err, journal.ErrNoRelation) {
		t.Errorf("a table that nobody knows: %v", err)
	}
}
