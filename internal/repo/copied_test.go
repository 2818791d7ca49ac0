package repo

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/store"
	"pitr/internal/store/copies"
	"pitr/internal/store/file"
)

// twoDirs are the places of a repository with a copy.
type twoDirs struct {
	t    *testing.T
	dirs [2]string
	log  bytes.Buffer
}

// open joins the stores as a new process does.
func (d *twoDirs) open(quorum int, encryption Encryption) (*Repo, *copies.Store) {
	d.t.Helper()
	compressor, err := NewCompressor("zstd:1")
	if err != nil {
		d.t.Fatal(err)
	}
	copied := NewCopied("main")
	opt := copies.Options{Quorum: quorum, BufferMax: 64 << 20, Check: time.Hour, Format: copied, Log: slog.New(slog.NewTextHandler(&d.log, nil))}
	for _, dir := range d.dirs {
		opt.Members = append(opt.Members, copies.Member{Name: filepath.Base(dir), Store: d.at(dir)})
	}
	s := copies.New(opt)
	d.t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			d.t.Error(err)
		}
	})
	r := as(d.t, New(s, "main", compressor), encryption)
	copied.Serve(r)
	return r, s
}

func (d *twoDirs) at(dir string) store.Store {
	s, err := file.Open(dir)
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

// alone is the repository in one of the places.
func (d *twoDirs) alone(i int, encryption Encryption) *Repo {
	compressor, err := NewCompressor("zstd:1")
	if err != nil {
		d.t.Fatal(err)
	}
	return as(d.t, New(d.at(d.dirs[i]), "main", compressor), encryption)
}

func (d *twoDirs) keys(i int) string {
	var keys []string
	err := filepath.WalkDir(d.dirs[i], func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			keys = append(keys, strings.TrimPrefix(path, d.dirs[i]))
		}
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return strings.Join(keys, "\n")
}

func (d *twoDirs) bind(r *Repo) {
	d.t.Helper()
	if err := r.Bind(d.t.Context(), Cluster{SystemID: 7, SegmentSize: mib, Created: clockZero}); err != nil {
		d.t.Fatal(err)
	}
}

func newTwoDirs(t *testing.T) *twoDirs {
	return &twoDirs{t: t, dirs: [2]string{t.TempDir(), t.TempDir()}}
}

func TestStoresThatHoldOneContentEncryptedTwiceAreAtOne(t *testing.T) {
	d := newTwoDirs(t)
	identity, recipient := newIdentity(t)
	encryption := Encryption{Recipients: []string{recipient}, IdentityFile: identityFile(t, identity)}
	r, _ := d.open(2, encryption)
	d.bind(r)
	// Somebody whose put has reached only one of them was killed.
	part := Part{Timeline: 1, Start: 0x300000, End: 0x300100}
	content := bytes.Repeat([]byte("w"), 0x100)
	if one := d.alone(1, encryption); one.PutPart(t.Context(), mib, part, clockZero, one.Pack(content)) != nil {
		t.Fatal("put")
	}
	if err := r.PutPart(t.Context(), mib, part, clockZero, r.Pack(content)); err != nil {
		t.Errorf("the same content, encrypted anew: %v", err)
	}
	for i := range d.dirs {
		if got, err := d.alone(i, encryption).ReadPart(t.Context(), mib, part); err != nil || !bytes.Equal(got, content) {
			t.Errorf("store %d: %d bytes, %v", i, len(got), err)
		}
	}
	_, again := d.open(2, encryption)
	if err := errors.Join(again.Fill(t.Context(), nil), again.Ready()); err != nil {
		t.Error(err)
	}
	other := bytes.Repeat([]byte("x"), 0x100)
	if err := r.PutPart(t.Context(), mib, part, clockZero, r.Pack(other)); !errors.Is(err, ErrConflict) {
		t.Errorf("other content: %v", err)
	}
}

func TestOtherContentInACopyIsAConflictWhateverTheOrder(t *testing.T) {
	for i := range 2 {
		d := newTwoDirs(t)
		r, s := d.open(2, Encryption{})
		d.bind(r)
		part := Part{Timeline: 1, Start: 0x300000, End: 0x300100}
		if one := d.alone(i, Encryption{}); one.PutPart(t.Context(), mib, part, clockZero, one.Pack(bytes.Repeat([]byte("x"), 0x100))) != nil {
			t.Fatal("put")
		}
		if err := r.PutPart(t.Context(), mib, part, clockZero, r.Pack(bytes.Repeat([]byte("w"), 0x100))); !errors.Is(err, ErrConflict) {
			t.Errorf("other content in store %d: %v", i, err)
		}
		if s.Ready() == nil {
			t.Error("it is ready")
		}
	}
}

func TestAStoreOfAnotherClusterIsForeign(t *testing.T) {
	d := newTwoDirs(t)
	if err := d.alone(1, Encryption{}).Bind(t.Context(), Cluster{SystemID: 8, SegmentSize: mib, Created: clockZero}); err != nil {
		t.Fatal(err)
	}
	r, _ := d.open(2, Encryption{})
	if err := r.Bind(t.Context(), Cluster{SystemID: 7, SegmentSize: mib, Created: clockZero}); !errors.Is(err, ErrForeign) {
		t.Errorf("%v", err)
	}
	before := d.keys(1)
	r, s := d.open(1, Encryption{})
	_ = r.PutPart(t.Context(), mib, Part{Timeline: 1, Start: 0x300000, End: 0x300100}, clockZero, r.Pack(make([]byte, 0x100))) // the first store may take it
	if err := s.Fill(t.Context(), nil); !errors.Is(err, ErrForeign) {
		t.Errorf("fill: %v", err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if after := d.keys(1); after != before {
		t.Errorf("it was written to: %s", after)
	}
}

// TestACopyGetsWhatIsSaidOfBackups lets a store be added to a repository with notes of each kind, and with an old orphan that a backup which is being
// taken may refer to.
func TestACopyGetsWhatIsSaidOfBackups(t *testing.T) {
	d := newTwoDirs(t)
	one := d.alone(0, Encryption{})
	d.bind(one)
	backup, _, _ := someBackup(t, one, "20260101T000000Z", clockZero)
	id := time.Now().UTC().Format(backupIDLayout)
	var orphan PackBuilder
	orphan.Add(one.CompressExtent([]byte("a page")))
	pack, err := one.PutPack(t.Context(), "20250101T000000Z", 0, &orphan)
	if err == nil {
		err = one.PutContents(t.Context(), pack, []Tagged{})
	}
	_, beginErr := one.BeginBackup(t.Context(), id, Running{Since: time.Now(), Bases: []string{}})
	err = errors.Join(err, beginErr, one.PutKeep(t.Context(), backup.ID, Keep{}), one.PutTombstone(t.Context(), backup.ID, Tombstone{}),
		one.PutProof(t.Context(), Proof{Backup: backup.ID, Time: clockZero}), one.PutReading(t.Context(), Reading{Time: clockZero}))
	if err != nil {
		t.Fatal(err)
	}
	want := d.keys(0)
	_, s := d.open(2, Encryption{})
	if err := s.Fill(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for i := range d.dirs {
		if got := d.keys(i); got != want {
			t.Errorf("store %d holds\n%s\nwant\n%s", i, got, want)
		}
	}
}

// TestWhatWasDeletedDoesNotComeBackFromACopyThatMissedIt: a store that was away holds parts whose segment is whole, WAL from before all
// backups, replaced clocks and old orphans. The next process knows of no deletion, and sees by the rules that these may be gone.
func TestWhatWasDeletedDoesNotComeBackFromACopyThatMissedIt(t *testing.T) {
	d := newTwoDirs(t)
	r, s := d.open(2, Encryption{})
	d.bind(r)
	putSegment(t, r, 1, 1)
	putSegment(t, r, 1, 2)
	putPart(t, r, 1, 0x200000, 0x200100)
	putSegment(t, r, 1, 3)
	clocks := []Clock{{LSN: 0x300000, Time: clockZero}, {LSN: 0x300000, Time: clockZero.Add(time.Minute)}}
	for _, clock := range clocks {
		if err := r.PutClock(t.Context(), 1, clock); err != nil {
			t.Fatal(err)
		}
	}
	backup, _, _ := someBackup(t, r, "20260101T000000Z", clockZero)
	if err := errors.Join(s.Fill(t.Context(), nil), s.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	one := d.alone(0, Encryption{})
	err := errors.Join(one.DeletePart(t.Context(), mib, Part{Timeline: 1, Start: 0x200000, End: 0x200100}), one.DeleteClock(t.Context(), 1, clocks[0]))
	if mib.Start(backup.Start) >= pg.LSN(2*mib) {
		err = errors.Join(err, one.DeleteSegment(t.Context(), mib, pg.Segment{Timeline: 1, Number: 1}))
	}
	orphan := filepath.Join(d.dirs[1], "main", "packs", "20250101T000000Z", "000000")
	err = errors.Join(err, os.MkdirAll(filepath.Dir(orphan), 0o755), os.WriteFile(orphan, []byte("x"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	want := d.keys(0)
	_, s = d.open(2, Encryption{})
	if err := s.Fill(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for i := range d.dirs {
		if got := d.keys(i); got != want {
			t.Errorf("store %d holds\n%s\nwant\n%s", i, got, want)
		}
	}
}
