package journal

import (
	"context"
	"errors"
	"sync"

	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// span is the part of a run that has to be read.
type span struct {
	lead pg.LSN // where reading begins, so that the transactions that end behind from are seen whole
	from pg.LSN // what ends at or before it is of no interest
	to   pg.LSN
	sure xidFloor
}

// leadMax is how many bytes of WAL are read at most before what was asked for, to see long transactions from their beginning. What began even
// earlier is told as partial.
const leadMax = 4 << 30

// digest is what of a segment's index decides whether the segment has to be read.
type digest struct {
	wanted     bool       // something in it may be wanted
	indexed    bool       // its index tells the ids of its transactions
	xids       *repo.XIDs // of its records
	unfinished pg.LSN     // start of the record that goes on behind it
}

// span finds what has to be read of a run by the indexes of its segments; ok is false when nothing has. Segments that are not whole, or
// whose index is of an older program, are read unless it is certain that they need not be.
func (rd *reader) span(ctx context.Context, run repo.Run) (s span, ok bool, err error) {
	s = span{lead: run.Start, from: run.Start, to: run.End}
	if rd.opt.Until != 0 {
		run.End = min(run.End, rd.opt.Until)
		s.to = run.End
	}
	begin := run.Start
	switch {
	case rd.after > begin:
		begin = max(begin, rd.path.Size.Start(rd.after-min(rd.after, pg.LSN(rd.opt.LeadMax)))) // nothing before it is read in any case
	case rd.opt.From.IsZero() && rd.opt.To.IsZero() && rd.opt.XID == 0:
		return s, true, nil
	}
	segments := rd.path.Segments(begin, run.End)
	digests, err := rd.digests(ctx, segments)
	if err != nil {
		return s, false, err
	}
	first, last := len(digests), -1
	for i, d := range digests {
		if d.wanted && segments[i].End(rd.path.Size) > rd.after {
			first, last = min(first, i), i
		}
	}
	if last < 0 {
		return s, false, nil
	}
	lead, sure := leadOf(digests, first, last, rd.path.Size, rd.opt.LeadMax)
	s.sure = sure
	s.from = max(run.Start, rd.after, segments[first].Start(rd.path.Size))
	s.to = min(run.End, segments[last].End(rd.path.Size))
	s.lead = max(run.Start, segments[lead].Start(rd.path.Size))
	if lead > 0 && digests[lead-1].unfinished != 0 {
		s.lead = max(run.Start, digests[lead-1].unfinished&^(wal.PageSize-1))
	}
	return s, true, nil
}

// leadOf goes back from the first wanted segment to the one behind which every transaction with a record in the wanted ones has begun, as far
// as leadMax allows, and says which transactions have certainly begun there. Ids are given out in order: a segment before which no id was seen
// that is as high as the lowest wanted one cannot know any of the wanted.
func leadOf(digests []digest, first, last int, size pg.SegmentSize, budget int64) (lead int, sure xidFloor) {
	var oldest *repo.XIDs
	for _, d := range digests[first : last+1] {
		if d.xids != nil && (oldest == nil || precedes(d.xids.First, oldest.First)) {
			oldest = d.xids
		}
	}
	// highest[i] is the floor that the segments before i leave.
	highest := make([]xidFloor, first+1)
	for i, d := range digests[:first] {
		next := highest[i]
		next.known = d.indexed && (i == 0 || next.known)
		if d.xids != nil && (next.first == 0 || precedes(next.first, d.xids.Last+1)) {
			next.first = d.xids.Last + 1
		}
		highest[i+1] = next
	}
	lead = first
	for ; lead > 0 && budget > 0; budget -= int64(size) {
		if !digests[lead-1].indexed || oldest == nil || highest[lead].first == 0 || !precedes(oldest.First, highest[lead].first) {
			break
		}
		lead--
	}
	return lead, highest[lead]
}

// precedes compares transaction ids, which wrap around.
func precedes(a, b uint32) bool { return int32(a-b) < 0 }

// digests fetches the indexes of segments, several at once, and keeps of each no more than is needed.
func (rd *reader) digests(ctx context.Context, segments []pg.Segment) ([]digest, error) {
	digests := make([]digest, len(segments))
	missing := make([]bool, len(segments))
	errs := make([]error, len(segments))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var tasks sync.WaitGroup
	limit := make(chan struct{}, max(1, rd.opt.Parallel))
	for i, segment := range segments {
		limit <- struct{}{}
		tasks.Go(func() {
			defer func() { <-limit }()
			index, ok, err := rd.repo.IndexOf(ctx, rd.path, segment)
			if err != nil {
				errs[i] = err
				cancel()
				return
			}
			digests[i], missing[i] = rd.digest(index), !ok
		})
	}
	tasks.Wait()
	for _, err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			return nil, err
		}
	}
	for i, segment := range segments {
		if !missing[i] {
			continue
		}
		from := segment.Start(rd.path.Size)
		if i > 0 && digests[i-1].unfinished != 0 {
			from = digests[i-1].unfinished
		}
		index, err := rd.makeIndex(ctx, from, segment)
		if err != nil {
			return nil, err
		}
		digests[i] = rd.digest(index)
	}
	return digests, ctx.Err()
}

// makeIndex decodes a segment that is not whole or has no index yet; from is the start of the record that goes on into it, or its own.
func (rd *reader) makeIndex(ctx context.Context, from pg.LSN, segment pg.Segment) (repo.Index, error) {
	var builder repo.IndexBuilder
	start := segment.Start(rd.path.Size)
	decoder := rd.decoder(from&^(wal.PageSize-1), func(r *wal.Record) error {
		if r.End <= start {
			return nil
		}
		return builder.Add(r)
	})
	if err := rd.decode(ctx, decoder, segment.End(rd.path.Size)); err != nil {
		return repo.Index{}, err
	}
	return builder.Finish(segment, rd.path.Size, decoder.UnfinishedRecord()), nil
}

func (rd *reader) digest(index repo.Index) digest {
	d := digest{indexed: index.Detail > 0, xids: index.XIDs, unfinished: index.Unfinished}
	if rd.opt.XID != 0 && d.indexed && !index.XIDs.Holds(rd.opt.XID) {
		return d
	}
	for _, mark := range index.Marks {
		if (rd.opt.From.IsZero() || !mark.Max.Before(rd.opt.From)) && (rd.opt.To.IsZero() || !mark.Min.After(rd.opt.To)) {
			d.wanted = true
		}
	}
	for _, point := range index.RestorePoints {
		d.wanted = d.wanted || rd.inTime(point.Time)
	}
	return d
}
