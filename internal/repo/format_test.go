package repo

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"pitr/internal/store/file"
	"pitr/internal/wal"
)

// stranger reads a repository with nothing but docs/FORMAT.md, the standard library, a zstd decoder and an age decryptor. It uses no name
// of this package.
type stranger struct {
	root        string // the directory of the cluster
	segmentSize uint64
	identity    string // opens what is encrypted
}

func (s *stranger) open() error {
	content, err := os.ReadFile(filepath.Join(s.root, "cluster.json"))
	if err != nil {
		return err
	}
	var cluster struct {
		Version     int    `json:"format_version"`
		System      string `json:"system_identifier"`
		SegmentSize uint64 `json:"wal_segment_size"`
	}
	if err := json.Unmarshal(content, &cluster); err != nil {
		return err
	}
	if cluster.Version != 1 || cluster.System == "" {
		return fmt.Errorf("version %d of system %q", cluster.Version, cluster.System)
	}
	s.segmentSize = cluster.SegmentSize
	return nil
}

// object reads an object of a kind by "Object header" and "Codecs".
func (s *stranger) object(key string, kind byte) (content []byte, clock int64, err error) {
	b, err := os.ReadFile(filepath.Join(s.root, key))
	if err != nil {
		return nil, 0, err
	}
	if len(b) < 64 || string(b[:4]) != "PITR" || binary.LittleEndian.Uint32(b[60:]) != crc32.Checksum(b[:60], crc32.MakeTable(crc32.Castagnoli)) {
		return nil, 0, fmt.Errorf("%s: no header", key)
	}
	if b[4] == 2 {
		content, err = s.encrypted(key, kind, b)
		return content, int64(binary.LittleEndian.Uint64(b[16:])), err
	}
	if b[4] != 1 || b[5] != kind {
		return nil, 0, fmt.Errorf("%s: version %d, kind %d", key, b[4], b[5])
	}
	if !bytes.Equal(b[56:60], make([]byte, 4)) || b[7] != 0 {
		return nil, 0, fmt.Errorf("%s: what should be zero is not", key)
	}
	content = b[64:]
	if b[6] == 1 {
		if content, err = frames(content); err != nil {
			return nil, 0, fmt.Errorf("%s: %w", key, err)
		}
	}
	if sum := sha256.Sum256(content); !bytes.Equal(sum[:], b[24:56]) || uint64(len(content)) != binary.LittleEndian.Uint64(b[8:]) {
		return nil, 0, fmt.Errorf("%s: the content is not what the header says", key)
	}
	return content, int64(binary.LittleEndian.Uint64(b[16:])), nil
}

func frames(b []byte) ([]byte, error) {
	decoder, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderMaxWindow(64<<20))
	if err != nil {
		return nil, err
	}
	defer decoder.Close()
	return io.ReadAll(decoder)
}

func (s *stranger) segmentName(timeline uint32, number uint64) string {
	n := uint64(4<<30) / s.segmentSize
	return fmt.Sprintf("%08X%08X%08X", timeline, number/n, number%n)
}

// segment reads one by "WAL: segments and parts", without the zeros behind it.
func (s *stranger) segment(timeline uint32, number uint64) ([]byte, error) {
	key := fmt.Sprintf("wal/%08X/%s", timeline, s.segmentName(timeline, number))
	content, _, err := s.object(key, 2)
	if !errors.Is(err, os.ErrNotExist) {
		return content, err
	}
	entries, err := os.ReadDir(filepath.Join(s.root, key+".parts"))
	if err != nil {
		return nil, err
	}
	content = nil
	for at := number * s.segmentSize; ; {
		best, from, to := "", uint64(0), at
		for _, entry := range entries {
			first, second, _ := strings.Cut(entry.Name(), "-")
			start, err1 := strconv.ParseUint(first, 16, 64)
			end, err2 := strconv.ParseUint(second, 16, 64)
			if err := errors.Join(err1, err2); err != nil {
				return nil, err
			}
			if start <= at && end > to {
				best, from, to = entry.Name(), start, end
			}
		}
		if best == "" {
			return content, nil
		}
		part, _, err := s.object(key+".parts/"+best, 3)
		if err != nil {
			return nil, err
		}
		if uint64(len(part)) != to-from {
			return nil, fmt.Errorf("%s has %d bytes", best, len(part))
		}
		content = append(content, part[at-from:]...)
		at = to
	}
}

