package repo

import (
	"bytes"
	"errors"
	"testing"
	"time"
)

func TestObjectReadsBackAsWritten(t *testing.T) {
	r := newRepo(t, nil)
	for _, content := range [][]byte{nil, []byte("x"), walBytes(0, 300_000), make([]byte, 1<<20)} {
		for codec, body := range map[Codec][]byte{CodecNone: content, CodecZstd: r.compressor.Append(nil, content)} {
			for _, asOf := range []time.Time{{}, clockZero} {
				got, h, err := unseal(KindPart, seal(KindPart, asOf, content, body, codec), 1<<20)
				if err != nil || h.Kind != KindPart || h.Codec != codec || !h.AsOf.Equal(asOf) || h.PlainLength != uint64(len(content)) {
					t.Errorf("%d bytes, codec %d: %+v, %v", len(content), codec, h, err)
				}
				equal(t, "content", got, content)
			}
		}
	}
}

func TestAnyFlippedBitOfAnObjectIsFound(t *testing.T) {
	r := newRepo(t, nil)
	content := walBytes(0, 512)
	for codec, body := range map[Codec][]byte{CodecNone: content, CodecZstd: r.compressor.Append(nil, content)} {
		clean := seal(KindPart, clockZero, content, body, codec)
		for i := range clean {
			for bit := range 8 {
				broken := bytes.Clone(clean)
				broken[i] ^= 1 << bit
				got, _, err := unseal(KindPart, broken, 1<<20)
				if i < headerSize && err == nil {
					t.Fatalf("bit %d of byte %d of the header was flipped, and nobody noticed", bit, i)
				}
				// zstd has a bit that means nothing; what was decoded is right all the same.
				if err == nil && !bytes.Equal(got, content) {
					t.Fatalf("codec %d: bit %d of byte %d was flipped, and wrong content came back", codec, bit, i)
				}
			}
		}
		for n := range clean {
			if _, _, err := unseal(KindPart, clean[:n], 1<<20); !errors.Is(err, ErrDamaged) {
				t.Fatalf("codec %d: %d of %d bytes: %v", codec, n, len(clean), err)
			}
		}
		if _, _, err := unseal(KindPart, append(clean, 0), 1<<20); !errors.Is(err, ErrDamaged) {
			t.Fatalf("codec %d: a byte too many: %v", codec, err)
		}
	}
}

func TestObjectOfAnotherKindVersionOrSizeIsRefused(t *testing.T) {
	content := []byte("content")
	clean := seal(KindPart, clockZero, content, content, CodecNone)
	if _, _, err := unseal(KindSegment, clean, 100); !errors.Is(err, ErrDamaged) {
		t.Errorf("a part as a segment: %v", err)
	}
	if _, _, err := unseal(KindPart, clean, 6); !errors.Is(err, ErrDamaged) {
		t.Errorf("seven bytes where six are expected: %v", err)
	}
	if _, _, err := unseal(KindPart, seal(KindPart, clockZero, content, content, 9), 100); !errors.Is(err, ErrDamaged) {
		t.Errorf("an unknown codec: %v", err)
	}
	later := Header{Kind: KindPart}.encode()
	later[4] = encryptedVersion + 1
	later = append(later[:60], checksum(later[:60])...)
	if _, err := decodeHeader(later, KindPart); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("a later format version must be told from damage: %v", err)
	}
}

