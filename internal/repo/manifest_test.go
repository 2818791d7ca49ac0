package repo

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pitr/internal/pg"
	"pitr/internal/store"
)

// someOrigin is what a backup tells of its server.
func someOrigin() *Origin {
	return &Origin{Libc: "2.36", Preload: Preload{Shared: []string{"auto_explain"}}, Databases: []OriginDatabase{{OID: 5, Name: "postgres", Size: 7 << 20, Encoding: "UTF8",
		Collate: "C.UTF-8", CType: "C.UTF-8", Collation: Collation{Provider: "c", Locale: "C.UTF-8"}, Unlogged: []string{"public.scratch"}}},
		Files: []OriginFile{{Name: "pg_hba.conf", Path: "/etc/postgresql/pg_hba.conf", Content: "local all all peer\n"}}}
}

// someBackup stores a small backup: two files, one of them of several extents, a directory and an empty file.
func someBackup(t testing.TB, r *Repo, id string, stop time.Time) (Backup, []File, map[string][]byte) {
	t.Helper()
	contents := map[string][]byte{
		"base/5/1259":    walBytes(0, 2*ExtentSize+777),
		"global/1262":    bytes.Repeat([]byte("sparse"), 1000),
		"PG_VERSION":     []byte("15\n"),
		"base/5/2619_vm": {},
	}
	pack := r.NewPack()
	manifest := r.NewManifest()
	manifest.Origin = someOrigin()
	var files []File
	b := Backup{ID: id, SystemID: 7_000_000_000_000_000_001, ServerVersion: "15.1", Major: 15, Timeline: 1, SegmentSize: mib, ExtentSize: ExtentSize,
		Start: 0x300028, Stop: 0x300138, StartTime: stop.Add(-time.Minute), StopTime: stop, Settings: map[string]string{"max_connections": "100"},
		Tablespaces: []Tablespace{{OID: "16384", Path: "/mnt/fast"}}}
	for _, path := range []string{"base/5", "base/5/1259", "base/5/2619_vm", "global/1262", "PG_VERSION"} {
		content, isFile := contents[path]
		f := File{Path: path, Mode: 0o600, Size: int64(len(content)), ModTime: stop.Truncate(time.Second)}
		if !isFile {
			f.Type, f.Mode = TypeDir, 0o700
		}
		for len(content) > 0 {
			n := min(len(content), ExtentSize)
			frame := r.CompressExtent(content[:n])
			f.Extents = append(f.Extents, Extent{Pack: 0, Offset: pack.Add(frame), Length: len(frame), Hash: DigestOf(content[:n]), CRC: CRCOf(content[:n])})
			content = content[n:]
		}
		b.Bytes += f.Size
		if err := manifest.Add(f); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	stored, err := r.PutPack(t.Context(), id, 0, pack)
	if err != nil {
		t.Fatal(err)
	}
	b.Packs, b.StoredBytes = []Pack{stored}, stored.Size
	if err := manifest.Publish(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	b.Files = len(files)
	return b, files, contents
}

func TestManifestAndExtentsReadBackAsWritten(t *testing.T) {
	r := newRepo(t, nil)
	want, files, contents := someBackup(t, r, "20260101T000000Z", clockZero)
	m, err := r.ReadManifest(t.Context(), want.ID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, m.Backup); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(someOrigin(), m.Origin); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(files, m.Entries); diff != "" {
		t.Error(diff)
	}
	listed, err := r.Backups(t.Context())
	if diff := cmp.Diff([]Backup{want}, listed); err != nil || diff != "" {
		t.Error(err, diff)
	}
	for _, f := range m.Entries {
		var got []byte
		for i, e := range f.Extents {
			body, err := r.PackReader(t.Context(), m.Packs[e.Pack], e.Offset, int64(e.Length))
			if err != nil {
				t.Fatal(err)
			}
			frame := make([]byte, e.Length)
			if _, err := body.Read(frame); err != nil || body.Close() != nil {
				t.Fatal(err)
			}
			plain, err := DecodeExtent(frame, int(min(ExtentSize, f.Size-int64(i)*ExtentSize)), e.Hash)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, plain...)
		}
		equal(t, f.Path, got, contents[f.Path])
	}
	if err := r.VerifyPack(t.Context(), m.Packs[0], nil); err != nil {
		t.Error(err)
	}
}

func TestBackupExistsOnlyOnceItsManifestDoes(t *testing.T) {
	r := newRepo(t, nil)
	var pack PackBuilder
	pack.Add(r.CompressExtent([]byte("a page")))
	stored, err := r.PutPack(t.Context(), "20260102T000000Z", 0, &pack)
	if err != nil {
		t.Fatal(err)
	}
	if backups, err := r.Backups(t.Context()); err != nil || len(backups) != 0 {
		t.Fatalf("packs alone are listed as %v, %v", backups, err)
	}
	packs, err := r.StoredPacks(t.Context())
	if diff := cmp.Diff(map[string][]Pack{"20260102T000000Z": {stored}}, packs); err != nil || diff != "" {
		t.Error(err, diff)
	}
	want, _, _ := someBackup(t, r, "20260101T000000Z", clockZero)
	if backups, err := r.Backups(t.Context()); err != nil || len(backups) != 1 || backups[0].ID != want.ID {
		t.Fatalf("got %v, %v", backups, err)
	}
	if err := r.DeleteBackup(t.Context(), want.ID, want.Packs); err != nil {
		t.Fatal(err)
	}
	if backups, err := r.Backups(t.Context()); err != nil || len(backups) != 0 {
		t.Fatalf("after its deletion there are %v, %v", backups, err)
	}
}

func TestDeletedBackupDoesNotExistBeforeItsFirstPackIsGone(t *testing.T) {
	var order []string
	r := newRepo(t, func(s store.Store) store.Store {
		return &hooked{s, func(operation, key string) {
			if operation == "delete" {
				order = append(order, key)
			}
		}}
	})
	b, _, _ := someBackup(t, r, "20260101T000000Z", clockZero)
	if err := r.DeleteBackup(t.Context(), b.ID, b.Packs); err != nil {
		t.Fatal(err)
	}
	if want := []string{"main/backups/" + b.ID + "/manifest", "main/" + contentsKey(b.Packs[0].Key), "main/" + b.Packs[0].Key}; !cmp.Equal(order, want) {
		t.Errorf("deleted in the order %v, want %v", order, want)
	}
}

func TestAnyFlippedBitOfAManifestIsFoundOrHarmless(t *testing.T) {
	r := newRepo(t, nil)
	want, files, _ := someBackup(t, r, "20260101T000000Z", clockZero)
	key := manifestKey(want.ID)
	clean := object(t, r, key)
	for i := range clean {
		broken := bytes.Clone(clean)
		broken[i] ^= 1 << (i % 8)
		overwrite(t, r, key, broken)
		if m, err := r.ReadManifest(t.Context(), want.ID); err == nil && !(cmp.Equal(m.Backup, want) && cmp.Equal(m.Entries, files)) {
			t.Fatalf("byte %d of the manifest was changed, and it was read as %+v", i, m.Backup)
		}
		if b, err := r.ReadBackup(t.Context(), want.ID); err == nil && !cmp.Equal(b, want) {
			t.Fatalf("byte %d of the manifest was changed, and its first line was read as %+v", i, b)
		}
	}
}

func TestTruncatedManifestIsNoBackup(t *testing.T) {
	r := newRepo(t, nil)
	want, _, _ := someBackup(t, r, "20260101T000000Z", clockZero)
	key := manifestKey(want.ID)
	clean := object(t, r, key)
	for n := range len(clean) {
		overwrite(t, r, key, clean[:n])
		if _, err := r.ReadManifest(t.Context(), want.ID); err == nil || errors.Is(err, ErrNotExist) {
			t.Fatalf("%d of its %d bytes were read with %v", n, len(clean), err)
		}
	}
}

// sealManifest stores lines as a manifest whose hash is right: what only somebody who may write to the bucket can do.
func sealManifest(t testing.TB, r *Repo, id, content string) {
	t.Helper()
	overwrite(t, r, manifestKey(id), seal(KindManifest, clockZero, []byte(content), r.compressor.Append(nil, []byte(content)), CodecZstd))
}

func TestManifestThatDoesNotHoldTogetherIsDamaged(t *testing.T) {
	r := newRepo(t, nil)
	end := func(n int) string { return fmt.Sprintf(`{"end":true,"files":%d}`+"\n", n) }
	damaged := func(why, content string) {
		t.Helper()
		sealManifest(t, r, "x", content)
		if m, err := r.ReadManifest(t.Context(), "x"); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: read as %+v, %v", why, m, err)
		}
	}
	first := func(files int) string {
		return fmt.Sprintf(`{"backup":"x","files":%d,"packs":[{"key":"packs/x/000000","size":1000}]}`+"\n", files)
	}
	sealManifest(t, r, "x", first(0)+end(0))
	if _, err := r.ReadManifest(t.Context(), "x"); err != nil {
		t.Fatalf("the smallest manifest: %v", err)
	}
	damaged("no last line", first(0))
	damaged("the last line counts otherwise", first(0)+end(1))
	damaged("fewer lines than files", first(2)+`{"path":"a","mtime":"2026-01-01T00:00:00Z"}`+"\n"+end(2))
	damaged("files beyond count", first(math.MaxInt)+end(math.MaxInt))
	damaged("fewer than no files", first(-1)+end(-1))
	extent := func(fields string) string {
		return first(1) + `{"path":"a","size":5,"mtime":"2026-01-01T00:00:00Z","extents":[` + fields + "]}\n" + end(1)
	}
	const hash = `"000102030405060708090a0b0c0d0e0f"`
	sealManifest(t, r, "x", extent("[0,64,936,"+hash+"]"))
	if _, err := r.ReadManifest(t.Context(), "x"); err != nil {
		t.Fatalf("a whole pack as one extent: %v", err)
	}
	damaged("an extent is missing", extent(""))
	damaged("an extent too many", extent("[0,64,1,"+hash+"],[0,64,1,"+hash+"]"))
	damaged("no such pack", extent("[1,64,1,"+hash+"]"))
	damaged("a pack before the first", extent("[-1,64,1,"+hash+"]"))
	damaged("within the pack's header", extent("[0,63,1,"+hash+"]"))
	damaged("behind the pack's end", extent("[0,64,937,"+hash+"]"))
	damaged("an end that wraps around", extent("[0,9223372036854775807,9223372036854775807,"+hash+"]"))
	large := strings.Replace(extent("[0,64,1099511627776,"+hash+"]"), `"size":1000`, `"size":2199023255552`, 1)
	damaged("a frame that no extent has", large)
	damaged("a pack of negative size", strings.Replace(extent("[0,64,1,"+hash+"]"), `"size":1000`, `"size":-9223372036854775808`, 1))
	damaged("an empty extent", extent("[0,64,0,"+hash+"]"))
	damaged("half a hash", extent(`[0,64,1,"0001"]`))
	damaged("no hash", extent(`[0,64,1,"`+strings.Repeat("zz", 16)+`"]`))
	damaged("a file outside the data directory", strings.Replace(extent("[0,64,1,"+hash+"]"), `"a"`, `"../a"`, 1))
	damaged("a file of negative size", first(1)+`{"path":"a","size":-5,"mtime":"2026-01-01T00:00:00Z"}`+"\n"+end(1))
}