// strangeFile is a line of a manifest by "Manifest".
type strangeFile struct {
	Path    string
	Type    string
	Mode    uint32
	Size    int64
	Extents [][]any
}

// backup returns the contents of all files of a backup; directories are nil.
func (s *stranger) backup(id string) (files map[string][]byte, first map[string]any, err error) {
	manifest, _, err := s.object("backups/"+id+"/manifest", 6)
	if err != nil {
		return nil, nil, err
	}
	lines := bufio.NewScanner(bytes.NewReader(manifest))
	lines.Buffer(nil, 1<<24)
	if !lines.Scan() {
		return nil, nil, errors.New("no first line")
	}
	if err := json.Unmarshal(lines.Bytes(), &first); err != nil {
		return nil, nil, err
	}
	files = map[string][]byte{}
	for range int(first["files"].(float64)) {
		var f strangeFile
		if !lines.Scan() {
			return nil, nil, errors.New("too few lines")
		}
		if err := json.Unmarshal(lines.Bytes(), &f); err != nil {
			return nil, nil, err
		}
		if files[f.Path], err = s.file(first["packs"].([]any), f); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	var end struct {
		End   bool
		Files int
	}
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &end) != nil || !end.End || end.Files != len(files) || lines.Scan() {
		return nil, nil, fmt.Errorf("the last line is %q", lines.Text())
	}
	return files, first, nil
}

func (s *stranger) file(packs []any, f strangeFile) ([]byte, error) {
	if f.Type == "dir" {
		return nil, nil
	}
	content := []byte{}
	for _, e := range f.Extents {
		pack := packs[int(e[0].(float64))].(map[string]any)
		b, err := os.ReadFile(filepath.Join(s.root, pack["key"].(string)))
		if err != nil {
			return nil, err
		}
		offset := int(e[1].(float64))
		frame := b[offset : offset+int(e[2].(float64))]
		if pack["lock"] != nil {
			if frame, err = s.frame(pack["key"].(string), pack["lock"].(string), offset, frame); err != nil {
				return nil, err
			}
		}
		plain, err := frames(frame)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(plain)
		if hex.EncodeToString(sum[:16]) != e[3].(string) || int64(len(plain)) != min(262144, f.Size-int64(len(content))) {
			return nil, errors.New("an extent is not what the manifest says")
		}
		content = append(content, plain...)
	}
	if int64(len(content)) != f.Size {
		return nil, fmt.Errorf("it has %d bytes of %d", len(content), f.Size)
	}
	return content, nil
}

func TestReaderWrittenFromTheDocumentReadsTheRepository(t *testing.T) {
	t.Run("plain", func(t *testing.T) { strangerReads(t, "", Encryption{}) })
	t.Run("encrypted", func(t *testing.T) {
		identity, recipient := newIdentity(t)
		_, another := newIdentity(t)
		strangerReads(t, identity, Encryption{Recipients: []string{another, recipient}, FingerprintKey: "hush, hush, hush"})
	})
}

