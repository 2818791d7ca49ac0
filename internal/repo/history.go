package repo

import (
	"context"
	"fmt"
	"time"

	"pitr/internal/pg"
	"pitr/internal/store"
)

// historySizeMax bounds a history file; a line of it is some 60 bytes and stands for a failover.
const historySizeMax = 1 << 20

// PutHistory stores the history file of a timeline, byte for byte as Postgres has it.
func (r *Repo) PutHistory(ctx context.Context, tli pg.Timeline, content []byte) error {
	if _, err := pg.ParseHistory(tli, content); err != nil {
		return err
	}
	object := seal(KindHistory, time.Time{}, content, content, CodecNone)
	return r.put(ctx, historyKey(tli), object, KindHistory)
}

// HistoryFile returns the history file of a timeline.
func (r *Repo) HistoryFile(ctx context.Context, tli pg.Timeline) ([]byte, error) {
	content, _, err := r.get(ctx, historyKey(tli), KindHistory, historySizeMax)
	return content, err
}

// History returns the descent of a timeline. Timeline 1 has none.
func (r *Repo) History(ctx context.Context, tli pg.Timeline) (pg.History, error) {
	if tli == 1 {
		return nil, nil
	}
	content, err := r.HistoryFile(ctx, tli)
	if err != nil {
		return nil, err
	}
	return pg.ParseHistory(tli, content)
}

// Timelines lists the timelines of which the repository has WAL or a history file, in order.
func (r *Repo) Timelines(ctx context.Context) ([]pg.Timeline, error) {
	timelines := []pg.Timeline{1} // it has no history file; every later one is stored before its WAL
	err := r.keys(ctx, timelinesDir, func(object store.Object) error {
		tli, err := pg.ParseHistoryName(object.Key[len(timelinesDir):])
		if err != nil {
			return fmt.Errorf("list %s: %s is no history file: %w", timelinesDir, object.Key, ErrDamaged)
		}
		timelines = append(timelines, tli)
		return nil
	})
	return timelines, err
}
