package archiver

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// touched is what the archive's indexes name as changed in a stretch of WAL.
type touched struct {
	all   bool // some index had to leave extents out
	forks map[touchedKey]*touchedFork
}

// touchedKey is a fork as an index names it: tablespace/database/relfilenode; relfilenode 0 is a whole directory of a database.
type touchedKey struct{ relation, fork string }

type touchedFork struct {
	cut    uint32 // blocks from here on are others
	ranges []repo.ExtentRange
}

// noCut is behind every block: MaxBlockNumber of src/include/storage/block.h.
const noCut = ^uint32(0)

// indexesParallel is how many indexes are read at a time.
const indexesParallel = 8

// readTouched reads the indexes of the WAL of a path between two positions, and decodes what has none.
func readTouched(ctx context.Context, r *repo.Repo, p *repo.Path, system pg.SystemID, from, to pg.LSN) (*touched, error) {
	t := &touched{forks: map[touchedKey]*touchedFork{}}
	begin := p.Size.Start(from)
	for part := range slices.Chunk(p.Segments(begin, to), indexesParallel) {
		indexes, found, errs := make([]repo.Index, len(part)), make([]bool, len(part)), make([]error, len(part))
		var readers sync.WaitGroup
		for i, segment := range part {
			readers.Go(func() { indexes[i], found[i], errs[i] = r.IndexOf(ctx, p, segment) })
		}
		readers.Wait()
		for i, segment := range part {
			err := errs[i]
			if err == nil && (!found[i] || indexes[i].Detail == 0) {
				indexes[i], err = makeIndex(ctx, r, p, system, begin, segment)
			}
			if err == nil {
				err = t.add(indexes[i])
			}
			if err != nil {
				return nil, fmt.Errorf("what the WAL has changed in segment %s: %w", segment.Name(p.Size), err)
			}
			begin = segment.End(p.Size)
			if indexes[i].Unfinished != 0 {
				begin = indexes[i].Unfinished
			}
		}
	}
	t.sort()
	return t, nil
}

// changedBytes is the size of the extents that have changed since a backup began, as far as there are indexes.
func changedBytes(ctx context.Context, r *repo.Repo, since repo.Backup) (int64, error) {
	p, err := r.Path(ctx, since.Timeline, since.SegmentSize, since.Start)
	if err != nil {
		return 0, err
	}
	t := &touched{forks: map[touchedKey]*touchedFork{}}
	begin := p.Size.Start(since.Start)
	for part := range slices.Chunk(p.Segments(begin, p.Frontier(begin)), indexesParallel) {
		indexes, errs := make([]repo.Index, len(part)), make([]error, len(part))
		var readers sync.WaitGroup
		for i, segment := range part {
			readers.Go(func() { indexes[i], _, errs[i] = r.IndexOf(ctx, p, segment) })
		}
		readers.Wait()
		for i := range part {
			err := errs[i]
			if err == nil {
				err = t.add(indexes[i])
			}
			if err != nil {
				return 0, fmt.Errorf("what the WAL has changed: %w", err)
			}
		}
	}
	return t.size(), nil
}

// sort brings the ranges of each fork in order, and joins those that meet.
func (t *touched) sort() {
	for _, f := range t.forks {
		slices.SortFunc(f.ranges, func(a, b repo.ExtentRange) int { return cmp.Compare(a.First, b.First) })
		joined := f.ranges[:0]
		for _, r := range f.ranges {
			if n := len(joined); n > 0 && int64(r.First) <= int64(joined[n-1].Last)+1 {
				joined[n-1].Last = max(joined[n-1].Last, r.Last)
				continue
			}
			joined = append(joined, r)
		}
		f.ranges = joined
	}
}

// size is that of all extents that are named, each counted once.
func (t *touched) size() (bytes int64) {
	t.sort()
	for _, f := range t.forks {
		for _, r := range f.ranges {
			bytes += (int64(r.Last) - int64(r.First) + 1) * repo.ExtentSize
		}
	}
	return bytes
}

// makeIndex decodes a segment that has no index yet; begin is where the record starts that goes on into it.
func makeIndex(ctx context.Context, r *repo.Repo, p *repo.Path, system pg.SystemID, begin pg.LSN, segment pg.Segment) (repo.Index, error) {
	var builder repo.IndexBuilder
	start := segment.Start(p.Size)
	begin = min(begin, start) &^ (wal.PageSize - 1)
	decoder := wal.NewDecoder(wal.Options{Start: begin, SegmentSize: p.Size, SystemID: system, Timeline: p.Tip}, func(record *wal.Record) error {
		if record.End <= start {
			return nil
		}
		return builder.Add(record)
	})
	err := r.ReadWAL(ctx, p, begin, segment.End(p.Size), func(_ pg.LSN, content []byte) error {
		_, err := decoder.Write(content)
		return err
	})
	return builder.Finish(segment, p.Size, decoder.UnfinishedRecord()), err
}

func (t *touched) add(index repo.Index) error {
	t.all = t.all || slices.Contains(index.Limits, "extents")
	for _, c := range index.Extents {
		ranges, err := c.Ranges()
		if err != nil {
			return err
		}
		key := touchedKey{c.Relation, c.Fork}
		f := t.forks[key]
		if f == nil {
			f = &touchedFork{cut: noCut}
			t.forks[key] = f
		}
		if c.Cut != nil {
			f.cut = min(f.cut, *c.Cut)
		}
		f.ranges = append(f.ranges, ranges...)
	}
	return nil
}

// names reports whether the WAL has changed an extent of a fork, by the block with which the extent begins.
func (t *touched) names(relation wal.Relation, fork wal.Fork, block uint32) bool {
	return t.of(relation, fork).names(block)
}

// of is what is named of a fork; nil: nothing.
func (t *touched) of(relation wal.Relation, fork wal.Fork) *touchedFork {
	database := wal.Relation{Tablespace: relation.Tablespace, Database: relation.Database}
	if t.all || t.forks[touchedKey{database.String(), ""}] != nil { // the database's directory was made
		return &touchedFork{}
	}
	key := touchedKey{relation: relation.String()}
	if fork != wal.ForkMain {
		key.fork = fork.String()
	}
	return t.forks[key]
}

// names reports whether an extent is named, by the block with which it begins. The ranges must be in order.
func (f *touchedFork) names(block uint32) bool {
	if f == nil {
		return false
	}
	extent := block / blocksPerExtent
	_, found := slices.BinarySearchFunc(f.ranges, extent, func(r repo.ExtentRange, extent uint32) int {
		switch {
		case r.Last < extent:
			return -1
		case r.First > extent:
			return 1
		}
		return 0
	})
	return found || f.cut < block+blocksPerExtent
}
