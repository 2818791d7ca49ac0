package restore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/internal/store"
	"pitr/internal/store/file"
)

// faulty is a store whose answers a test changes; a nil function changes nothing.
type faulty struct {
	store.Store
	mu   sync.Mutex // guards what follows
	gets int
	get  func(n int, key string, body io.ReadCloser) (io.ReadCloser, error)
}

func (f *faulty) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	f.mu.Lock()
	f.gets++
	n, hook := f.gets, f.get
	f.mu.Unlock()
	body, err := f.Store.Get(ctx, key, offset, length)
	if err != nil || hook == nil {
		return body, err
	}
	return hook(n, key, body)
}

// onGet sets what happens to the body of the n-th get from now on, counted from 1.
func (f *faulty) onGet(hook func(n int, key string, body io.ReadCloser) (io.ReadCloser, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gets, f.get = 0, hook
}

func (f *faulty) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gets
}

// openRepo opens the repository in a directory behind a store that can be made to fail.
func openRepo(t testing.TB, root string) (*repo.Repo, *faulty) {
	t.Helper()
	files, err := file.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	compressor, err := repo.NewCompressor("zstd:1")
	if err != nil {
		t.Fatal(err)
	}
	f := &faulty{Store: files}
	return repo.New(f, "main", compressor), f
}

// smallFiles is the backup of smallBackup: names and contents.
func smallFiles() map[string]string {
	long := strings.Repeat("0123456789abcdef", 40_000) // three extents
	return map[string]string{"PG_VERSION": "15\n", "global/pg_control": string(binary.NativeEndian.AppendUint64(nil, 7)) + "control", "base/1/1259": long, "base/1/empty": "",
		"postgresql.conf": "", "tablespace_map": "16400 /elsewhere\n", "backup_label": "label", "pg_tblspc/16400/PG_15/1/2": "in a tablespace"}
}

// smallBackup writes a backup of a few files with a tablespace into an empty repository; each file has a pack of its own.
func smallBackup(t testing.TB) (*repo.Repo, *faulty, *Plan) {
	t.Helper()
	return backupOf(t, smallFiles())
}

func backupOf(t testing.TB, files map[string]string) (*repo.Repo, *faulty, *Plan) {
	t.Helper()
	r, f := openRepo(t, t.TempDir())
	ctx := t.Context()
	b := repo.Backup{ID: "20261120T130000Z", SystemID: 7, Major: 15, Timeline: 1, SegmentSize: 16 << 20, ExtentSize: repo.ExtentSize,
		Start: 0x2000028, Stop: 0x2000100, StartTime: time.Unix(1_790_000_000, 0), StopTime: time.Unix(1_790_000_010, 0),
		Settings: map[string]string{"max_connections": "100"}, Tablespaces: []repo.Tablespace{{OID: "16400", Path: "/elsewhere"}}}
	manifest := r.NewManifest()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"base", "base/1", "global", "pg_wal", "pg_tblspc", "pg_tblspc/16400/PG_15"} {
		check(manifest.Add(repo.File{Path: dir, Type: repo.TypeDir}))
	}
	for name, content := range files {
		line := repo.File{Path: name, Mode: 0o600, Size: int64(len(content))}
		var pack repo.PackBuilder
		for rest := []byte(content); len(rest) > 0; {
			extent := rest[:min(len(rest), repo.ExtentSize)]
			rest = rest[len(extent):]
			frame := r.CompressExtent(extent)
			line.Extents = append(line.Extents, repo.Extent{Pack: len(b.Packs), Offset: pack.Add(frame), Length: len(frame), Hash: repo.DigestOf(extent)})
		}
		if len(content) > 0 {
			stored, err := r.PutPack(ctx, b.ID, len(b.Packs), &pack)
			check(err)
			b.Packs = append(b.Packs, stored)
			b.StoredBytes += stored.Size
		}
		b.Bytes += line.Size
		check(manifest.Add(line))
	}
	check(manifest.Publish(ctx, b))
	return r, f, &Plan{Target: "latest", Backup: b, BackupID: b.ID, Timeline: 1, StopLSN: pg.LSN(0x3000000), StopAt: true}
}

// into are the options of a restore into dir that changes no owners.
func into(dir string) Options {
	return Options{Dir: dir, FetchWAL: "false", Parallel: 2, Own: func(string) error { return nil }, Log: slog.New(slog.DiscardHandler)}
}

// newDir is the name of a directory that does not exist, in one that does.
func newDir(t testing.TB) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "data")
}

// isWhole reports what is wrong with a restored directory, nil when it holds smallFiles and can be started.
func isWhole(dir string) error {
	for name, want := range smallFiles() {
		got, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		switch {
		case skipped[name]:
			if err == nil {
				return fmt.Errorf("%s was written", name)
			}
		case err != nil:
			return err
		case string(got) != want:
			return fmt.Errorf("%s has %d bytes that differ from the %d of the backup", name, len(got), len(want))
		}
	}
	for _, gone := range []string{unfinishedMark, controlFileTemp} {
		if exists(filepath.Join(dir, gone)) {
			return fmt.Errorf("%s is still there", gone)
		}
	}
	if !exists(filepath.Join(dir, "recovery.signal")) {
		return errors.New("there is no recovery.signal")
	}
	return nil
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

func write(t testing.TB, name, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o600)); err != nil {
		t.Fatal(err)
	}
}
