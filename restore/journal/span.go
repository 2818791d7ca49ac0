package journal

import (
	"context"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// span is the part of a run that has to be read.
type span struct {
	lead pg.LSN // where reading begins, so that the transactions that end behind from are seen whole
	from pg.LSN // what ends before it is of no interest
	to   pg.LSN
	sure xidFloor
}

// span finds what has to be read of a run; ok is false when nothing has.
func (rd *reader) span(ctx context.Context, run repo.Run) (s span, ok bool, err error) {
	return span{lead: run.Start, from: run.Start, to: run.End}, true, nil
}
