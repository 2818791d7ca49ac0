package archiver

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"pitr/internal/postmaster/postmastertest"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// major is that of the server of the test.
func (b *bench) major() int {
	b.t.Helper()
	n, err := strconv.Atoi(b.query("show server_version_num"))
	if err != nil {
		b.t.Fatal(err)
	}
	return n / 10000
}

// newSummarizing is a bench whose server can tell what has changed, if it is of a version that can.
func newSummarizing(t *testing.T) *bench {
	t.Helper()
	b := newBench(t, 16, "autovacuum=off", "wal_keep_size=1GB")
	if b.major() >= 17 {
		b.query("alter system set summarize_wal = on")
		b.query("select pg_reload_conf()")
		until(t, "summarize_wal is on", func() bool { return b.query("show summarize_wal") == "on" })
	}
	return b
}

// tool runs a program of Postgres.
func (b *bench) tool(name string, args ...string) {
	b.t.Helper()
	if out, err := b.install.Command(b.t.Context(), name, args...).CombinedOutput(); err != nil {
		b.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// baseBackup takes a backup with pg_basebackup.
func (b *bench) baseBackup(dir string, args ...string) {
	b.t.Helper()
	b.tool("pg_basebackup", append(args, "-D", dir, "-X", "none", "-c", "fast", "-h", b.server.Dir, "-p", fmt.Sprint(b.server.Port), "-U", "postgres")...)
}

// writeOut writes the files of a backup below a directory.
func (b *bench) writeOut(id, dir string) {
	b.t.Helper()
	m, err := b.repo.ReadManifest(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	var closers []io.Closer
	readBack(b.t, b.repo, m, func(f repo.File) io.Writer {
		name := filepath.Join(dir, filepath.FromSlash(f.Path))
		if f.Type == repo.TypeDir {
			if err := os.MkdirAll(name, 0o755); err != nil {
				b.t.Fatal(err)
			}
			return io.Discard
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			b.t.Fatal(err)
		}
		file, err := os.Create(name)
		if err != nil {
			b.t.Fatal(err)
		}
		closers = append(closers, file)
		return file
	})
	for _, c := range closers {
		if err := c.Close(); err != nil {
			b.t.Fatal(err)
		}
	}
}

// compareRelations compares files of relations in two directories, those that take part, and returns how many there are.
func compareRelations(t *testing.T, ours, theirs string, takesPart func(relationFile) bool) (n int) {
	t.Helper()
	seen := map[string]bool{}
	walk := func(root string, visit func(path string, content []byte)) {
		err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			path, err := filepath.Rel(root, name)
			if err != nil {
				return err
			}
			if file, ok := parseRelationFile(path); ok && takesPart(file) {
				content, err := os.ReadFile(name)
				if err != nil {
					return err
				}
				visit(path, content)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	walk(ours, func(path string, content []byte) {
		seen[path] = true
		n++
		want, err := os.ReadFile(filepath.Join(theirs, path))
		if err != nil {
			t.Error(err)
			return
		}
		if !bytes.Equal(content, want) {
			t.Errorf("%s differs: %d bytes and %d", path, len(content), len(want))
		}
	})
	walk(theirs, func(path string, _ []byte) {
		if !seen[path] {
			t.Errorf("%s is missing", path)
		}
	})
	return n
}

func TestWhatTheServerSendsAsChangedMakesAWholeBackup(t *testing.T) {
	b := newSummarizing(t)
	b.pgbench("-i", "-s", "4", "-q")
	b.workload()
	a := b.run(b.options())
	a.archived(b.written())
	dir := postmastertest.TempDir(t, b.install)
	in := func(name string) string { return filepath.Join(dir, name) }
	b.backup()
	incremental := b.major() >= 17
	if incremental {
		b.baseBackup(in("full"))
	}
	before := []string{in("full")}
	for round := range 3 {
		b.query("update pgbench_accounts set abalance = abalance + 1 where aid % 5000 = 7")
		b.workload()
		b.query(fmt.Sprintf("delete from pts where ctid >= '(%d,0)'", 10-2*round))
		b.query("vacuum pts") // cuts it off
		b.query("select count(*) from pgbench_accounts")
		b.query("checkpoint")
		backup := b.backup()
		ours := in(fmt.Sprintf("ours%d", round))
		b.writeOut(backup.ID, ours)
		b.countedAsSent(b.repo, backup.ID)
		b.tool("pg_verifybackup", "--no-parse-wal", ours)
		plain := in(fmt.Sprintf("plain%d", round))
		b.baseBackup(plain)
		if n := compareRelations(t, ours, plain, func(relationFile) bool { return true }); n < 500 {
			t.Errorf("only %d files were compared", n)
		}
		label, err := os.ReadFile(filepath.Join(ours, "backup_label"))
		if err != nil || bytes.Contains(label, []byte("INCREMENTAL")) {
			t.Errorf("the label is %s, %v", label, err)
		}
		if !incremental {
			continue
		}
		part, combined := in(fmt.Sprintf("part%d", round)), in(fmt.Sprintf("combined%d", round))
		b.baseBackup(part, "--incremental", filepath.Join(before[len(before)-1], "backup_manifest"))
		before = append(before, part)
		b.tool("pg_combinebackup", append(append([]string{}, before...), "-o", combined)...)
		// Of visibility maps Postgres's summaries miss changes: see addMap.
		compareRelations(t, ours, combined, func(f relationFile) bool { return f.fork != wal.ForkVM })
	}
	if n := strings.Count(b.log.String(), "incremental=true"); incremental && n != 3 || !incremental && n != 0 {
		t.Errorf("the server has sent %d of 4 backups as increments", n)
	}
	if n := strings.Count(b.log.String(), "what has changed is what the WAL says"); n != 3 {
		t.Errorf("%d of 3 backups were held against the WAL", n)
	}
}

func TestServerThatCannotTellWhatHasChangedSendsEverything(t *testing.T) {
	b := newSummarizing(t)
	a := b.run(b.options())
	a.archived(b.written())
	b.backup()
	b.query("create table t as select i from generate_series(1, 1000) i")
	want := "incremental=false"
	if b.major() >= 17 {
		// Neither summaries nor the WAL of which they could be made are there.
		b.query("alter system set summarize_wal = off")
		b.query("alter system set wal_keep_size = 0")
		b.query("select pg_reload_conf()")
		until(t, "summarize_wal is off", func() bool { return b.query("show summarize_wal") == "off" })
		until(t, "the WAL is gone", func() bool {
			b.query("insert into t select i from generate_series(1, 1000) i")
			b.query("select pg_switch_wal()")
			b.query("checkpoint")
			return b.query("select min(name) > '000000010000000000000004' from pg_ls_waldir() where name ~ '^[0-9A-F]{24}$'") == "t"
		})
		names, err := filepath.Glob(filepath.Join(b.server.Dir, "pg_wal", "summaries", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
		b.query("alter system set summarize_wal = on")
		b.query("select pg_reload_conf()")
		until(t, "summarize_wal is on", func() bool { return b.query("show summarize_wal") == "on" })
		want = "the server is asked for everything"
	}
	backup := b.backup()
	b.countedAsSent(b.repo, backup.ID)
	if !strings.Contains(b.log.String(), want) {
		t.Errorf("the log does not say %q", want)
	}
	if backup.ReferredBytes == 0 || backup.UploadedBytes() > backup.ReferredBytes {
		t.Errorf("%d bytes were uploaded, %d are referred to", backup.UploadedBytes(), backup.ReferredBytes)
	}
}

func TestHeadOfAnIncrementIsReadAndHostileOnesAreRefused(t *testing.T) {
	head := func(magic, n, truncation uint32, blocks ...uint32) []byte {
		b := binary.LittleEndian.AppendUint32(nil, magic)
		b = binary.LittleEndian.AppendUint32(b, n)
		b = binary.LittleEndian.AppendUint32(b, truncation)
		for _, block := range blocks {
			b = binary.LittleEndian.AppendUint32(b, block)
		}
		if len(blocks) > 0 {
			b = append(b, make([]byte, 8192-len(b))...)
		}
		return b
	}
	read := func(b []byte, size int64, wantLength uint32) {
		t.Helper()
		h, err := readIncrement(bytes.NewReader(b), size)
		if err != nil || h.length() != wantLength {
			t.Errorf("%d blocks, want %d: %v", h.length(), wantLength, err)
		}
	}
	refused := func(b []byte, size int64) {
		t.Helper()
		if h, err := readIncrement(bytes.NewReader(b), size); err == nil {
			t.Errorf("it was read as %+v", h)
		}
	}
	read(head(incrementMagic, 0, 7), 12, 7)
	read(head(incrementMagic, 2, 3, 1, 9), 3*8192, 10)
	refused(head(incrementMagic+1, 0, 7), 12)
	refused(head(incrementMagic, 2, 3, 9, 1), 3*8192)
	refused(head(incrementMagic, 2, 3, 1, 1), 3*8192)
	refused(head(incrementMagic, 2, 3, 1, 131072), 3*8192)
	refused(head(incrementMagic, 2, 3, 1, 2), 2*8192)
	refused(head(incrementMagic, 1<<31, 3), 12)
	refused(head(incrementMagic, 0, 1<<31), 12)
	refused(head(incrementMagic, 0, 7)[:11], 12)
}