// allocated is how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestHostileLengthsAllocateNothingLarge(t *testing.T) {
	const limit = 64 << 20
	r := newRepo(t, nil)
	small := func(what string, read func() error) {
		t.Helper()
		var err error
		if bytes := allocated(func() { err = read() }); err == nil || bytes > limit {
			t.Errorf("%s: %d bytes were allocated, and the error is %v", what, bytes, err)
		}
	}
	// A first line without end: a few kilobytes that decode to a gigabyte.
	zeros := bytes.Repeat([]byte{' '}, 1<<20)
	var body []byte
	for range 1024 {
		body = r.compressor.Append(body, zeros)
	}
	overwrite(t, r, manifestKey("bomb"), append(Header{Kind: KindManifest, Codec: CodecZstd, PlainLength: 1 << 30}.encode(), body...))
	bytes := allocated(func() {
		if _, err := r.ReadBackup(t.Context(), "bomb"); err == nil {
			t.Error("a line without end was read")
		}
	})
	if bytes > 8*manifestLineMax {
		t.Errorf("a line without end: %d bytes were allocated", bytes)
	}

	sealManifest(t, r, "many", fmt.Sprintf(`{"backup":"many","files":%d}`+"\n", 1<<40))
	small("a manifest of very many files", func() error { _, err := r.ReadManifest(t.Context(), "many"); return err })

	segment := pg.Segment{Timeline: 1, Number: 3}
	huge := Header{Kind: KindSegment, Codec: CodecZstd, PlainLength: 1 << 30}.encode()
	overwrite(t, r, segmentKey(segment, pg.SegmentSizeMax), append(huge, r.compressor.Append(nil, []byte("short"))...))
	small("a segment that says it has a gigabyte", func() error { _, err := r.ReadSegment(t.Context(), pg.SegmentSizeMax, segment); return err })

	// A frame whose header promises a terabyte.
	frame := []byte{0x28, 0xB5, 0x2F, 0xFD, 0xE0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0}
	small("an extent that says it has a terabyte", func() error { _, err := DecodeExtent(frame, ExtentSize, Digest{}); return err })
	small("an extent that decodes to more than it should", func() error {
		_, err := DecodeExtent(r.compressor.Append(nil, zeros), ExtentSize, Digest{})
		return err
	})
}

