package repo

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"slices"
	"time"

	"pitr/internal/pg"
	"pitr/internal/store"
)

// Frame is the compressed form of a piece of WAL, which a part and the larger object that replaces it have in common.
type Frame struct {
	length uint64
	hash   [sha256.Size]byte // of the plain bytes; unset in one that cannot be a part
	isPart bool              // hash is set
	packed []byte
}

// Pack compresses a piece of WAL that may become a part.
func (r *Repo) Pack(content []byte) Frame {
	f := r.Compress(content)
	f.hash, f.isPart = sha256.Sum256(content), true
	return f
}

// Compress compresses a piece of WAL that is stored only within a larger object, which has a hash of its own.
func (r *Repo) Compress(content []byte) Frame {
	return Frame{length: uint64(len(content)), packed: r.compressor.Append(make([]byte, 0, len(content)/usualRatio+frameOverhead), content)}
}

const (
	// usualRatio is by how much WAL mostly shrinks; room for less is made when it is needed.
	usualRatio = 3
	// frameOverhead is more than what the shortest piece grows by.
	frameOverhead = 64
)

// PutPart stores the bytes of a stretch of WAL; p.End - p.Start of them. asOf is the server's clock when it had sent them.
func (r *Repo) PutPart(ctx context.Context, size pg.SegmentSize, p Part, asOf time.Time, f Frame) error {
	if !f.isPart || pg.LSN(f.length) != p.End-p.Start || size.Start(p.Start) != size.Start(p.End-1) {
		panic("repo: a part is the bytes between its positions, within one segment")
	}
	h := Header{Kind: KindPart, Codec: CodecZstd, PlainLength: f.length, AsOf: asOf, Hash: f.hash}
	return r.put(ctx, partKey(p, size), draft{header: h, body: f.packed})
}

// stretchMax is the most plain WAL of one object: what an archiver has in memory of an open segment does not grow with segments.
const stretchMax = 64 << 20

// Stretch is how much WAL the parts of a segment are put together to: the whole segment, or so much of a large one that it fits into
// memory. Stretches begin at multiples of it.
func Stretch(size pg.SegmentSize) pg.LSN { return min(pg.LSN(size), stretchMax) }

// PutStretch stores a stretch that has come to its end: a whole segment, or a part of a large one that replaces smaller ones.
func (r *Repo) PutStretch(ctx context.Context, size pg.SegmentSize, p Part, asOf time.Time, b *StretchBuilder) error {
	if pg.LSN(b.length) != p.End-p.Start || b.length != uint64(Stretch(size)) {
		panic("repo: a stretch is whole")
	}
	h := Header{Kind: KindSegment, Codec: CodecZstd, PlainLength: b.length, AsOf: asOf, Hash: [sha256.Size]byte(b.hash.Sum(nil))}
	key := segmentKey(size.Segment(p.Timeline, p.Start), size)
	if b.length < uint64(size) {
		h.Kind, key = KindPart, partKey(p, size)
	}
	return r.put(ctx, key, draft{header: h, body: b.frames})
}

// ComparePart compares the hash of the bytes of a stretch of WAL with a stored part of it: other bytes are ErrConflict.
func (r *Repo) ComparePart(ctx context.Context, size pg.SegmentSize, p Part, hash [sha256.Size]byte) error {
	d := draft{header: Header{Kind: KindPart, PlainLength: uint64(p.End - p.Start), Hash: hash}}
	if err := r.compare(ctx, partKey(p, size), d); err != nil {
		return fmt.Errorf("compare %s: %w", partKey(p, size), err)
	}
	return nil
}

// HasSegment reports whether the whole segment is there.
func (r *Repo) HasSegment(ctx context.Context, size pg.SegmentSize, segment pg.Segment) (bool, error) {
	_, err := r.header(ctx, segmentKey(segment, size), KindSegment)
	if errors.Is(err, store.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("get %s: %w", segmentKey(segment, size), err)
	}
	return true, nil
}

// CompareSegment compares the hash of a segment with the whole one that is stored: other bytes are ErrConflict.
func (r *Repo) CompareSegment(ctx context.Context, size pg.SegmentSize, segment pg.Segment, hash [sha256.Size]byte) error {
	d := draft{header: Header{Kind: KindSegment, PlainLength: uint64(size), Hash: hash}}
	if err := r.compare(ctx, segmentKey(segment, size), d); err != nil {
		return fmt.Errorf("compare %s: %w", segmentKey(segment, size), err)
	}
	return nil
}

// DeletePart removes a part whose bytes are there in a larger object.
func (r *Repo) DeletePart(ctx context.Context, size pg.SegmentSize, p Part) error {
	return r.store.Delete(ctx, r.prefix+partKey(p, size))
}

