package repo

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"pitr/internal/wal"
)

// ChangedFork tells which extents of one fork of a relation the WAL of a segment has changed. docs/FORMAT.md, "Index".
type ChangedFork struct {
	Relation string  `json:"relation"`
	Fork     string  `json:"fork,omitempty"`    // absent: main
	Cut      *uint32 `json:"cut,omitempty"`     // the fork was made, removed or cut off: its blocks from here on are none of those before
	Extents  string  `json:"extents,omitempty"` // such as 0-3,7; absent: none
	Coarse   bool    `json:"coarse,omitempty"`  // ranges were joined to save room: some of these extents have not changed
}

// ExtentRange is a range of extents, both ends included.
type ExtentRange struct {
	First, Last uint32
}

// Ranges reads Extents.
func (c ChangedFork) Ranges() ([]ExtentRange, error) {
	var ranges []ExtentRange
	if c.Extents == "" {
		return nil, nil
	}
	for text := range strings.SplitSeq(c.Extents, ",") {
		low, high, isRange := strings.Cut(text, "-")
		if !isRange {
			high = low
		}
		first, err1 := strconv.ParseUint(low, 10, 32)
		last, err2 := strconv.ParseUint(high, 10, 32)
		if n := len(ranges); err1 != nil || err2 != nil || first > last || n > 0 && first <= uint64(ranges[n-1].Last) {
			return nil, fmt.Errorf("%q are no extents: %w", c.Extents, ErrDamaged)
		}
		ranges = append(ranges, ExtentRange{uint32(first), uint32(last)})
	}
	return ranges, nil
}

const (
	// blocksPerExtent is the size of an extent in blocks of 8 KiB.
	blocksPerExtent = 32
	// Bounds of what an index says of extents: forks, and ranges of extents in all of them.
	changedForksMax = 1 << 14
	rangesMax       = 1 << 15
	// chunksMax bounds the memory while an index is made: chunks of 64 extents in all forks.
	chunksMax = 1 << 17
)

// extents collects what the records of a segment change, as src/backend/postmaster/walsummarizer.c does.
type extents struct {
	forks  map[forkKey]*forkExtents
	chunks int
	all    bool // there were too many forks: anything may have changed
	last   *forkExtents
	key    forkKey
}

type forkKey struct {
	relation wal.Relation
	fork     wal.Fork
}

type forkExtents struct {
	cut    *uint32
	chunks map[uint32]uint64 // a bit for each of 64 extents
	whole  bool              // there were too many chunks: any extent may have changed
}

// add notes a record, which must have been decoded.
func (x *extents) add(r *wal.Record) error {
	if x.all {
		return nil
	}
	if r.Rmgr == wal.RmgrStorage || r.Rmgr == wal.RmgrDatabase || r.Rmgr == wal.RmgrXact {
		if err := r.Cuts(x.cut); err != nil {
			return err
		}
	}
	for i := range r.Blocks {
		if b := &r.Blocks[i]; b.Fork != wal.ForkFSM {
			x.mark(forkKey{b.Relation, b.Fork}, b.Number/blocksPerExtent)
		}
	}
	return nil
}

func (x *extents) fork(key forkKey) *forkExtents {
	if x.all {
		return nil
	}
	if x.last != nil && x.key == key {
		return x.last
	}
	f := x.forks[key]
	if f == nil {
		if len(x.forks) >= changedForksMax {
			*x = extents{all: true}
			return nil
		}
		if x.forks == nil {
			x.forks = map[forkKey]*forkExtents{}
		}
		f = &forkExtents{chunks: map[uint32]uint64{}}
		x.forks[key] = f
	}
	x.key, x.last = key, f
	return f
}

func (x *extents) mark(key forkKey, extent uint32) {
	f := x.fork(key)
	if f == nil || f.whole {
		return
	}
	chunk, bit := extent/64, uint64(1)<<(extent%64)
	bits := f.chunks[chunk]
	if bits&bit != 0 {
		return
	}
	f.chunks[chunk] = bits | bit
	if bits == 0 {
		if x.chunks++; x.chunks > chunksMax {
			x.chunks -= len(f.chunks)
			f.whole, f.chunks = true, nil
		}
	}
}