func strangerReads(t *testing.T, identity string, encryption Encryption) {
	dir := t.TempDir()
	files, err := file.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	compressor, err := NewCompressor("zstd:3")
	if err != nil {
		t.Fatal(err)
	}
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	r, err := New(files, "main", compressor).WithEncryption(encryption)
	try(err)
	history := []byte("1\t0/280000\tno recovery target specified\n\n")
	try(r.Bind(t.Context(), Cluster{SystemID: 1<<63 + 77, SegmentSize: mib}))
	try(r.PutHistory(t.Context(), 0x1B, history))
	putSegment(t, r, 1, 0x1_2345)
	putPart(t, r, 0x1B, two, two+100)
	putPart(t, r, 0x1B, two+50, two+70)
	putPart(t, r, 0x1B, two+80, two+300)
	putPart(t, r, 0x1B, two+100, two+200)
	putPart(t, r, 0x1B, two+301, two+400) // behind a hole
	cut := uint32(0)
	try(r.PutIndex(t.Context(), mib, segmentTwo, Index{Segment: "x", LastRecord: 0x16_B374_D848, Marks: []Mark{{two, 3, clockZero, clockZero}},
		Detail: 2, XIDs: &XIDs{3, 9}, Removals: []Removal{{At: two, XID: 9, Time: clockZero, Files: []string{"1663/5/16384"}, Dropped: []wal.Object{{Database: 5, OID: 16384}},
			Relcache: []wal.Object{{Database: 5, OID: 16384}}, Created: 1}},
		Parameters: []Parameters{{two, wal.Parameters{MaxConnections: 100, MaxWorkerProcesses: 8, MaxWALSenders: 10, MaxLocksPerTransaction: 64, WALLevel: "replica"}}},
		Extents:    []ChangedFork{{Relation: "1663/5/16384", Fork: "vm", Cut: &cut, Extents: "0-3,7"}}, TwoPhase: []TwoPhase{{two, 9, "g"}, {0x200190, 9, ""}}, Limits: []string{"removals"}}))
	try(r.PutCatalog(t.Context(), 0x1B, Catalog{two, clockZero, []CatalogDatabase{{OID: 5, Name: "postgres", Relations: []CatalogRelation{
		{OID: 16384, Tablespace: 1663, File: 16390, Kind: "r", Schema: "public", Name: "orders"}, {OID: 16391, Tablespace: 1663, Kind: "p", Schema: "public", Name: "parts"}}}}}))
	try(r.PutClock(t.Context(), 0x1B, Clock{two + 400, clockZero}))
	made, _, contents := someBackup(t, r, "20261120T140321Z", clockZero)
	try(r.PutContents(t.Context(), made.Packs[0], []Tagged{{r.TagOf(DigestOf(history)), 128, 10}}))

	s := &stranger{root: filepath.Join(dir, "main"), identity: identity}
	try(s.open())
	got, err := s.segment(1, 0x1_2345)
	try(err)
	equal(t, "a whole segment", got, walBytes(0x1_2345<<20, 0x1_2346<<20))
	got, err = s.segment(0x1B, 2)
	try(err)
	equal(t, "an open segment", got, walBytes(two, two+300))
	got, _, err = s.object("timelines/0000001B.history", 1)
	try(err)
	equal(t, "the history", got, history)
	if _, clock, err := s.object("wal/0000001B/0000001B0000000000000002.parts/0000000000200000-0000000000200064", 3); err != nil || clock != clockZero.UnixMicro() {
		t.Errorf("the clock of a part is %d, %v", clock, err)
	}
	s.checkIndexAndClock(t)

	read, first, err := s.backup("20261120T140321Z")
	try(err)
	if first["start_lsn"] != "0/300028" || first["system_identifier"] != "7000000000000000001" || first["stop_time"] != clockZero.Format(time.RFC3339Nano) {
		t.Errorf("the first line is %v", first)
	}
	if directory, listed := read["base/5"]; !listed || directory != nil || len(read) != len(contents)+1 {
		t.Errorf("%d entries", len(read))
	}
	for name, want := range contents {
		equal(t, name, read[name], want)
	}
	s.checkContents(t, encryption.FingerprintKey, history)
	s.checkKeys(t)
}

