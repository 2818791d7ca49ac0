package main

import (
	"strings"
	"testing"

	"pitr/internal/pg"
	"pitr/restore/journal"
)

func TestDeadBranchIsPrintedWithWhereItBeginsAndEnds(t *testing.T) {
	var out strings.Builder
	if err := printEvent(&out, journal.Event{Branch: &journal.Branch{Timeline: 1, Start: pg.LSN(0x3000148), End: pg.LSN(0x4000000)}}); err != nil {
		t.Fatal(err)
	}
	const want = "timeline 1 from 0/3000148 to 0/4000000 is a dead branch; committed only there:\n"
	if out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}
