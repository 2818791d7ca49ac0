package repo

import (
	"context"
	"encoding/json"
	"fmt"

	"pitr/internal/pg"
)

// Joint is where the log goes on behind a segment: what a writer that resumes there needs of the segment's index. It is in the clear when
// the index is encrypted.
type Joint struct {
	LastRecord pg.LSN `json:"last_record"`
	Unfinished pg.LSN `json:"unfinished"`
}

// Before is the start of the record before the first one that begins in the next segment; zero: not known.
func (j Joint) Before() pg.LSN {
	if j.Unfinished != 0 {
		return j.Unfinished
	}
	return j.LastRecord
}

// ReadJoint returns the joint behind a whole segment. store.ErrNotExist says that the segment has no index.
func (r *Repo) ReadJoint(ctx context.Context, size pg.SegmentSize, segment pg.Segment) (Joint, error) {
	clear, err := r.clear(ctx, indexKey(segment, size), KindIndex)
	if err != nil {
		return Joint{}, err
	}
	if clear == nil {
		index, err := r.ReadIndex(ctx, size, segment)
		return Joint{index.LastRecord, index.Unfinished}, err
	}
	var j Joint
	if err := json.Unmarshal(clear, &j); err != nil {
		return Joint{}, fmt.Errorf("get %s: %w: %w", indexKey(segment, size), ErrDamaged, err)
	}
	return j, nil
}
