package archiver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/internal/postmaster/postmastertest"
	"pitr/internal/repo"
)

// manifestOfServer is the server's own backup_manifest: "Backup Manifest Format" of the PostgreSQL manual.
type manifestOfServer struct {
	Files []struct {
		Path      string
		Encoded   string `json:"Encoded-Path"`
		Size      int64
		Algorithm string `json:"Checksum-Algorithm"`
		Checksum  string
	}
	Ranges []struct {
		Timeline int
		Start    string `json:"Start-LSN"`
		End      string `json:"End-LSN"`
	} `json:"WAL-Ranges"`
}

// readBack reads every file of a backup back through its packs and writes each into what open returns.
func readBack(t *testing.T, r *repo.Repo, m *repo.Manifest, open func(f repo.File) io.Writer) {
	t.Helper()
	for _, f := range m.Entries {
		w := open(f)
		for i, e := range f.Extents {
			body, err := r.PackReader(t.Context(), m.Packs[e.Pack], e.Offset, int64(e.Length))
			if err != nil {
				t.Fatal(err)
			}
			frame, err := io.ReadAll(body)
			if err := errors.Join(err, body.Close()); err != nil {
				t.Fatal(err)
			}
			plain, err := r.OpenExtent(t.Context(), m.Packs[e.Pack], e, frame, int(min(repo.ExtentSize, f.Size-int64(i)*repo.ExtentSize)))
			if err != nil {
				t.Fatalf("%s: %v", f.Path, err)
			}
			if _, err := w.Write(plain); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// countedAsSent reads a backup back and compares each file with what the server's manifest says of it.
func (b *bench) countedAsSent(r *repo.Repo, id string) (*repo.Manifest, manifestOfServer) {
	t := b.t
	t.Helper()
	m, err := r.ReadManifest(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	hashes := map[string][2]hash.Hash{}
	sizes := map[string]int64{}
	var manifest strings.Builder
	readBack(t, r, m, func(f repo.File) io.Writer {
		if f.Path == "backup_manifest" {
			return &manifest
		}
		if f.Type == repo.TypeDir {
			return io.Discard
		}
		sizes[f.Path] = f.Size
		hashes[f.Path] = [2]hash.Hash{crc32.New(crc32.MakeTable(crc32.Castagnoli)), sha256.New()}
		return io.MultiWriter(hashes[f.Path][0], hashes[f.Path][1])
	})
	var server manifestOfServer
	if err := json.Unmarshal([]byte(manifest.String()), &server); err != nil {
		t.Fatal(err)
	}
	for _, want := range server.Files {
		if want.Encoded != "" {
			name, err := hex.DecodeString(want.Encoded)
			if err != nil {
				t.Fatal(err)
			}
			want.Path = string(name)
		}
		h, there := hashes[want.Path]
		if !there {
			t.Errorf("%s is in the server's manifest and not in ours", want.Path)
			continue
		}
		got := fmt.Sprintf("%x", h[1].Sum(nil))
		if want.Algorithm == "CRC32C" {
			sum := h[0].Sum(nil)
			got = fmt.Sprintf("%02x%02x%02x%02x", sum[3], sum[2], sum[1], sum[0]) // the server prints it as it lies in memory
		}
		if got != want.Checksum || sizes[want.Path] != want.Size {
			t.Errorf("%s: %d bytes with %s %s, the server has sent %d with %s", want.Path, sizes[want.Path], want.Algorithm, got, want.Size, want.Checksum)
		}
		delete(hashes, want.Path)
	}
	for name := range hashes {
		t.Errorf("%s is in our manifest and not in the server's", name)
	}
	return m, server
}

func TestBackupHoldsEveryFileAsTheServerCountedIt(t *testing.T) {
	b := newBench(t, 16)
	space := filepath.Join(postmastertest.TempDir(t, b.install), "space")
	if err := os.Mkdir(space, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := b.install.Own(space); err != nil {
		t.Fatal(err)
	}
	b.query("create tablespace fast location '" + space + "'")
	b.query("create table in_space tablespace fast as select i, repeat('x', i % 900) from generate_series(1, 20000) i")
	b.pgbench("-i", "-s", "3", "-q")
	a := b.run(b.options())
	over := make(chan struct{})
	go func() {
		defer close(over)
		b.pgbench("-c", "2", "-T", "3", "-n") // files change while they are copied
	}()
	a.archived(1)
	backup := b.backup()
	<-over
	m, server := b.countedAsSent(b.repo, backup.ID)
	inSpace := 0
	for _, f := range server.Files {
		if strings.HasPrefix(f.Path, "pg_tblspc/") {
			inSpace++
		}
	}
	if len(server.Files) < 900 || inSpace == 0 || len(m.Tablespaces) != 1 || m.Tablespaces[0].Path != space {
		t.Errorf("%d files, %d in a tablespace; tablespaces %v", len(server.Files), inSpace, m.Tablespaces)
	}
	if len(server.Ranges) != 1 || server.Ranges[0].Start != m.Start.String() || server.Ranges[0].End != m.Stop.String() {
		t.Errorf("the server says that %v is needed, our manifest %s to %s", server.Ranges, m.Start, m.Stop)
	}
	t.Logf("%d files, %d bytes, %d stored in %d packs", len(server.Files), m.Bytes, m.StoredBytes, len(m.Packs))
}

func TestBackupWhoseWALDoesNotArriveDoesNotExist(t *testing.T) {
	b := newBench(t, 16)
	opt := b.backupOptions()
	opt.WALWait = time.Second
	_, err := TakeBackup(t.Context(), opt)
	if !errors.Is(err, ErrNoWAL) {
		t.Errorf("got %v", err)
	}
	b.noBackup()
}

func (b *bench) noBackup() {
	b.t.Helper()
	if backups, err := b.repo.Backups(b.t.Context()); err != nil || len(backups) != 0 {
		b.t.Errorf("backups %v, %v", backups, err)
	}
}

func TestBackupSaysWhichPagesAreWrongAndDoesNotExistIfItShallNot(t *testing.T) {
	for _, source := range []Source{SourceServer, SourceFiles} {
		t.Run(string(source), func(t *testing.T) { saysWhichPagesAreWrong(t, source) })
	}
}

func saysWhichPagesAreWrong(t *testing.T, source Source) {
	b := newBench(t, 16)
	b.query("create table t as select i, repeat('x', 500) from generate_series(1, 1000) i; create table zeros (i int); checkpoint")
	relation := b.query("select pg_relation_filepath('t')")
	f, err := os.OpenFile(filepath.Join(b.server.Dir, relation), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("a disk went bad"), 3*8192+4000); err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	// A page that was never written is all zeros, which is no defect.
	if err := os.Truncate(filepath.Join(b.server.Dir, b.query("select pg_relation_filepath('zeros')")), 2*8192); err != nil {
		t.Fatal(err)
	}
	a := b.run(b.options())
	a.archived(b.written())
	opt := b.fileOptions()
	opt.Source, opt.ChecksumFailures = source, ChecksumsStop
	if _, err = TakeBackup(t.Context(), opt); !errors.Is(err, ErrChecksum) {
		t.Errorf("a page is wrong; the backup ended with %v", err)
	}
	b.noBackup()
	opt.ChecksumFailures = ChecksumsWarn
	backup, err := TakeBackup(t.Context(), opt)
	if err != nil || backup.ChecksumFailures != 1 {
		t.Errorf("%d pages are wrong, %v", backup.ChecksumFailures, err)
	}
	if want := fmt.Sprintf("file=%s page=3 block=3", relation); !strings.Contains(b.log.String(), want) {
		t.Errorf("the log does not have %q", want)
	}
	backups, err := b.repo.Backups(t.Context())
	if err != nil || len(backups) != 1 || backups[0].ChecksumFailures != 1 {
		t.Errorf("backups %v, %v", backups, err)
	}
}

func TestBackupThatCannotBeStoredDoesNotExist(t *testing.T) {
	for _, what := range []string{"packs/", "backups/"} {
		b := newBench(t, 16)
		a := b.run(b.options())
		a.archived(b.written())
		broken := errors.New("injected: no space left in the bucket")
		b.store.onPut(func(_ context.Context, key string, _ []byte, put func() error) error {
			if strings.Contains(key, what) {
				return broken
			}
			return put()
		})
		_, err := TakeBackup(t.Context(), b.backupOptions())
		if !errors.Is(err, broken) {
			t.Errorf("%s: %v", what, err)
		}
		b.noBackup()
	}
}

func TestBackupIntoAnotherClustersRepositoryIsRefused(t *testing.T) {
	b, other := newBench(t, 16), newBench(t, 16)
	a := b.run(b.options())
	a.archived(b.written())
	opt := other.options()
	_, err := TakeBackup(t.Context(), BackupOptions{DSN: opt.DSN, Repo: b.repo, BufferMax: opt.BackupBufferMax, WALWait: opt.BackupWALWait, Log: opt.Log})
	if !errors.Is(err, repo.ErrForeign) {
		t.Errorf("got %v", err)
	}
	b.noBackup()
}
