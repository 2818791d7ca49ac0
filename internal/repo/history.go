package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"pitr/internal/pg"
	"pitr/internal/store"
)

// historySizeMax bounds a history file; a line of it is some 60 bytes and stands for a failover.
const historySizeMax = 1 << 20

// PutHistory stores the history file of a timeline, byte for byte as Postgres has it.
func (r *Repo) PutHistory(ctx context.Context, tli pg.Timeline, content []byte) error {
	history, err := pg.ParseHistory(tli, content)
	if err != nil {
		return err
	}
	d := newDraft(KindHistory, time.Time{}, content, content, CodecNone)
	if d.clear, err = json.Marshal(clearHistory(history)); err != nil {
		return fmt.Errorf("put %s: %w", historyKey(tli), err)
	}
	return r.put(ctx, historyKey(tli), d)
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
	if errors.Is(err, ErrNoIdentity) || errors.Is(err, ErrWrongIdentity) {
		return r.clearHistory(ctx, tli)
	}
	if err != nil {
		return nil, err
	}
	return pg.ParseHistory(tli, content)
}

// ancestor is what an encrypted history file says of one ancestor in the clear.
type ancestor struct {
	Timeline pg.Timeline `json:"timeline"`
	Switch   pg.LSN      `json:"lsn"`
}

func clearHistory(history pg.History) []ancestor {
	list := []ancestor{}
	for _, a := range history {
		list = append(list, ancestor(a))
	}
	return list
}

// clearHistory is the descent of a timeline for those who cannot open its history file.
func (r *Repo) clearHistory(ctx context.Context, tli pg.Timeline) (pg.History, error) {
	clear, err := r.clear(ctx, historyKey(tli), KindHistory)
	if err != nil {
		return nil, err
	}
	var list []ancestor
	if err := json.Unmarshal(clear, &list); err != nil {
		return nil, fmt.Errorf("get %s: %w: %w", historyKey(tli), ErrDamaged, err)
	}
	history := pg.History{}
	for _, a := range list {
		history = append(history, pg.Ancestor(a))
	}
	return history, nil
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