// DeleteSegment removes a segment and its index: the index first, since nobody would look for one whose segment has gone.
func (r *Repo) DeleteSegment(ctx context.Context, size pg.SegmentSize, segment pg.Segment) error {
	if err := r.store.Delete(ctx, r.prefix+indexKey(segment, size)); err != nil {
		return fmt.Errorf("delete %s: %w", indexKey(segment, size), err)
	}
	return r.store.Delete(ctx, r.prefix+segmentKey(segment, size))
}

// Inventory is what WAL of one timeline the repository holds, by names alone.
type Inventory struct {
	Timeline pg.Timeline
	Size     pg.SegmentSize
	Segments []uint64          // numbers of whole segments, in order
	Parts    map[uint64][]Part // by number of segment, in order of their starts
	Bytes    int64             // stored

	replaced map[uint64]time.Time // when whole segments were stored, by number
	stretch  map[pg.LSN]time.Time // when stretches of large segments were, by start
}

// Inventory lists the WAL of a timeline from the segment that holds from onwards.
func (r *Repo) Inventory(ctx context.Context, tli pg.Timeline, size pg.SegmentSize, from pg.LSN) (*Inventory, error) {
	inv := &Inventory{Timeline: tli, Size: size, Parts: map[uint64][]Part{}, replaced: map[uint64]time.Time{}, stretch: map[pg.LSN]time.Time{}}
	after := ""
	if from > 0 {
		after = keyBefore(size.Segment(tli, from), size)
	}
	if err := r.listWAL(ctx, inv, after); err != nil {
		return nil, err
	}
	// An archiver that completes a segment while we list puts it under a name that we may have passed, and removes its parts before
	// we come to them. By now it is there: a second look behind what is whole finds all that was there when the first began.
	if runs := inv.Runs(); len(runs) > 0 {
		after = keyBefore(size.Segment(tli, runs[0].End), size)
	}
	return inv, r.listWAL(ctx, inv, after)
}

// keyBefore is a string between the keys of the segment before, with its parts, and those of this one: '~' sorts behind all that names
// contain.
func keyBefore(segment pg.Segment, size pg.SegmentSize) string {
	key := segmentKey(segment, size)
	return key[:len(key)-1] + string(key[len(key)-1]-1) + "~"
}

// listWAL adds what lies behind a key to inv.
func (r *Repo) listWAL(ctx context.Context, inv *Inventory, after string) error {
	dir := walDir + inv.Timeline.Hex() + "/"
	if after != "" {
		after = r.prefix + after
	}
	for object, err := range r.store.List(ctx, r.prefix+dir, after) {
		if err != nil {
			return fmt.Errorf("list %s: %w", dir, err)
		}
		segment, part, ok := parseWALKey(object.Key[len(r.prefix):], inv.Size)
		if !ok {
			return fmt.Errorf("list %s: %s is neither a segment nor a part: %w", dir, object.Key, ErrDamaged)
		}
		isNew := false
		if part == nil {
			isNew = inv.addSegment(segment.Number)
			inv.replaced[segment.Number] = object.Modified
		} else {
			part.Size = object.Size
			isNew = inv.addPart(segment.Number, *part)
			if isStretchOf(*part, inv.Size) {
				inv.stretch[part.Start] = object.Modified
			}
		}
		if isNew {
			inv.Bytes += object.Size
		}
	}
	return nil
}

func (inv *Inventory) addSegment(number uint64) (isNew bool) {
	i, found := slices.BinarySearch(inv.Segments, number)
	if !found {
		inv.Segments = slices.Insert(inv.Segments, i, number)
	}
	return !found
}

func (inv *Inventory) addPart(number uint64, part Part) (isNew bool) {
	parts := inv.Parts[number]
	i, found := slices.BinarySearchFunc(parts, part, func(a, b Part) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.End, b.End))
	})
	if !found {
		inv.Parts[number] = slices.Insert(parts, i, part)
	}
	return !found
}

// HasSegment reports whether the whole segment is there.
func (inv *Inventory) HasSegment(number uint64) bool {
	_, found := slices.BinarySearch(inv.Segments, number)
	return found
}

// Complete reports whether all of a segment is there: as a whole, or in parts.
func (inv *Inventory) Complete(number uint64) bool {
	segment := pg.Segment{Number: number}
	return inv.within(number, segment.Start(inv.Size)) == segment.End(inv.Size)
}

