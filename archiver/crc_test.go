package archiver

import (
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"testing"

	"pitr/internal/repo"
)

func TestChecksumOfAFileIsPutTogetherFromThoseOfItsExtents(t *testing.T) {
	table := crc32.MakeTable(crc32.Castagnoli)
	rng := rand.New(rand.NewPCG(5, 6))
	for _, size := range []int{0, 1, 8192, repo.ExtentSize, repo.ExtentSize + 1, 3*repo.ExtentSize - 8192, 4 * repo.ExtentSize} {
		content := make([]byte, size)
		for i := range content {
			content[i] = byte(rng.Uint32())
		}
		f := &repo.File{Size: int64(size)}
		for piece := range slices.Chunk(content, repo.ExtentSize) {
			f.Extents = append(f.Extents, repo.Extent{CRC: repo.CRCOf(piece)})
		}
		if got, want := crcOf(f), crc32.Checksum(content, table); got.Sum != want || !got.Known {
			t.Errorf("%d bytes: %08x, want %08x", size, got.Sum, want)
		}
	}
}
