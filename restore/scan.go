package restore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// scan looks for a position in the WAL behind a backup: first in the indexes, then in the few records around it.
type scan struct {
	*planner
	backup             repo.Backup
	lastClock          time.Time // the latest that the indexes, or the transactions themselves, tell
	parameters         []repo.Parameters
	twoPhase           []repo.TwoPhase
	tablespaces        []repo.TablespaceMade
	touchedTablespaces []string // of indexes that do not tell of tablespaces: those in which files have changed
	untold             bool     // an index of an older program does not tell of what was prepared

	lead pg.LSN // where the first record begins that ends in the segment of the index that is being visited
}

// visitIndexes passes the index of every segment behind the backup, in order. The index of a segment that has none is made by decoding it.
func (s *scan) visitIndexes(ctx context.Context, visit func(repo.Index) error) error {
	segments := s.path.Segments(s.path.Size.Start(s.backup.Start), s.frontier(s.backup))
	type answer struct {
		index repo.Index
		ok    bool
		err   error
	}
	ctx, cancel := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	// A window of requests is under way ahead of the visitor.
	ahead := make(chan chan answer, max(1, s.opt.Parallel))
	tasks.Go(func() {
		defer close(ahead)
		for _, segment := range segments {
			result := make(chan answer, 1)
			select {
			case ahead <- result:
			case <-ctx.Done():
				return
			}
			tasks.Go(func() {
				index, ok, err := s.repo.IndexOf(ctx, s.path, segment)
				result <- answer{index, ok, err}
			})
		}
	})
	from := s.path.Size.Start(s.backup.Start)
	s.parameters, s.twoPhase, s.untold = nil, nil, false
	s.tablespaces, s.touchedTablespaces = nil, nil
	for _, segment := range segments {
		s.lead = from
		result, more := <-ahead
		if !more {
			return context.Cause(ctx)
		}
		a := <-result
		if a.err == nil && !a.ok {
			a.index, a.err = s.makeIndex(ctx, from, segment)
		}
		if a.err != nil {
			return a.err
		}
		from = segment.End(s.path.Size)
		if a.index.Unfinished != 0 {
			from = a.index.Unfinished
		}
		s.parameters, s.twoPhase = append(s.parameters, a.index.Parameters...), append(s.twoPhase, a.index.TwoPhase...)
		s.tablespaces, s.touchedTablespaces = append(s.tablespaces, a.index.Tablespaces...), tablespacesOf(a.index, s.touchedTablespaces)
		s.untold = s.untold || !a.index.TellsTwoPhase()
		if err := visit(a.index); err != nil {
			return err
		}
	}
	return nil
}

// makeIndex decodes one segment; from is the start of the record that goes on into it, or its own start.
func (s *scan) makeIndex(ctx context.Context, from pg.LSN, segment pg.Segment) (repo.Index, error) {
	var builder repo.IndexBuilder
	start, end := segment.Start(s.path.Size), min(segment.End(s.path.Size), s.frontier(s.backup))
	decoder, err := s.decode(ctx, min(from, start), end, func(r *wal.Record) error {
		if r.End <= start {
			return nil
		}
		return builder.Add(r)
	})
	if err != nil {
		return repo.Index{}, err
	}
	return builder.Finish(segment, s.path.Size, decoder.UnfinishedRecord()), nil
}

// decode passes the records of the path that begin at or behind the page of from and end before to.
func (s *scan) decode(ctx context.Context, from, to pg.LSN, visit func(*wal.Record) error) (*wal.Decoder, error) {
	from &^= wal.PageSize - 1
	decoder := wal.NewDecoder(wal.Options{Start: from, SegmentSize: s.path.Size, SystemID: s.backup.SystemID, Timeline: s.path.Tip}, visit)
	err := s.repo.ReadWAL(ctx, s.path, from, to, func(_ pg.LSN, content []byte) error {
		_, err := decoder.Write(content)
		return err
	})
	if errors.Is(err, errFound) {
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the archived WAL: %w", err)
	}
	return decoder, nil
}

