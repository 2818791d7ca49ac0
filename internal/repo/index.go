package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
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

	// Detail is indexDetail; zero in an index of an older program, which has none of what follows.
	Detail     int           `json:"detail,omitempty"`
	XIDs       *XIDs         `json:"xids,omitempty"`       // of all records; nil: none has one
	Removals   []Removal     `json:"removals,omitempty"`   // in WAL order
	Parameters []Parameters  `json:"parameters,omitempty"` // in WAL order
	Extents    []ChangedFork `json:"extents,omitempty"`    // by relation and fork
	TwoPhase   []TwoPhase    `json:"two_phase,omitempty"`  // in WAL order; since detail 2

	Tablespaces []TablespaceMade `json:"tablespaces,omitempty"` // in WAL order; since detail 2
	// Limits names the lists that are not whole because they would be too long: removals, extents, two_phase.
	Limits []string `json:"limits,omitempty"`
}

// indexDetail is the present value of Index.Detail.
const indexDetail = detailTwoPhase

// detailTwoPhase is the value of Index.Detail from which on two_phase and tablespaces are told.
const detailTwoPhase = 2

// TellsTwoPhase reports whether TwoPhase has all there is.
func (x Index) TellsTwoPhase() bool {
	return x.Detail >= detailTwoPhase && !slices.Contains(x.Limits, limitTwoPhase)
}

// TellsTablespaces reports whether Tablespaces has all there is.
func (x Index) TellsTablespaces() bool { return x.Detail >= detailTwoPhase }

// TablespaceMade is a CREATE TABLESPACE.
type TablespaceMade struct {
	At   pg.LSN `json:"at"`
	OID  uint32 `json:"oid"`
	Path string `json:"path"` // empty: below the data directory
}

// TwoPhase is a PREPARE TRANSACTION, or, without a GID, the COMMIT PREPARED or ROLLBACK PREPARED that ends one.
type TwoPhase struct {
	At  pg.LSN `json:"at"`
	XID uint32 `json:"xid"`
	GID string `json:"gid,omitempty"`
}

// XIDs bounds the transaction ids in the records of a segment, in the order in which they are given out, which wraps around.
type XIDs struct {
	First uint32 `json:"first"`
	Last  uint32 `json:"last"`
}

// Holds reports whether a transaction id lies between the bounds.
func (x *XIDs) Holds(xid uint32) bool {
	return x != nil && int32(xid-x.First) >= 0 && int32(x.Last-xid) >= 0
}

// Removal is a commit that removes files: of relations that it drops, or that got a new file by TRUNCATE or a rewrite.
type Removal struct {
	At        pg.LSN       `json:"at"`
	XID       uint32       `json:"xid"`
	Time      time.Time    `json:"time"`
	Files     []string     `json:"files,omitempty"`     // tablespace/database/file
	Dropped   []wal.Object `json:"dropped,omitempty"`   // relations that are gone, as the commit says since 15
	Truncated []wal.Object `json:"truncated,omitempty"` // by TRUNCATE, as the WAL says under wal_level = logical
	Relcache  []wal.Object `json:"relcache,omitempty"`  // relations that have changed, those that are gone among them
	Databases []uint32     `json:"databases,omitempty"` // dropped
	Created   int          `json:"created,omitempty"`   // files that the transaction has made
}

// Parameters is a change of settings that a restore depends on.
type Parameters struct {
	At pg.LSN `json:"at"`
	wal.Parameters
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
	// indexSizeMax bounds an index: a 1 GiB segment has 8,192 marks of some 150 bytes; extents and removals are bounded by what follows.
	indexSizeMax = 16 << 20
	// removedMax bounds the files and objects in all removals of an index.
	removedMax = 20_000
	// twoPhaseMax bounds the entries of two_phase in an index, each of at most some 300 bytes.
	twoPhaseMax = 10_000

	limitTwoPhase = "two_phase"
)

// IndexBuilder collects an Index from the records of a segment, in order.
type IndexBuilder struct {
	OnEnd func(*wal.Ended) // told of each transaction that ends; may be nil

	index   Index
	ledger  wal.Ledger // of transactions that may have begun in earlier segments
	extents extents
	removed int // files and objects in the removals

	twoPhaseFull bool
}

