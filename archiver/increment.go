package archiver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"pitr/internal/pg"
)

// increment is the head of a file of which only changed blocks are sent: sendFile of src/backend/backup/basebackup.c and
// GetIncrementalHeaderSize of src/backend/backup/basebackup_incremental.c.
type increment struct {
	truncation uint32   // the file had, or has, so many blocks at least
	blocks     []uint32 // that follow the head, in order
}

// incrementMagic is INCREMENTAL_MAGIC of src/include/backup/basebackup_incremental.h.
const incrementMagic = 0xd3ae1f0d

// readIncrement reads the head of a file of size bytes.
func readIncrement(r io.Reader, size int64) (increment, error) {
	var fixed [12]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return increment{}, err
	}
	word := binary.LittleEndian.Uint32
	n := word(fixed[4:])
	h := increment{truncation: word(fixed[8:])}
	switch {
	case word(fixed[:]) != incrementMagic:
		return h, fmt.Errorf("it begins with %08x", word(fixed[:]))
	case n > pg.RelationSegmentBlocks || h.truncation > pg.RelationSegmentBlocks:
		return h, fmt.Errorf("it says that it has %d blocks, and %d at least", n, h.truncation)
	}
	length := int64(len(fixed)) + 4*int64(n)
	padding := int64(0)
	if n > 0 {
		padding = (pg.PageSize - length%pg.PageSize) % pg.PageSize
	}
	if size != length+padding+int64(n)*pg.PageSize {
		return h, fmt.Errorf("it has %d bytes for %d blocks", size, n)
	}
	numbers := make([]byte, 4*n+uint32(padding))
	if _, err := io.ReadFull(r, numbers); err != nil {
		return h, err
	}
	h.blocks = make([]uint32, n)
	for i := range h.blocks {
		h.blocks[i] = word(numbers[4*i:])
		if h.blocks[i] >= pg.RelationSegmentBlocks || i > 0 && h.blocks[i] <= h.blocks[i-1] {
			return h, errors.New("its blocks are not in order")
		}
	}
	return h, nil
}

// length is how many blocks the file has: find_reconstructed_block_length of src/bin/pg_combinebackup/reconstruct.c.
func (h increment) length() uint32 {
	if n := len(h.blocks); n > 0 {
		return max(h.truncation, h.blocks[n-1]+1)
	}
	return h.truncation
}