// checkContents computes a tag by "Contents of packs".
func (s *stranger) checkContents(t *testing.T, secret string, extent []byte) {
	t.Helper()
	content, _, err := s.object("contents/20261120T140321Z/000000", 9)
	var got struct {
		Key    string
		Size   int64
		Lock   string
		TagKey string `json:"tag_key"`
		Frames [][]any
	}
	if err := errors.Join(err, json.Unmarshal(content, &got)); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(extent)
	tag, id := sum[:16], ""
	if secret != "" {
		key := sha256.Sum256([]byte("pitr fingerprint key\x00" + secret))
		keyed := func(text string) []byte {
			mac := hmac.New(sha256.New, key[:])
			mac.Write([]byte(text))
			return mac.Sum(nil)
		}
		tag, id = keyed("extent\x00" + string(sum[:16]))[:16], hex.EncodeToString(keyed("id")[:4])
	}
	info, err := os.Stat(filepath.Join(s.root, got.Key))
	if err != nil || info.Size() != got.Size || got.Key != "packs/20261120T140321Z/000000" || (got.Lock != "") != (secret != "") {
		t.Errorf("the contents are of %s with %d bytes and lock %q, %v", got.Key, got.Size, got.Lock, err)
	}
	if want := []any{hex.EncodeToString(tag), 128.0, 10.0}; len(got.Frames) != 1 || !slices.Equal(got.Frames[0], want) || got.TagKey != id {
		t.Errorf("the contents are %s; want %v with key %q", content, want, id)
	}
}

func (s *stranger) checkIndexAndClock(t *testing.T) {
	t.Helper()
	content, _, err := s.object("index/00000001/000000010000000000000002", 4)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"segment":"x","last_record":"16/B374D848","unfinished":"0/0","marks":[{"at":"0/200000","count":3,` +
		`"min":"2026-09-21T14:13:20.123456Z","max":"2026-09-21T14:13:20.123456Z"}],"restore_points":null,"clocks":null,` +
		`"detail":2,"xids":{"first":3,"last":9},"removals":[{"at":"0/200000","xid":9,"time":"2026-09-21T14:13:20.123456Z","files":["1663/5/16384"],` +
		`"dropped":[{"database":5,"oid":16384}],"relcache":[{"database":5,"oid":16384}],"created":1}],` +
		`"parameters":[{"at":"0/200000","max_connections":100,"max_worker_processes":8,"max_wal_senders":10,"max_prepared_transactions":0,` +
		`"max_locks_per_transaction":64,"wal_level":"replica","wal_log_hints":false,"track_commit_timestamp":false}],` +
		`"extents":[{"relation":"1663/5/16384","fork":"vm","cut":0,"extents":"0-3,7"}],"two_phase":[{"at":"0/200000","xid":9,"gid":"g"},{"at":"0/200190","xid":9}],"limits":["removals"]}`
	if string(content) != want {
		t.Errorf("the index is %s", content)
	}
	clock := fmt.Sprintf("clocks/0000001B/0000000000200190-%016X", clockZero.UnixMicro())
	if info, err := os.Stat(filepath.Join(s.root, clock)); err != nil || info.Size() != 0 {
		t.Errorf("the idle clock: %v, %v", info, err)
	}
	content, at, err := s.object(fmt.Sprintf("catalogs/0000001B/0000000000200000-%016X", clockZero.UnixMicro()), 7)
	want = `{"lsn":"0/200000","time":"2026-09-21T14:13:20.123456Z","databases":[{"oid":5,"name":"postgres","relations":[` +
		`{"oid":16384,"ts":1663,"file":16390,"kind":"r","schema":"public","name":"orders"},{"oid":16391,"ts":1663,"kind":"p","schema":"public","name":"parts"}]}]}`
	if err != nil || string(content) != want || at != clockZero.UnixMicro() {
		t.Errorf("the catalog is %s, %v", content, err)
	}
}

// checkKeys looks for objects at places that the document does not name.
func (s *stranger) checkKeys(t *testing.T) {
	t.Helper()
	known := []string{"backups", "catalogs", "clocks", "cluster.json", "contents", "index", "packs", "timelines", "wal"}
	if s.identity != "" {
		known = append(known, "keys")
	}
	entries, err := os.ReadDir(s.root)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if !slices.Contains(known, entry.Name()) {
			t.Errorf("%s is not in the document", entry.Name())
		}
	}
	if len(entries) != len(known) {
		t.Errorf("%d of %d kinds of objects were written", len(entries), len(known))
	}
}