var errFound = errors.New("found")

// findLater finds the first transaction that ended later than a time; nil when the archive has none. One that lies before the backup's stop
// says that the backup holds it.
func (s *scan) findLater(ctx context.Context, limit time.Time) (*stop, error) {
	var before, candidate *repo.Mark
	later := 0
	err := s.visitIndexes(ctx, func(index repo.Index) error {
		s.noteClocks(index)
		for _, mark := range index.Marks {
			switch {
			case candidate != nil:
				later += mark.Count
			case mark.Max.After(limit):
				candidate = &mark
				later = mark.Count
			default:
				before = &mark
			}
		}
		return nil
	})
	if err != nil || candidate == nil {
		return nil, err
	}
	from := candidate.At
	if before != nil {
		from = before.At
	}
	var result *stop
	var last *Xact
	_, err = s.visitXacts(ctx, from, func(x Xact, end pg.LSN) error {
		if x.Time.After(limit) {
			result = &stop{lsn: x.LSN, end: end, last: last, next: &x, behind: later}
			return errFound
		}
		if x.LSN >= s.backup.Start {
			last = &x
		}
		if x.LSN >= candidate.At {
			later--
		}
		return nil
	})
	return result, err
}

func (s *scan) noteClocks(index repo.Index) {
	frontier := s.frontier(s.backup)
	for _, clock := range index.Clocks {
		if clock.LSN <= frontier && clock.Time.After(s.lastClock) {
			s.lastClock = clock.Time
		}
	}
	for _, mark := range index.Marks {
		if mark.Max.After(s.lastClock) {
			s.lastClock = mark.Max
		}
	}
}

// visitXacts passes the transactions that ended at or behind a position, each with the end of its record. Those before the backup's
// start are in the backup already.
func (s *scan) visitXacts(ctx context.Context, from pg.LSN, visit func(x Xact, end pg.LSN) error) (*wal.Decoder, error) {
	return s.decode(ctx, from, s.frontier(s.backup), func(r *wal.Record) error {
		if r.Start < from {
			return nil
		}
		x, err := xactOf(r)
		if err != nil || x == nil {
			return err
		}
		return visit(*x, r.End)
	})
}

// xactOf is the transaction that a record ends; nil when it ends none.
func xactOf(r *wal.Record) (*Xact, error) {
	if r.Rmgr != wal.RmgrXact {
		return nil, nil
	}
	if err := r.Decode(); err != nil {
		return nil, err
	}
	x, isEnd, err := r.Xact()
	if err != nil || !isEnd {
		return nil, err
	}
	return &Xact{XID: x.XID, Time: x.Time, LSN: r.Start, Committed: x.Committed}, nil
}

// findRecord finds the first record that begins at or behind a position, to be included; nil when there is none.
func (s *scan) findRecord(ctx context.Context, lsn pg.LSN) (*stop, error) {
	result, err := s.find(ctx, lsn, true)
	if err != nil || result.lsn == 0 {
		return nil, err
	}
	return result, nil
}

// findBefore finds the record that begins at a position, not to be included.
func (s *scan) findBefore(ctx context.Context, lsn pg.LSN) (*stop, error) {
	return s.find(ctx, lsn, false)
}