// Completed lists the numbers of the segments that are there with all their bytes, in order.
func (inv *Inventory) Completed() []uint64 {
	numbers := slices.Clone(inv.Segments)
	for number := range inv.Parts {
		if !inv.HasSegment(number) && inv.Complete(number) {
			numbers = append(numbers, number)
		}
	}
	slices.Sort(numbers)
	return numbers
}

// isStretchOf reports whether a part is a stretch of a large segment, which replaces smaller ones.
func isStretchOf(p Part, size pg.SegmentSize) bool {
	return p.End-p.Start == Stretch(size) && p.Start%Stretch(size) == 0
}

// Superfluous are the parts whose stretch is there as one object, and was before an instant of the store's clock: whoever had listed the
// parts by then has read them. Who was killed may have left them, or may not delete.
func (inv *Inventory) Superfluous(before time.Time) []Part {
	var list []Part
	for number, parts := range inv.Parts {
		since, whole := inv.replaced[number]
		for _, part := range parts {
			since, replaced := since, whole
			if !replaced && !isStretchOf(part, inv.Size) {
				since, replaced = inv.stretch[part.Start-part.Start%Stretch(inv.Size)]
			}
			if replaced && !since.After(before) {
				list = append(list, part)
			}
		}
	}
	return list
}

// Run is a stretch of WAL without a gap.
type Run struct {
	Start, End pg.LSN
}

// Runs are the stretches that are there, in order. More than one means that something is missing between them.
func (inv *Inventory) Runs() []Run {
	numbers := slices.Clone(inv.Segments)
	for number := range inv.Parts {
		if !inv.HasSegment(number) {
			numbers = append(numbers, number)
		}
	}
	slices.Sort(numbers)
	var runs []Run
	for _, number := range numbers {
		segment := pg.Segment{Number: number}
		start, end := segment.Start(inv.Size), segment.End(inv.Size)
		if !inv.HasSegment(number) {
			end = inv.within(number, start)
		}
		switch n := len(runs); {
		case start == end: // parts without the first one: unreadable
		case n > 0 && runs[n-1].End == start:
			runs[n-1].End = end
		default:
			runs = append(runs, Run{start, end})
		}
	}
	return runs
}

// Last is the position behind everything that is there, gaps or not.
func (inv *Inventory) Last() pg.LSN {
	var last pg.LSN
	if n := len(inv.Segments); n > 0 {
		last = pg.Segment{Number: inv.Segments[n-1]}.End(inv.Size)
	}
	for _, parts := range inv.Parts {
		for _, part := range parts {
			last = max(last, part.End)
		}
	}
	return last
}

// chain picks parts that hold the bytes from a position on without a gap. They come in the order of their starts and may overlap: an
// archiver that was killed leaves some that the next one cut otherwise, with the same bytes.
func chain(parts []Part, from pg.LSN) []Part {
	var picked []Part
	for {
		best := Part{End: from}
		for len(parts) > 0 && parts[0].Start <= from {
			if parts[0].End > best.End {
				best = parts[0]
			}
			parts = parts[1:]
		}
		if best.End == from {
			return picked
		}
		picked = append(picked, best)
		from = best.End
	}
}

// ReadSegment returns the bytes of a segment: all of them, or, while it is open, those from its start that parts hold.
// store.ErrNotExist says that certainly neither is there.
func (r *Repo) ReadSegment(ctx context.Context, size pg.SegmentSize, segment pg.Segment) ([]byte, error) {
	if Stretch(size) < pg.LSN(size) {
		var content []byte
		err := r.VisitSegment(ctx, size, segment, func(_ pg.LSN, piece []byte) error {
			content = append(content, piece...)
			return nil
		})
		return content, err
	}
	content, err := r.readWhole(ctx, size, segment)
	if !errors.Is(err, store.ErrNotExist) {
		return content, err
	}
	content, partsErr := r.readParts(ctx, size, segment)
	if partsErr == nil && len(content) > 0 {
		return content, nil
	}
	if partsErr != nil && !errors.Is(partsErr, store.ErrNotExist) && !errors.Is(partsErr, errNoFirstPart) {
		return nil, partsErr
	}
	// Nothing, or a part that was listed has gone: the archiver may just have completed the segment and removed its parts.
	content, err = r.readWhole(ctx, size, segment)
	if partsErr != nil && errors.Is(err, store.ErrNotExist) {
		// There are parts, so the archive does not end before this segment.
		return nil, fmt.Errorf("get %s: %w: %s", segmentKey(segment, size), ErrDamaged, partsErr.Error())
	}
	return content, err
}

