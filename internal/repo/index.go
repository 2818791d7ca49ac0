package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"pitr/internal/pg"
	"pitr/internal/store"
	"pitr/internal/wal"
)

// Index tells what happened in one segment: in the records that end in it. docs/FORMAT.md, "Index".
type Index struct {
	Segment       string         `json:"segment"`
	LastRecord    pg.LSN         `json:"last_record"`    // start of the last record that ends in the segment
	Unfinished    pg.LSN         `json:"unfinished"`     // start of the record that goes on behind the segment; 0/0: none
	Marks         []Mark         `json:"marks"`          // transactions that ended, by stretches of WAL
	RestorePoints []RestorePoint `json:"restore_points"` // in WAL order
	Clocks        []Clock        `json:"clocks"`         // the server's clock at positions, in WAL order
	Incomplete    bool           `json:"-"`              // it lacks the record that goes on into the segment: it must not be stored
}

// Commits is the number of commits and aborts in the segment.
func (x Index) Commits() int {
	n := 0
	for _, mark := range x.Marks {
		n += mark.Count
	}
	return n
}

// Mark sums up the commits and aborts in a stretch of WAL. Their times need not be in order.
type Mark struct {
	At    pg.LSN    `json:"at"` // start of the first such record
	Count int       `json:"count"`
	Min   time.Time `json:"min"`
	Max   time.Time `json:"max"`
}

// RestorePoint is a named restore point.
type RestorePoint struct {
	At   pg.LSN    `json:"at"`
	Name string    `json:"name"`
	Time time.Time `json:"time"`
}

// Clock is what the server's clock showed when it had sent the WAL up to a position.
type Clock struct {
	LSN  pg.LSN    `json:"lsn"`
	Time time.Time `json:"time"`
}

const (
	// markStretch is how much WAL one mark stands for: what has to be decoded again to find a transaction exactly.
	markStretch = 128 << 10
	// clockStretch is the least distance in time between two clocks of an index.
	clockStretch = 10 * time.Second
	// indexSizeMax bounds an index: a 1 GiB segment has 8,192 marks of some 150 bytes.
	indexSizeMax = 16 << 20
)

// IndexBuilder collects an Index from the records of a segment, in order.
type IndexBuilder struct {
	index Index
}

// Add notes a record that ends in the segment.
func (b *IndexBuilder) Add(r *wal.Record) error {
	b.index.LastRecord = r.Start
	if r.Rmgr != wal.RmgrXact && r.Rmgr != wal.RmgrXLOG {
		return nil
	}
	if err := r.Decode(); err != nil {
		return err
	}
	xact, isXact, err := r.Xact()
	if err != nil {
		return err
	}
	if isXact {
		b.addXact(r.Start, xact.Time)
	}
	point, isPoint, err := r.RestorePoint()
	if isPoint {
		b.index.RestorePoints = append(b.index.RestorePoints, RestorePoint{r.Start, point.Name, point.Time})
	}
	return err
}

func (b *IndexBuilder) addXact(at pg.LSN, ended time.Time) {
	n := len(b.index.Marks)
	if n == 0 || at-b.index.Marks[n-1].At >= markStretch {
		b.index.Marks = append(b.index.Marks, Mark{At: at, Count: 1, Min: ended, Max: ended})
		return
	}
	mark := &b.index.Marks[n-1]
	mark.Count++
	if ended.Before(mark.Min) {
		mark.Min = ended
	}
	if ended.After(mark.Max) {
		mark.Max = ended
	}
}

// Clock notes the server's clock at a position.
func (b *IndexBuilder) Clock(c Clock) {
	if n := len(b.index.Clocks); n > 0 && c.Time.Sub(b.index.Clocks[n-1].Time) < clockStretch {
		return
	}
	b.index.Clocks = append(b.index.Clocks, c)
}

// Finish returns the index of the segment and begins the next one. unfinished is the start of the record that goes on behind it.
func (b *IndexBuilder) Finish(segment pg.Segment, size pg.SegmentSize, unfinished pg.LSN) Index {
	index := b.index
	index.Segment, index.Unfinished = segment.Name(size), unfinished
	b.index = Index{}
	return index
}

// PutIndex stores the index of a whole segment, if it is complete. An index that is there already stays: it differs at most in its clocks.
func (r *Repo) PutIndex(ctx context.Context, size pg.SegmentSize, segment pg.Segment, index Index) error {
	if index.Incomplete {
		return nil
	}
	content, err := json.Marshal(index)
	if err != nil {
		return fmt.Errorf("put index: %w", err)
	}
	d := newDraft(KindIndex, time.Time{}, content, r.compressor.Append(nil, content), CodecZstd)
	if d.clear, err = json.Marshal(Joint{index.LastRecord, index.Unfinished}); err != nil {
		return fmt.Errorf("put index: %w", err)
	}
	err = r.putOnce(ctx, indexKey(segment, size), d)
	if err != nil && !errors.Is(err, store.ErrExist) {
		return fmt.Errorf("put %s: %w", indexKey(segment, size), err)
	}
	return nil
}

// ReadIndex returns the index of a whole segment.
func (r *Repo) ReadIndex(ctx context.Context, size pg.SegmentSize, segment pg.Segment) (Index, error) {
	content, _, err := r.get(ctx, indexKey(segment, size), KindIndex, indexSizeMax)
	if err != nil {
		return Index{}, err
	}
	var index Index
	if err := json.Unmarshal(content, &index); err != nil {
		return Index{}, fmt.Errorf("get %s: %w: %w", indexKey(segment, size), ErrDamaged, err)
	}
	return index, nil
}

// PutClock stores that the server was idle: its clock at a position behind which nothing had been written.
func (r *Repo) PutClock(ctx context.Context, tli pg.Timeline, c Clock) error {
	err := r.store.Put(ctx, r.prefix+clockKey(tli, c), nil, store.PutOptions{IfAbsent: true})
	if err != nil && !errors.Is(err, store.ErrExist) {
		return fmt.Errorf("put %s: %w", clockKey(tli, c), err)
	}
	return nil
}

// Clocks lists the stored idle clocks of a timeline, in WAL order. Their names say all.
func (r *Repo) Clocks(ctx context.Context, tli pg.Timeline) ([]Clock, error) {
	var clocks []Clock
	dir := clocksDir + tli.Hex() + "/"
	err := r.keys(ctx, dir, func(object store.Object) error {
		var lsn, micros uint64
		if _, err := fmt.Sscanf(object.Key[len(dir):], "%016X-%016X", &lsn, &micros); err != nil {
			return fmt.Errorf("%s is no clock: %w", object.Key, ErrDamaged)
		}
		clocks = append(clocks, Clock{pg.LSN(lsn), time.UnixMicro(int64(micros)).UTC()})
		return nil
	})
	return clocks, err
}

// DeleteClock removes an idle clock that a later one has replaced.
func (r *Repo) DeleteClock(ctx context.Context, tli pg.Timeline, c Clock) error {
	return r.store.Delete(ctx, r.prefix+clockKey(tli, c))
}