// cut follows BlockRefTableSetLimitBlock of src/common/blkreftable.c: what was changed behind the limit is forgotten, unless the limit is no
// lower than one before. The extent that is cut in two has changed itself.
func (x *extents) cut(c wal.Cut) {
	f := x.fork(forkKey{c.Relation, c.Fork})
	if f == nil || f.cut != nil && *f.cut <= c.Block {
		return
	}
	f.cut = &c.Block
	first := (c.Block + blocksPerExtent - 1) / blocksPerExtent
	for chunk, bits := range f.chunks {
		switch {
		case chunk > first/64:
			bits = 0
		case chunk == first/64:
			bits &= 1<<(first%64) - 1
		}
		f.chunks[chunk] = bits
		if bits == 0 {
			delete(f.chunks, chunk)
			x.chunks--
		}
	}
	if c.Block%blocksPerExtent != 0 {
		x.mark(forkKey{c.Relation, c.Fork}, c.Block/blocksPerExtent)
	}
}

func (f *forkExtents) ranges() []ExtentRange {
	if f.whole {
		return []ExtentRange{{0, ^uint32(0) / blocksPerExtent}}
	}
	var list []ExtentRange
	numbers := make([]uint32, 0, len(f.chunks))
	for chunk := range f.chunks {
		numbers = append(numbers, chunk)
	}
	slices.Sort(numbers)
	for _, chunk := range numbers {
		for bit := range uint32(64) {
			if f.chunks[chunk]&(1<<bit) == 0 {
				continue
			}
			extent := chunk*64 + bit
			if n := len(list); n > 0 && list[n-1].Last+1 == extent {
				list[n-1].Last = extent
			} else {
				list = append(list, ExtentRange{extent, extent})
			}
		}
	}
	return list
}

// finish returns what was collected, in order of relations and forks.
func (x *extents) finish() []ChangedFork {
	keys := make([]forkKey, 0, len(x.forks))
	lists := map[forkKey][]ExtentRange{}
	total := 0
	for key, f := range x.forks {
		keys = append(keys, key)
		lists[key] = f.ranges()
		total += len(lists[key])
	}
	slices.SortFunc(keys, func(a, b forkKey) int {
		return cmp.Or(cmp.Compare(a.relation.Tablespace, b.relation.Tablespace), cmp.Compare(a.relation.Database, b.relation.Database),
			cmp.Compare(a.relation.Number, b.relation.Number), cmp.Compare(a.fork, b.fork))
	})
	var forks []ChangedFork
	share := rangesMax / max(1, len(keys)) // enough for each; the rest goes to those that need more
	for _, key := range keys {
		list, coarse := lists[key], x.forks[key].whole
		if total > rangesMax && len(list) > share {
			list, coarse = joined(list, share), true
		}
		c := ChangedFork{Relation: key.relation.String(), Cut: x.forks[key].cut, Extents: rangesText(list), Coarse: coarse}
		if key.fork != 0 {
			c.Fork = key.fork.String()
		}
		forks = append(forks, c)
	}
	return forks
}

// joined closes gaps between ranges, ever larger ones, until no more than most are left.
func joined(list []ExtentRange, most int) []ExtentRange {
	for gap := uint32(1); len(list) > most; gap *= 2 {
		kept := list[:1]
		for _, r := range list[1:] {
			if last := &kept[len(kept)-1]; r.First-last.Last-1 <= gap || gap > 1<<30 {
				last.Last = r.Last
			} else {
				kept = append(kept, r)
			}
		}
		list = kept
	}
	return list
}

func rangesText(list []ExtentRange) string {
	var text []byte
	for i, r := range list {
		if i > 0 {
			text = append(text, ',')
		}
		text = strconv.AppendUint(text, uint64(r.First), 10)
		if r.Last > r.First {
			text = strconv.AppendUint(append(text, '-'), uint64(r.Last), 10)
		}
	}
	return string(text)
}
