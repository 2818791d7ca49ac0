package pg

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// plainChecksum is written as src/include/storage/checksum_impl.h is, sum by sum.
func plainChecksum(page []byte, block uint32) uint16 {
	sums := checksumBase
	for row := range PageSize / 4 / checksumSums {
		for j := range checksumSums {
			at := (row*checksumSums + j) * 4
			word := binary.LittleEndian.Uint32(page[at:])
			if at == 8 {
				word &= 0xFFFF0000
			}
			sums[j] = checksumStep(sums[j], word)
		}
	}
	for range 2 {
		for j := range sums {
			sums[j] = checksumStep(sums[j], 0)
		}
	}
	result := uint32(0)
	for _, sum := range sums {
		result ^= sum
	}
	return uint16((result^block)%65535) + 1
}

func TestPageChecksumIsThatOfThePlainAlgorithm(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	page := make([]byte, PageSize)
	for range 200 {
		for i := range page {
			page[i] = byte(rng.Uint32())
		}
		block := rng.Uint32()
		want := plainChecksum(page, block)
		if got := PageChecksum(page, block); got != want {
			t.Fatalf("block %d: %04x, want %04x", block, got, want)
		}
		page[8], page[9] = 1, 2 // the checksum itself does not count
		if got := PageChecksum(page, block); got != want {
			t.Fatalf("block %d: %04x with a checksum of its own, want %04x", block, got, want)
		}
		page[rng.IntN(PageSize-16)+16] ^= 1
		if PageChecksum(page, block) == want {
			t.Fatalf("block %d: a changed bit is not noticed", block)
		}
	}
}

func BenchmarkPageChecksum(b *testing.B) {
	page := make([]byte, PageSize)
	for name, checksum := range map[string]func([]byte, uint32) uint16{"in registers": PageChecksum, "plain": plainChecksum} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(PageSize)
			for i := range b.N {
				checksum(page, uint32(i))
			}
		})
	}
}
