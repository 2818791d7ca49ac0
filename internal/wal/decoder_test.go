package wal_test

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"pitr/internal/pg"
	"pitr/internal/wal"
)

const testSegment = pg.SegmentSize(1 << 20)

// page returns the header of the page at address, as PostgreSQL 15 writes it, followed by body and zeros.
func page(address pg.LSN, flags uint16, remaining uint32, body []byte) []byte {
	size := 24
	if testSegment.Offset(address) == 0 {
		size, flags = 40, flags|2
	}
	b := make([]byte, wal.PageSize)
	binary.LittleEndian.PutUint16(b, 0xD110)
	binary.LittleEndian.PutUint16(b[2:], flags)
	binary.LittleEndian.PutUint32(b[4:], 1)
	binary.LittleEndian.PutUint64(b[8:], uint64(address))
	binary.LittleEndian.PutUint32(b[16:], remaining)
	if size == 40 {
		binary.LittleEndian.PutUint64(b[24:], 77)
		binary.LittleEndian.PutUint32(b[32:], uint32(testSegment))
		binary.LittleEndian.PutUint32(b[36:], wal.PageSize)
	}
	copy(b[size:], body)
	return b
}

// noop returns a record of the XLOG resource manager with length bytes in all.
func noop(prev pg.LSN, length int) []byte { return xlog(0x20, prev, length) }

// overwrite returns the record that follows a torn one.
func overwrite(prev pg.LSN, length int) []byte { return xlog(0xD0, prev, length) }

func xlog(info byte, prev pg.LSN, length int) []byte {
	b := make([]byte, length)
	binary.LittleEndian.PutUint32(b, uint32(length))
	binary.LittleEndian.PutUint64(b[8:], uint64(prev))
	b[16] = info
	if length > 24 {
		b[24] = 254
		binary.LittleEndian.PutUint32(b[25:], uint32(length-29))
	}
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(crc32.Update(0, castagnoli, b[24:]), castagnoli, b[:20])
	binary.LittleEndian.PutUint32(b[20:], sum)
	return b
}

const start = pg.LSN(1 << 20)

func decode(t *testing.T, piece int, stream []byte) (ends []pg.LSN, err error) {
	t.Helper()
	decoder := wal.NewDecoder(wal.Options{Start: start, SegmentSize: testSegment, SystemID: 77, Timeline: 1, Version: 15}, func(r *wal.Record) error {
		ends = append(ends, r.End)
		return r.Decode()
	})
	for len(stream) > 0 && err == nil {
		n := min(piece, len(stream))
		_, err = decoder.Write(stream[:n])
		stream = stream[n:]
	}
	return ends, err
}

func TestRecordAcrossPagesIsWholeHoweverItArrives(t *testing.T) {
	record := noop(0, 9000)
	first := wal.PageSize - 40
	stream := append(page(start, 0, 0, record[:first]), page(start+wal.PageSize, 1, uint32(9000-first), record[first:])...)
	for _, piece := range []int{1, 7, 4096, 1 << 20} {
		ends, err := decode(t, piece, stream)
		if !errors.Is(err, wal.ErrEnd) || len(ends) != 1 {
			t.Errorf("pieces of %d: records end at %v, then %v", piece, ends, err)
		}
	}
}

func TestAnyFlippedBitIsFound(t *testing.T) {
	one := noop(0, 64)
	body := append(append([]byte(nil), one...), noop(start+40, 80)...)
	clean := page(start, 0, 0, body)
	if ends, err := decode(t, 100, clean); len(ends) != 2 || !errors.Is(err, wal.ErrEnd) {
		t.Fatalf("the clean page gave %v, %v", ends, err)
	}
	for i := range 40 + len(body) {
		if i >= 20 && i < 24 || i >= 40+18 && i < 40+20 || i >= 40+64+18 && i < 40+64+20 {
			continue // padding of the page header and of the records' headers; the latter is covered by the checksum
		}
		for bit := range 8 {
			if i == 2 && bit == 2 {
				continue // XLP_BKP_REMOVABLE, a mere hint
			}
			broken := append([]byte(nil), clean...)
			broken[i] ^= 1 << bit
			ends, err := decode(t, 100, broken)
			var corrupt *wal.CorruptError
			incomplete := len(ends) < 2 && (err == nil || errors.Is(err, wal.ErrEnd)) // a length that grew, or became zero
			if !errors.As(err, &corrupt) && !incomplete {
				t.Fatalf("bit %d of byte %d flipped, and the decoder says %v, %v", bit, i, ends, err)
			}
		}
	}
}

func TestOverwrittenContinuationDropsTheTornRecord(t *testing.T) {
	torn := noop(0, 9000)
	first := wal.PageSize - 40
	next := overwrite(0, 48)
	stream := append(page(start, 0, 0, torn[:first]), page(start+wal.PageSize, 8, 0, next)...)
	ends, err := decode(t, 1000, stream)
	if len(ends) != 1 || ends[0] != start+wal.PageSize+24+48 || !errors.Is(err, wal.ErrEnd) {
		t.Fatalf("records end at %v, then %v", ends, err)
	}
}

func TestForeignClusterAndBrokenPrevLinkAreRefused(t *testing.T) {
	foreign := page(start, 0, 0, noop(0, 48))
	foreign[24] = 78
	unlinked := page(start, 0, 0, append(noop(0, 48), noop(start, 48)...))
	for name, stream := range map[string][]byte{"foreign": foreign, "unlinked": unlinked} {
		var corrupt *wal.CorruptError
		if ends, err := decode(t, 1000, stream); !errors.As(err, &corrupt) {
			t.Errorf("%s: %v, %v", name, ends, err)
		}
	}
}

func FuzzDecoder(f *testing.F) {
	record := noop(0, 9000)
	first := wal.PageSize - 40
	f.Add(page(start, 0, 0, noop(0, 64)), 10)                                                                                  // a record and zeros
	f.Add(append(page(start, 0, 0, record[:first]), page(start+wal.PageSize, 1, uint32(9000-first), record[first:])...), 4096) // a record across pages
	f.Add(page(start, 1, 100, make([]byte, 200)), 1)                                                                           // the rest of a record that began before
	f.Add(append(page(start, 0, 0, record[:first]), page(start+wal.PageSize, 8, 0, overwrite(0, 48))...), 8192)                // a torn record
	f.Fuzz(func(t *testing.T, stream []byte, piece int) {
		if piece < 1 {
			piece = 1
		}
		whole, err1 := decode(t, len(stream)+1, stream)
		pieces, err2 := decode(t, piece, stream)
		if len(whole) != len(pieces) || (err1 == nil) != (err2 == nil) {
			t.Fatalf("at once: %v, %v; in pieces of %d: %v, %v", whole, err1, piece, pieces, err2)
		}
	})
}