func (s *scan) find(ctx context.Context, lsn pg.LSN, inclusive bool) (*stop, error) {
	var before *repo.Mark
	behind := 0
	err := s.visitIndexes(ctx, func(index repo.Index) error {
		for _, mark := range index.Marks {
			if mark.At < lsn || inclusive && mark.At == lsn {
				before, behind = &mark, mark.Count
			} else {
				behind += mark.Count
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	from := lsn
	if before != nil {
		from = before.At
	}
	result := &stop{inclusive: inclusive, behind: behind}
	_, err = s.decode(ctx, from, s.frontier(s.backup), func(r *wal.Record) error { return s.around(r, from, lsn, result) })
	return result, err
}

// around notes the record to stop at and the transactions on either side of it.
func (s *scan) around(r *wal.Record, from, lsn pg.LSN, result *stop) error {
	if r.Start >= lsn && result.lsn == 0 {
		result.lsn, result.end = r.Start, r.End
	}
	if r.Start < from {
		return nil
	}
	x, err := xactOf(r)
	if err != nil || x == nil {
		return err
	}
	if result.lsn != 0 && (r.Start > result.lsn || !result.inclusive) {
		result.next = x
		return errFound
	}
	if r.Start >= s.backup.Start {
		result.last = x
	}
	result.behind--
	return nil
}

// findXID lists the ends of a transaction, or of the one that a subtransaction belongs to. Ids wrap around, so that there may be several; a
// subtransaction that was rolled back by itself is not an end.
func (s *scan) findXID(ctx context.Context, xid uint32) ([]Xact, error) {
	type stretch struct{ lead, from, to pg.LSN }
	var wanted []stretch
	err := s.visitIndexes(ctx, func(index repo.Index) error {
		if index.Detail > 0 && !index.XIDs.Holds(xid) {
			return nil
		}
		segment, err := pg.ParseSegmentName(index.Segment, s.path.Size)
		if err != nil {
			return fmt.Errorf("index of %s: %w: %w", index.Segment, repo.ErrDamaged, err)
		}
		wanted = append(wanted, stretch{s.lead, segment.Start(s.path.Size), segment.End(s.path.Size)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	var ends []Xact
	for _, w := range wanted {
		_, err := s.decode(ctx, w.lead, min(w.to, s.frontier(s.backup)), func(r *wal.Record) error {
			if r.End <= w.from || r.Start < s.backup.Start || r.Rmgr != wal.RmgrXact {
				return nil
			}
			if err := r.Decode(); err != nil {
				return err
			}
			x, isEnd, err := r.Xact()
			if err == nil && isEnd && (x.XID == xid || x.Committed && slices.Contains(x.Subxacts, xid)) {
				ends = append(ends, Xact{XID: x.XID, Time: x.Time, LSN: r.Start, Committed: x.Committed})
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return ends, nil
}

// findEnd finds the last whole record of the archive, to be included.
func (s *scan) findEnd(ctx context.Context) (*stop, error) {
	var last *repo.Mark
	var record pg.LSN
	err := s.visitIndexes(ctx, func(index repo.Index) error {
		s.noteClocks(index)
		if n := len(index.Marks); n > 0 {
			last = &index.Marks[n-1]
		}
		if index.LastRecord != 0 {
			record = index.LastRecord
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if record == 0 {
		return nil, fmt.Errorf("the archive holds no whole record behind backup %s: %w", s.backup.ID, repo.ErrDamaged)
	}
	result := &stop{lsn: record, end: s.frontier(s.backup), inclusive: true}
	if last == nil {
		return result, nil
	}
	_, err = s.visitXacts(ctx, last.At, func(x Xact, _ pg.LSN) error {
		if x.LSN >= s.backup.Start {
			result.last = &x
		}
		return nil
	})
	return result, err
}

// restorePoints lists the restore points of a name behind the backup.
func (s *scan) restorePoints(ctx context.Context, name string) ([]repo.RestorePoint, error) {
	var points []repo.RestorePoint
	err := s.visitIndexes(ctx, func(index repo.Index) error {
		points = append(points, slices.DeleteFunc(slices.Clone(index.RestorePoints), func(p repo.RestorePoint) bool { return p.Name != name })...)
		return nil
	})
	return points, err
}

// lastKnown is the latest instant that can be reached from the backup.
func (s *scan) lastKnown(ctx context.Context) (time.Time, error) {
	s.lastClock = s.backup.StopTime
	err := s.visitIndexes(ctx, func(index repo.Index) error {
		s.noteClocks(index)
		return nil
	})
	if err != nil {
		return time.Time{}, err
	}
	return s.clockAt(ctx, s.backup, s.lastClock)
}