func TestKeyThatHoldsOtherContentIsAConflictAndStaysAsItIs(t *testing.T) {
	r := newRepo(t, nil)
	p := Part{Timeline: 1, Start: 0x200000, End: 0x200100}
	putPart(t, r, 1, p.Start, p.End)
	before := object(t, r, partKey(p, mib))

	putPart(t, r, 1, p.Start, p.End) // the same content again is no conflict
	other := walBytes(0, 0x100)
	if err := r.PutPart(t.Context(), mib, p, clockZero, r.Pack(other)); !errors.Is(err, ErrConflict) {
		t.Errorf("other content under the key of a part: %v", err)
	}
	putSegment(t, r, 1, 2)
	putSegment(t, r, 1, 2)
	var b StretchBuilder
	b.Add(make([]byte, mib), r.Pack(make([]byte, mib)))
	if err := r.PutStretch(t.Context(), mib, Part{Timeline: 1, Start: 0x200000, End: 0x300000}, clockZero, &b); !errors.Is(err, ErrConflict) {
		t.Errorf("other content under the key of a segment: %v", err)
	}
	equal(t, "the part after the conflict", object(t, r, partKey(p, mib)), before)

	if err := r.PutHistory(t.Context(), 2, []byte("1\t0/200100\tno recovery target specified\n")); err != nil {
		t.Fatal(err)
	}
	if err := r.PutHistory(t.Context(), 2, []byte("1\t0/200200\tno recovery target specified\n")); !errors.Is(err, ErrConflict) {
		t.Errorf("another history of the same timeline: %v", err)
	}
	someBackup(t, r, "20260101T000000Z", clockZero)
	if err := r.NewManifest().Publish(t.Context(), Backup{ID: "20260101T000000Z"}); !errors.Is(err, ErrConflict) {
		t.Errorf("another manifest of the same backup: %v", err)
	}
}

func TestKeyThatHoldsDamageIsNoSuccess(t *testing.T) {
	r := newRepo(t, nil)
	p := Part{Timeline: 1, Start: 0x200000, End: 0x200100}
	overwrite(t, r, partKey(p, mib), []byte("half an obj"))
	if err := r.PutPart(t.Context(), mib, p, clockZero, r.Pack(walBytes(p.Start, p.End))); err == nil {
		t.Error("the part was taken for stored")
	}
}

func TestRepositoryStaysWithItsFirstCluster(t *testing.T) {
	r := newRepo(t, nil)
	if _, err := r.Cluster(t.Context()); !errors.Is(err, ErrNotExist) {
		t.Errorf("before anything was archived: %v", err)
	}
	ours := Cluster{SystemID: 77, SegmentSize: mib, Created: clockZero}
	for range 2 {
		if err := r.Bind(t.Context(), ours); err != nil {
			t.Fatal(err)
		}
	}
	for _, foreign := range []Cluster{{SystemID: 78, SegmentSize: mib}, {SystemID: 77, SegmentSize: 2 * mib}} {
		if err := r.Bind(t.Context(), foreign); !errors.Is(err, ErrForeign) {
			t.Errorf("%+v: %v", foreign, err)
		}
	}
	ours.FormatVersion = formatVersion
	if c, err := r.Cluster(t.Context()); err != nil || c != ours {
		t.Errorf("got %+v, %v", c, err)
	}
	overwrite(t, r, clusterKey, []byte(`{"format_version": 2, "system_identifier": "77", "wal_segment_size": 1048576}`))
	if err := r.Bind(t.Context(), ours); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("a repository of a later version: %v", err)
	}
	overwrite(t, r, clusterKey, []byte(`{"format_version": 1`))
	if _, err := r.Cluster(t.Context()); !errors.Is(err, ErrDamaged) {
		t.Errorf("half a cluster.json: %v", err)
	}
}

func FuzzUnseal(f *testing.F) {
	compressor, err := NewCompressor("zstd:1")
	if err != nil {
		f.Fatal(err)
	}
	content := []byte("some content")
	f.Add(seal(KindPart, clockZero, content, content, CodecNone))                               // plain
	f.Add(seal(KindPart, clockZero, content, compressor.Append(nil, content), CodecZstd))       // compressed
	f.Add(seal(KindPart, clockZero, nil, nil, CodecZstd))                                       // no frame at all
	f.Add(seal(KindPart, clockZero, make([]byte, 100), compressor.Append(nil, nil), CodecNone)) // a length that is not that of the body
	f.Add(Header{Kind: KindPart, PlainLength: 1 << 63}.encode())                                // a length beyond all bounds
	f.Fuzz(func(t *testing.T, object []byte) {
		const max = 1 << 16
		got, h, err := unseal(KindPart, object, max)
		if err != nil {
			return
		}
		if len(got) > max || uint64(len(got)) != h.PlainLength {
			t.Fatalf("%d bytes came out of an object that says %d", len(got), h.PlainLength)
		}
		again, _, err := unseal(KindPart, seal(KindPart, h.AsOf, got, got, CodecNone), max)
		if err != nil || !bytes.Equal(again, got) {
			t.Fatalf("what was read cannot be written again: %v", err)
		}
	})
}
