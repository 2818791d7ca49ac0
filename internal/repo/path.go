package repo

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"pitr/internal/pg"
	"pitr/internal/store"
)

// Path is the WAL on the way to one timeline: its own, and that of its ancestors up to where each was left.
type Path struct {
	Tip         pg.Timeline
	History     pg.History
	Size        pg.SegmentSize
	inventories map[pg.Timeline]*Inventory
}

// Path lists the WAL on the way to timeline tip, from the segment that holds from onwards.
func (r *Repo) Path(ctx context.Context, tip pg.Timeline, size pg.SegmentSize, from pg.LSN) (*Path, error) {
	history, err := r.History(ctx, tip)
	if err != nil {
		return nil, fmt.Errorf("timeline %d: %w", tip, err)
	}
	p := &Path{Tip: tip, History: history, Size: size, inventories: map[pg.Timeline]*Inventory{}}
	for _, tli := range p.timelines() {
		if _, left := p.bounds(tli); left <= from {
			continue // left before from: nothing of it is needed
		}
		if p.inventories[tli], err = r.Inventory(ctx, tli, size, from); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// timelines are those of the path, newest first: the order in which recovery looks for a segment.
func (p *Path) timelines() []pg.Timeline {
	list := []pg.Timeline{p.Tip}
	for i := len(p.History) - 1; i >= 0; i-- {
		list = append(list, p.History[i].Timeline)
	}
	return list
}

// bounds are the positions at which the path enters and leaves a timeline.
func (p *Path) bounds(tli pg.Timeline) (begin, left pg.LSN) {
	for _, ancestor := range p.History {
		if ancestor.Timeline == tli {
			return begin, ancestor.Switch
		}
		begin = ancestor.Switch
	}
	return begin, ^pg.LSN(0)
}

// Inventory is what is there of one timeline of the path; nil when nothing of it is needed.
func (p *Path) Inventory(tli pg.Timeline) *Inventory { return p.inventories[tli] }

// at finds the stored segment, whole or in parts, that has the byte at lsn, and how far it reaches on this path.
func (p *Path) at(lsn pg.LSN) (segment pg.Segment, end pg.LSN) {
	number := uint64(lsn) / uint64(p.Size)
	for _, tli := range p.timelines() {
		begin, left := p.bounds(tli)
		inv := p.inventories[tli]
		if inv == nil || uint64(begin)/uint64(p.Size) > number {
			continue
		}
		segment := pg.Segment{Timeline: tli, Number: number}
		reach := min(inv.within(number, lsn), left)
		if reach > lsn {
			return segment, reach
		}
	}
	return pg.Segment{}, lsn
}

// within is how far from lsn on the bytes of one segment are there.
func (inv *Inventory) within(number uint64, lsn pg.LSN) pg.LSN {
	if inv.HasSegment(number) {
		return pg.Segment{Number: number}.End(inv.Size)
	}
	// Parts are read from the segment's start, so the chain must begin there.
	start := pg.Segment{Number: number}.Start(inv.Size)
	picked := chain(inv.Parts[number], start)
	if len(picked) == 0 {
		return lsn
	}
	return max(lsn, picked[len(picked)-1].End)
}

// Frontier is the end of the WAL that is there without a gap from the position from on; from itself when there is none.
func (p *Path) Frontier(from pg.LSN) pg.LSN {
	for {
		_, end := p.at(from)
		if end == from {
			return from
		}
		from = end
	}
}

// Runs are the stretches of WAL of the path that are there without a gap, in order.
func (p *Path) Runs() []Run {
	starts := map[pg.LSN]bool{}
	for tli, inv := range p.inventories {
		_, left := p.bounds(tli)
		for _, run := range inv.Runs() {
			if run.Start < left {
				starts[run.Start] = true
			}
		}
	}
	var runs []Run
	for _, start := range slices.Sorted(maps.Keys(starts)) {
		if n := len(runs); n > 0 && start < runs[n-1].End {
			continue
		}
		if end := p.Frontier(start); end > start {
			runs = append(runs, Run{start, end})
		}
	}
	return runs
}

// Last is the position behind everything that is there of the path, gaps or not.
func (p *Path) Last() pg.LSN {
	var last pg.LSN
	for tli, inv := range p.inventories {
		_, left := p.bounds(tli)
		last = max(last, min(inv.Last(), left))
	}
	return last
}

// Segments lists the stored segments that hold the WAL from one position to another, in order. It stops at a gap.
func (p *Path) Segments(from, to pg.LSN) []pg.Segment {
	var segments []pg.Segment
	for from < to {
		segment, end := p.at(from)
		if end == from {
			break
		}
		if n := len(segments); n == 0 || segments[n-1] != segment {
			segments = append(segments, segment)
		}
		from = end
	}
	return segments
}

// ErrStop makes ReadWAL end early, without an error.
var ErrStop = errors.New("enough WAL was read")

// ReadWAL passes the bytes of the path, in order and without a gap, from one position to another or to the end of what is there.
func (r *Repo) ReadWAL(ctx context.Context, p *Path, from, to pg.LSN, visit func(at pg.LSN, content []byte) error) error {
	for from < to {
		segment, end := p.at(from)
		if end == from {
			return nil
		}
		content, err := r.ReadSegment(ctx, p.Size, segment)
		if err != nil {
			return fmt.Errorf("read WAL at %s: %w", from, err)
		}
		start := segment.Start(p.Size)
		end = min(end, to)
		if pg.LSN(len(content)) < end-start {
			return fmt.Errorf("read WAL at %s: %w: segment %s has %d bytes now", from, ErrDamaged, segment.Name(p.Size), len(content))
		}
		err = visit(from, content[from-start:end-start])
		if errors.Is(err, ErrStop) {
			return nil
		}
		if err != nil {
			return err
		}
		from = end
	}
	return nil
}

// IndexOf returns the index of a segment of the path; ok is false when the segment is not whole or has none yet. The first segment of a
// timeline counts as having none: its index lacks the record that began in the segment before, which is the ancestor's.
func (r *Repo) IndexOf(ctx context.Context, p *Path, segment pg.Segment) (index Index, ok bool, err error) {
	inv := p.inventories[segment.Timeline]
	begin, left := p.bounds(segment.Timeline)
	if inv == nil || !inv.Complete(segment.Number) || left < segment.End(p.Size) || begin > segment.Start(p.Size) {
		return Index{}, false, nil
	}
	index, err = r.ReadIndex(ctx, p.Size, segment)
	if errors.Is(err, store.ErrNotExist) {
		return Index{}, false, nil
	}
	return index, err == nil, err
}

// Timelines yields the timelines of the path, newest first.
func (p *Path) Timelines() iter.Seq[pg.Timeline] { return slices.Values(p.timelines()) }

// Contains reports whether a position of a timeline lies on the path: not behind the point at which the path left it.
func (p *Path) Contains(tli pg.Timeline, lsn pg.LSN) bool {
	if !slices.Contains(p.timelines(), tli) {
		return false
	}
	_, left := p.bounds(tli)
	return lsn <= left
}