func FuzzExtentJSON(f *testing.F) {
	f.Add([]byte(`[0,64,936,"000102030405060708090a0b0c0d0e0f"]`))  // an extent
	f.Add([]byte(`[0,64,936,"000102030405060708090a0b0c0d0e"]`))    // a hash that is short
	f.Add([]byte(`[-1,-1,-1,"000102030405060708090a0b0c0d0e0f"]`))  // positions that are none
	f.Add([]byte(`[0,64,936]`))                                     // no hash
	f.Add([]byte(`[1e99,64,9,"000102030405060708090a0b0c0d0e0f"]`)) // a number that does not fit
	f.Fuzz(func(t *testing.T, line []byte) {
		var e, again Extent
		if json.Unmarshal(line, &e) != nil {
			return
		}
		written, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(written, &again); err != nil || e != again {
			t.Fatalf("%s became %s: %v", line, written, err)
		}
	})
}

func TestExtentsOfOlderManifestsHaveNoCRC(t *testing.T) {
	var old, now Extent
	if err := errors.Join(json.Unmarshal([]byte(`[1,2,3,"000102030405060708090a0b0c0d0e0f"]`), &old), json.Unmarshal([]byte(`[1,2,3,"000102030405060708090a0b0c0d0e0f",0]`), &now)); err != nil {
		t.Fatal(err)
	}
	if old.CRC.Known || !now.CRC.Known || old.Pack != 1 || old.Offset != 2 || old.Length != 3 || old.Hash != now.Hash || old.Hash[15] != 15 {
		t.Errorf("old %+v, now %+v", old, now)
	}
	for _, e := range []Extent{old, now} {
		text, err := json.Marshal(e)
		var again Extent
		if err := errors.Join(err, json.Unmarshal(text, &again)); err != nil || again != e {
			t.Errorf("%+v is written as %s and read as %+v, %v", e, text, again, err)
		}
	}
}