// Add notes a record that ends in the segment.
func (b *IndexBuilder) Add(r *wal.Record) error {
	b.index.LastRecord = r.Start
	if err := r.Decode(); err != nil {
		return err
	}
	b.addXID(r.XID)
	if err := b.extents.add(r); err != nil {
		return err
	}
	ended, err := b.ledger.Add(r)
	if err != nil {
		return err
	}
	if err := b.addTwoPhase(r, ended); err != nil {
		return err
	}
	made, ok, err := r.TablespaceMade()
	if err != nil {
		return err
	}
	if ok {
		b.index.Tablespaces = append(b.index.Tablespaces, TablespaceMade{At: r.Start, OID: made.OID, Path: made.Path})
	}
	if ended != nil {
		b.addXact(ended.Start, ended.Time)
		b.addXID(ended.XID)
		for _, sub := range ended.Subxacts {
			b.addXID(sub)
		}
		b.addRemoval(ended)
		if b.OnEnd != nil {
			b.OnEnd(ended)
		}
	}
	if r.Rmgr == wal.RmgrXLOG {
		return b.addXLOG(r)
	}
	return nil
}

func (b *IndexBuilder) addXLOG(r *wal.Record) error {
	point, isPoint, err := r.RestorePoint()
	if err != nil {
		return err
	}
	if isPoint {
		b.index.RestorePoints = append(b.index.RestorePoints, RestorePoint{r.Start, point.Name, point.Time})
	}
	parameters, isChange, err := r.Parameters()
	if isChange {
		b.index.Parameters = append(b.index.Parameters, Parameters{r.Start, parameters})
	}
	return err
}

// addTwoPhase notes what is prepared and what ends so. Beyond the limit only that there is more.
func (b *IndexBuilder) addTwoPhase(r *wal.Record, ended *wal.Ended) error {
	prepared, ok, err := r.Prepared()
	if err != nil {
		return err
	}
	entry := TwoPhase{At: r.Start, XID: prepared.XID, GID: prepared.GID}
	if ended != nil && ended.Prepared {
		entry.XID, ok = ended.XID, true
	}
	if !ok {
		return nil
	}
	if len(b.index.TwoPhase) >= twoPhaseMax {
		b.twoPhaseFull = true
		return nil
	}
	b.index.TwoPhase = append(b.index.TwoPhase, entry)
	return nil
}

func (b *IndexBuilder) addXID(xid uint32) {
	switch x := b.index.XIDs; {
	case xid == 0:
	case x == nil:
		b.index.XIDs = &XIDs{xid, xid}
	case int32(xid-x.First) < 0:
		x.First = xid
	case int32(xid-x.Last) > 0:
		x.Last = xid
	}
}

// addRemoval notes a commit that removes something. Beyond the limit only that it does.
func (b *IndexBuilder) addRemoval(e *wal.Ended) {
	if !e.Committed || len(e.Relations)+len(e.Dropped)+len(e.Truncated)+len(e.Databases) == 0 {
		return
	}
	b.removed += 1 + len(e.Relations) + len(e.Dropped) + len(e.Truncated) + len(e.Relcache) + len(e.Databases)
	if b.removed > removedMax {
		return
	}
	removal := Removal{At: e.Start, XID: e.XID, Time: e.Time, Dropped: e.Dropped, Truncated: e.Truncated, Relcache: e.Relcache, Databases: e.Databases, Created: len(e.Created)}
	for _, locator := range e.Relations {
		removal.Files = append(removal.Files, locator.String())
	}
	b.index.Removals = append(b.index.Removals, removal)
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
	index.Segment, index.Unfinished, index.Detail = segment.Name(size), unfinished, indexDetail
	index.Extents = b.extents.finish()
	if b.removed > removedMax {
		index.Limits = append(index.Limits, "removals")
	}
	if b.extents.all {
		index.Limits = append(index.Limits, "extents")
	}
	if b.twoPhaseFull {
		index.Limits = append(index.Limits, limitTwoPhase)
	}
	b.index, b.extents, b.removed, b.twoPhaseFull = Index{}, extents{}, 0, false
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
