package archiver

import (
	"context"

	"pitr/internal/repo"
)

// memory shares out what a backup may hold: half of it to packs, an eighth each to extents and to frames, which are used again; buffers beyond
// what keeps all cores busy would only make it slower. The rest is what the collector of garbage lags behind.
type memory struct {
	packSize int64
	packs    chan struct{} // one for each pack in memory: a store may hold on to its bytes, so that they are not used again
	plains   chan []byte   // buffers that are free, nil for those that were never made
	frames   chan []byte
}

const (
	// uploads are packs under way at the same time.
	uploads = 3
	// packsInMemory is how many packs are held at most: one that is filled, and the uploads.
	packsInMemory = uploads + 1
	// buffersPerCore are extents on their way for each core.
	buffersPerCore = 16
	// frameSizeMax is the largest frame of an extent: zstd adds some bytes to what it cannot compress, and encryption a tag.
	frameSizeMax = repo.ExtentSize + 1<<10
)

func newMemory(budget int64, cores int) *memory {
	buffers := int(min(max(budget/8/repo.ExtentSize, 4), int64(buffersPerCore*cores)))
	m := &memory{packSize: min(repo.PackSizeMax, budget/2/packsInMemory), packs: make(chan struct{}, packsInMemory),
		plains: make(chan []byte, buffers), frames: make(chan []byte, buffers)}
	for range buffers {
		m.plains <- nil
		m.frames <- nil
	}
	return m
}

// take returns a free buffer of a pool with that capacity, and waits for one.
func take(ctx context.Context, pool chan []byte, size int) ([]byte, error) {
	select {
	case buf := <-pool:
		if buf == nil {
			buf = make([]byte, size)
		}
		return buf[:size], nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
