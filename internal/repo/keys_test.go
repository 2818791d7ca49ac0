package repo

import (
	"testing"

	"pitr/internal/pg"
)

func TestKeysReadBackAsTheSegmentAndPartThatTheyName(t *testing.T) {
	for _, size := range []pg.SegmentSize{pg.SegmentSizeMin, 16 << 20, pg.SegmentSizeMax} {
		for _, at := range []pg.LSN{0, 1, pg.LSN(size), 0xFF_FFFF_FFF0, 0x1234_5678_9ABC_DEF0} {
			segment := size.Segment(0xABCD, at)
			got, part, ok := parseWALKey(segmentKey(segment, size), size)
			if !ok || part != nil || got != segment {
				t.Errorf("%s: got %v, %v, %v", segmentKey(segment, size), got, part, ok)
			}
			p := Part{Timeline: 0xABCD, Start: at, End: segment.End(size)}
			got, part, ok = parseWALKey(partKey(p, size), size)
			if !ok || part == nil || got != segment || *part != p {
				t.Errorf("%s: got %v, %v, %v", partKey(p, size), got, part, ok)
			}
		}
	}
}

func TestStrangeNamesAreNoKeys(t *testing.T) {
	refused := func(key string) {
		t.Helper()
		if segment, part, ok := parseWALKey(key, mib); ok {
			t.Errorf("%q was read as %v, %v", key, segment, part)
		}
	}
	const segment = "wal/00000001/000000010000000000000002"
	refused("")
	refused("wal/")
	refused("index/00000001/000000010000000000000002")
	refused("wal/00000002/000000010000000000000002")                        // another timeline's directory
	refused("wal/00000001x000000010000000000000002")                        // no slash
	refused("wal/00000001/00000001000000000000000a")                        // lower case
	refused("wal/00000000/000000000000000000000002")                        // there is no timeline 0
	refused("wal/00000001/000000010000000000001000")                        // 4096 segments of 1 MiB to the 4 GiB
	refused(segment + ".partial")                                           // Postgres's own word for something else
	refused(segment + ".parts/")                                            //
	refused(segment + ".parts/0000000000200000")                            // no end
	refused(segment + ".parts/0000000000200010-0000000000200010")           // empty
	refused(segment + ".parts/0000000000200020-0000000000200010")           // backwards
	refused(segment + ".parts/00000000001FFFFF-0000000000200010")           // begins before the segment
	refused(segment + ".parts/0000000000200000-0000000000300001")           // ends behind it
	refused(segment + ".parts/0000000000200000-0000000000200010.pitr-tmp-") //
}

func FuzzWALKey(f *testing.F) {
	f.Add("wal/00000001/000000010000000000000002", uint8(0))                                                 // a segment
	f.Add("wal/00000001/000000010000000000000002.parts/0000000000200000-0000000000200010", uint8(0))         // a part
	f.Add("wal/0000ABCD/0000ABCDFFFFFFFF00000003.parts/FFFFFFFFC0000000-FFFFFFFFFFFFFFFF", uint8(10))        // the last segment there is
	f.Add("wal/00000001x000000010000000000000002", uint8(4))                                                 // a separator that is none
	f.Add("wal/00000001/000000010000000000000002.parts/0000000000200000-0000000000200010-trailer", uint8(0)) // more than a part
	f.Fuzz(func(t *testing.T, key string, shift uint8) {
		size := pg.SegmentSizeMin << (shift % 11)
		segment, part, ok := parseWALKey(key, size)
		if !ok {
			return
		}
		back := segmentKey(segment, size)
		if part != nil {
			back = partKey(*part, size)
		}
		if back != key {
			t.Fatalf("%q was read as what is written %q", key, back)
		}
	})
}
