package repo

import (
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"pitr/internal/pg"
	"pitr/internal/store"
)

// StoredSegment is a whole segment as it lies in the store, not yet decoded.
type StoredSegment struct {
	repo    *Repo
	segment pg.Segment
	size    pg.SegmentSize
	object  []byte
}

// GetSegment brings a whole segment. store.ErrNotExist says that it is not there as a whole; parts of it may be.
func (r *Repo) GetSegment(ctx context.Context, size pg.SegmentSize, segment pg.Segment) (StoredSegment, error) {
	object, err := store.ReadAll(ctx, r.store, r.prefix+segmentKey(segment, size), int64(size)+int64(size)/8+1<<20)
	if err != nil {
		return StoredSegment{}, fmt.Errorf("get %s: %w", segmentKey(segment, size), err)
	}
	return StoredSegment{r, segment, size, object}, nil
}

// segmentDecoder writes no further than to the end of the buffer that it is given.
var segmentDecoder = newSegmentDecoder()

func newSegmentDecoder() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderMaxWindow(decoderMemoryMax), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic("repo: a zstd decoder with fixed options: " + err.Error())
	}
	return d
}

// Plain returns the bytes of the segment after their hash was compared, in buf if it has room for a segment: making so much room anew costs
// as much as decoding. What is encrypted or damaged is read again as any object is, from another store if need be.
func (s StoredSegment) Plain(ctx context.Context, buf []byte) ([]byte, error) {
	h, err := decodeHeader(s.object, KindSegment)
	if err == nil && !h.encrypted() && h.Codec == CodecZstd && h.PlainLength == uint64(s.size) && cap(buf) >= int(s.size) {
		content, err := segmentDecoder.DecodeAll(s.object[headerSize:], buf[:0:s.size])
		if err == nil && len(content) == int(s.size) && sha256.Sum256(content) == h.Hash {
			return content, nil
		}
	}
	return s.repo.readWhole(ctx, s.size, s.segment)
}