// VisitSegment passes the bytes of a segment in pieces that fit into memory, as far as they are there without a gap from its start on.
// store.ErrNotExist says that certainly nothing is there.
func (r *Repo) VisitSegment(ctx context.Context, size pg.SegmentSize, segment pg.Segment, visit func(at pg.LSN, content []byte) error) error {
	if Stretch(size) == pg.LSN(size) {
		content, err := r.ReadSegment(ctx, size, segment)
		if err != nil {
			return err
		}
		return visit(segment.Start(size), content)
	}
	at, missing := segment.Start(size), Part{}
	for {
		parts, err := r.parts(ctx, size, segment)
		if err != nil {
			return err
		}
		picked := chain(parts, at)
		switch {
		case len(picked) > 0:
		case at > segment.Start(size):
			return nil
		case len(parts) > 0:
			return fmt.Errorf("get %s: %w: %w", segmentKey(segment, size), ErrDamaged, errNoFirstPart)
		default:
			return fmt.Errorf("get %s: %w", segmentKey(segment, size), store.ErrNotExist)
		}
		for _, part := range picked {
			content, err := r.ReadPart(ctx, size, part)
			if errors.Is(err, store.ErrNotExist) && part != missing {
				missing = part // a larger one has replaced it since it was listed: look again
				break
			}
			if errors.Is(err, store.ErrNotExist) {
				return fmt.Errorf("get %s: %w: it is listed, and not there", partKey(part, size), ErrDamaged)
			}
			if err == nil {
				err = visit(at, content[at-part.Start:])
			}
			if err != nil {
				return err
			}
			at = part.End
		}
		if at == picked[len(picked)-1].End {
			return nil
		}
	}
}

var errNoFirstPart = errors.New("there are parts, but not the one from the segment's start")

func (r *Repo) readWhole(ctx context.Context, size pg.SegmentSize, segment pg.Segment) ([]byte, error) {
	content, _, err := r.get(ctx, segmentKey(segment, size), KindSegment, int64(size))
	if err == nil && pg.SegmentSize(len(content)) != size {
		err = fmt.Errorf("get %s: %w: it has %d bytes", segmentKey(segment, size), ErrDamaged, len(content))
	}
	return content, err
}

func (r *Repo) readParts(ctx context.Context, size pg.SegmentSize, segment pg.Segment) ([]byte, error) {
	parts, err := r.parts(ctx, size, segment)
	if err != nil {
		return nil, err
	}
	var content []byte
	at := segment.Start(size)
	picked := chain(parts, at)
	if len(picked) == 0 && len(parts) > 0 {
		return nil, errNoFirstPart
	}
	for _, part := range picked {
		bytes, err := r.ReadPart(ctx, size, part)
		if err != nil {
			return nil, err
		}
		content = append(content, bytes[at-part.Start:]...)
		at = part.End
	}
	return content, nil
}

func (r *Repo) parts(ctx context.Context, size pg.SegmentSize, segment pg.Segment) ([]Part, error) {
	var parts []Part
	err := r.keys(ctx, segmentKey(segment, size)+partsSuffix+"/", func(object store.Object) error {
		_, part, ok := parseWALKey(object.Key, size)
		if !ok || part == nil {
			return fmt.Errorf("%s is no part: %w", object.Key, ErrDamaged)
		}
		part.Size = object.Size
		parts = append(parts, *part)
		return nil
	})
	return parts, err
}

// ReadPart returns the bytes of one part.
func (r *Repo) ReadPart(ctx context.Context, size pg.SegmentSize, part Part) ([]byte, error) {
	content, _, err := r.get(ctx, partKey(part, size), KindPart, int64(size))
	if err == nil && pg.LSN(len(content)) != part.End-part.Start {
		err = fmt.Errorf("get %s: %w: it has %d bytes", partKey(part, size), ErrDamaged, len(content))
	}
	return content, err
}

// PartClock is the server's clock at the end of a part.
func (r *Repo) PartClock(ctx context.Context, size pg.SegmentSize, part Part) (Clock, error) {
	header, err := r.header(ctx, partKey(part, size), KindPart)
	return Clock{LSN: part.End, Time: header.AsOf}, err
}

// StretchBuilder collects a stretch of WAL piece by piece, each compressed as a frame of its own. The zero value is empty.
type StretchBuilder struct {
	hash   hash.Hash
	frames []byte
	length uint64
}

// Add appends the next bytes, with their compressed form.
func (b *StretchBuilder) Add(content []byte, f Frame) {
	if b.hash == nil {
		b.hash = sha256.New()
	}
	b.hash.Write(content)
	if b.frames == nil {
		b.frames = f.packed // whoever has the frame too reads no further than its length
	} else {
		b.frames = append(b.frames, f.packed...)
	}
	b.length += f.length
}

// Length is the number of plain bytes so far.
func (b *StretchBuilder) Length() uint64 { return b.length }
