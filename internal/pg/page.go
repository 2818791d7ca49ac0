package pg

import "encoding/binary"

// PageSize is BLCKSZ of a server as it is built by everybody: src/include/pg_config.h.
const PageSize = 8192

// RelationSegmentBlocks is RELSEG_SIZE of such a server: the blocks in one file of a relation.
const RelationSegmentBlocks = 131072

// Offsets in PageHeaderData of src/include/storage/bufpage.h. Numbers are in the order of bytes of the server; pitr reads little-endian ones.
const (
	pageLSNAt      = 0 // two words: the upper half first
	pageChecksumAt = 8
	pageUpperAt    = 14
)

// PageLSN is PageGetLSN of src/include/storage/bufpage.h.
func PageLSN(page []byte) LSN {
	return LSN(binary.LittleEndian.Uint32(page[pageLSNAt:]))<<32 | LSN(binary.LittleEndian.Uint32(page[pageLSNAt+4:]))
}

// PageIsNew is PageIsNew of src/include/storage/bufpage.h.
func PageIsNew(page []byte) bool { return binary.LittleEndian.Uint16(page[pageUpperAt:]) == 0 }

// StoredPageChecksum is the checksum that a page has.
func StoredPageChecksum(page []byte) uint16 { return binary.LittleEndian.Uint16(page[pageChecksumAt:]) }

// Constants of src/include/storage/checksum_impl.h.
const (
	checksumSums  = 32       // N_SUMS
	checksumPrime = 16777619 // FNV_PRIME
)

// checksumBase is checksumBaseOffsets of src/include/storage/checksum_impl.h.
var checksumBase = [checksumSums]uint32{
	0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
	0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
	0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
	0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
}

// PageChecksum is pg_checksum_page of src/include/storage/checksum_impl.h: what the page should have as its checksum as that block of its
// relation. The checksum that it has does not count.
func PageChecksum(page []byte, block uint32) uint16 {
	_ = page[PageSize-1]
	var folded uint32
	for lane := 0; lane < checksumSums; lane += checksumLanes {
		folded ^= checksumOfLanes((*[PageSize]byte)(page), lane)
	}
	folded ^= block
	return uint16(folded%65535) + 1
}

// checksumLanes is how many of the sums are carried at a time: as many as registers hold. Eight at a time take
// some 1.2 µs for a page, all of them in an array 4.3 µs (BenchmarkPageChecksum).
const checksumLanes = 8

// checksumOfLanes runs eight of the 32 sums over a page and folds them.
func checksumOfLanes(page *[PageSize]byte, lane int) uint32 {
	base := checksumBase[lane : lane+checksumLanes]
	s0, s1, s2, s3, s4, s5, s6, s7 := base[0], base[1], base[2], base[3], base[4], base[5], base[6], base[7]
	for row := lane * 4; row < PageSize; row += checksumSums * 4 {
		words := (*[checksumLanes * 4]byte)(page[row : row+checksumLanes*4])
		w0 := binary.LittleEndian.Uint32(words[0:])
		w1 := binary.LittleEndian.Uint32(words[4:])
		if row == 0 {
			// pd_checksum and pd_flags are one word: the checksum counts as zero.
			s2 = checksumStep(s2, binary.LittleEndian.Uint32(words[8:])&0xFFFF0000)
		} else {
			s2 = checksumStep(s2, binary.LittleEndian.Uint32(words[8:]))
		}
		s0 = checksumStep(s0, w0)
		s1 = checksumStep(s1, w1)
		s3 = checksumStep(s3, binary.LittleEndian.Uint32(words[12:]))
		s4 = checksumStep(s4, binary.LittleEndian.Uint32(words[16:]))
		s5 = checksumStep(s5, binary.LittleEndian.Uint32(words[20:]))
		s6 = checksumStep(s6, binary.LittleEndian.Uint32(words[24:]))
		s7 = checksumStep(s7, binary.LittleEndian.Uint32(words[28:]))
	}
	// Two rounds of zeros mix what came last.
	for range 2 {
		s0, s1, s2, s3 = checksumStep(s0, 0), checksumStep(s1, 0), checksumStep(s2, 0), checksumStep(s3, 0)
		s4, s5, s6, s7 = checksumStep(s4, 0), checksumStep(s5, 0), checksumStep(s6, 0), checksumStep(s7, 0)
	}
	return s0 ^ s1 ^ s2 ^ s3 ^ s4 ^ s5 ^ s6 ^ s7
}

// checksumStep is CHECKSUM_COMP of src/include/storage/checksum_impl.h.
func checksumStep(sum, word uint32) uint32 {
	mixed := sum ^ word
	return mixed*checksumPrime ^ mixed>>17
}
