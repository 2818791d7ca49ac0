package archiver

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"pitr/internal/pg"
	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
)

// fileOptions are those of a backup whose files are read here.
func (b *bench) fileOptions() BackupOptions {
	opt := b.backupOptions()
	opt.Source, opt.Directory = SourceFiles, b.server.Dir
	return opt
}

// readHere are the bytes that backups have read here, all told.
func (b *bench) readHere() (total int64) {
	b.t.Helper()
	for line := range strings.Lines(b.log.String()) {
		if _, tail, found := strings.Cut(line, `msg="files were read" bytes=`); found {
			text, _, _ := strings.Cut(tail, " ")
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				b.t.Fatal(err)
			}
			total += n
		}
	}
	return total
}

// names are the files and directories below a directory, but for those that a backup adds.
func names(t *testing.T, root string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		path, err := filepath.Rel(root, name)
		if path != "tablespace_map" { // pg_basebackup does not write an empty one
			list = append(list, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestFilesThatAreReadHereAreThoseThatTheServerSends(t *testing.T) {
	b := newBench(t, 16, "autovacuum=off", "wal_keep_size=1GB")
	b.pgbench("-i", "-s", "4", "-q")
	b.workload()
	latin := filepath.Join(b.server.Dir, "caf\xe9 \"of\" <ours>")
	if err := errors.Join(os.WriteFile(latin, []byte("a name in Latin 1"), 0o600), b.install.Own(latin)); err != nil {
		t.Fatal(err)
	}
	a := b.run(b.options())
	a.archived(b.written())
	dir := postmastertest.TempDir(t, b.install)
	first := b.backupWith(b.fileOptions())
	read := b.readHere()
	for round := range 3 {
		b.query("update pgbench_accounts set abalance = abalance + 1 where aid between 7000 and 7100")
		b.workload()
		b.query("create database made" + string(rune('a'+round)) + []string{"", " strategy file_copy"}[round%2*min(1, b.major()/15)])
		b.query("select count(*) from pgbench_accounts")
		b.query("checkpoint")
		b.query("checkpoint") // files of dropped relations go with the second one (SyncPostCheckpoint)
		opt := b.fileOptions()
		if round == 1 {
			opt = b.backupOptions() // one that the server sends, between those that are read here
		}
		backup := b.backupWith(opt)
		b.countedAsSent(b.repo, backup.ID)
		ours, plain := filepath.Join(dir, "ours"+string(rune('0'+round))), filepath.Join(dir, "plain"+string(rune('0'+round)))
		b.writeOut(backup.ID, ours)
		b.tool("pg_verifybackup", "--no-parse-wal", ours)
		b.baseBackup(plain)
		if diff := cmp.Diff(names(t, plain), names(t, ours)); diff != "" {
			t.Errorf("files and directories of a plain backup, and ours: %s", diff)
		}
		if n := compareRelations(t, ours, plain, func(relationFile) bool { return true }); n < 500 {
			t.Errorf("only %d files were compared", n)
		}
	}
	if n := strings.Count(b.log.String(), "what has changed is what the WAL says"); n != 3 {
		t.Errorf("%d of 3 backups were held against the WAL", n)
	}
	if n := b.readHere() - read; read < first.Bytes-1<<20 || n > first.Bytes {
		t.Errorf("the first backup has read %d of %d bytes, and two later ones %d", read, first.Bytes, n)
	}
}

func TestDirectoryThatIsNotTheServersIsRefused(t *testing.T) {
	b, other := newBench(t, 16), newBench(t, 16)
	b.run(b.options()).archived(b.written())
	copied := filepath.Join(postmastertest.TempDir(t, b.install), "copied")
	b.tool("pg_basebackup", "-D", copied, "-c", "fast", "-h", b.server.Dir, "-p", strconv.Itoa(b.server.Port), "-U", "postgres")
	opt := b.fileOptions()
	for _, dir := range []string{other.server.Dir, copied} {
		opt.Directory = dir
		if _, err := TakeBackup(t.Context(), opt); !errors.Is(err, ErrDirectory) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if opt.Directory = t.TempDir(); true {
		if _, err := TakeBackup(t.Context(), opt); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("an empty directory: %v", err)
		}
	}
	b.noBackup()
	until(t, "no connection of a backup is left", func() bool {
		return b.query("select count(*) from pg_stat_activity where application_name = 'pitr backup' and pid <> pg_backend_pid()") == "0"
	})
}

func TestUserWhoMayNotBeginABackupIsTold(t *testing.T) {
	b := newBench(t, 16)
	b.run(b.options()).archived(b.written())
	b.query("create role backups login replication")
	opt := b.fileOptions()
	opt.DSN = strings.Replace(b.dsn(), "postgres@", "backups@", 1)
	if _, err := TakeBackup(t.Context(), opt); err == nil || !strings.Contains(err.Error(), "permission denied for function pg_") {
		t.Errorf("got %v", err)
	}
	b.noBackup()
	if b.major() >= 15 {
		b.query("grant execute on function pg_backup_start(text, boolean), pg_backup_stop(boolean) to backups")
		b.backupWith(opt)
	}
}

func TestChangeBehindTheServersBackIsFoundInWhatNeedNotBeRead(t *testing.T) {
	b, name := changedBehind(t, SourceFiles)
	opt := b.fileOptions()
	opt.auditOneIn = 1
	if _, err := TakeBackup(t.Context(), opt); !errors.Is(err, ErrUnnamed) || !strings.Contains(err.Error(), "extent 2 of "+name) {
		t.Errorf("a page has changed behind everybody's back; the backup ended with %v", err)
	}
	opt.Full = true
	b.backupWith(opt)
}

func TestServerThatIsKilledWhileItsFilesAreReadHasNoBackup(t *testing.T) {
	b := newBench(t, 16)
	b.pgbench("-i", "-s", "2", "-q")
	b.run(b.options()).archived(b.written())
	killed := false
	b.store.onPut(func(ctx context.Context, key string, _ []byte, put func() error) error {
		if strings.Contains(key, "packs/") && !killed {
			killed = true
			if err := b.server.Stop(ctx, postmaster.Immediate); err != nil {
				return err
			}
		}
		return put()
	})
	opt := b.fileOptions()
	opt.BufferMax = 16 << 20
	if _, err := TakeBackup(t.Context(), opt); err == nil || !killed {
		t.Errorf("the server was killed: %t; the backup ended with %v", killed, err)
	}
	b.noBackup()
}

func TestRelationsBeyondOneGiBAndHolesAreStoredAndReadFromEitherSource(t *testing.T) {
	b := newBench(t, 16)
	b.query("create table big (i int); insert into big select generate_series(1, 1000); checkpoint")
	name := filepath.Join(b.server.Dir, b.query("select pg_relation_filepath('big')"))
	if err := b.server.Stop(t.Context(), postmaster.Fast); err != nil {
		t.Fatal(err)
	}
	// Pages of zeros are new ones. The first file of the relation is full, and nearly all of it is a hole.
	if err := os.Truncate(name, pg.RelationSegmentBlocks*pg.PageSize); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name+".1", make([]byte, 3*pg.PageSize), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.install.Own(name), b.install.Own(name+".1")); err != nil {
		t.Fatal(err)
	}
	b.restart(t.Context())
	b.run(b.options()).archived(b.written())
	// In the second file, where the free space map knows of no page before.
	b.query("insert into big select generate_series(1, 100000)")
	for _, opt := range []BackupOptions{b.fileOptions(), b.backupOptions(), b.fileOptions()} {
		b.query("update big set i = i + 1 where i < 100; checkpoint")
		backup := b.backupWith(opt)
		m, _ := b.countedAsSent(b.repo, backup.ID)
		sizes := []int64{}
		for _, f := range m.Entries {
			if base := filepath.Base(name); filepath.Base(f.Path) == base || filepath.Base(f.Path) == base+".1" {
				sizes = append(sizes, f.Size)
			}
		}
		slices.Sort(sizes)
		if len(sizes) != 2 || sizes[1] != pg.RelationSegmentBlocks*pg.PageSize || sizes[0] < 3*pg.PageSize || backup.UploadedBytes() > 64<<20 {
			t.Errorf("the files of the relation have %v bytes, %d bytes were uploaded", sizes, backup.UploadedBytes())
		}
	}
}

func TestTablespaceInTheDataDirectoryIsStoredOrTheBackupIsRefused(t *testing.T) {
	b := newBench(t, 16, "allow_in_place_tablespaces=on")
	b.query("create tablespace inside location ''")
	b.query("create tablespace empty location ''")
	b.query("create table t tablespace inside as select generate_series(1, 5000) i")
	b.query("checkpoint")
	name := b.query("select pg_relation_filepath('t')")
	content, err := os.ReadFile(filepath.Join(b.server.Dir, name))
	if err != nil {
		t.Fatal(err)
	}
	b.run(b.options()).archived(b.written())
	for _, opt := range []BackupOptions{b.backupOptions(), b.fileOptions()} {
		backup, err := TakeBackup(t.Context(), opt)
		if opt.Source != SourceFiles && b.major() < 16 {
			if !errors.Is(err, ErrTablespaceLeftOut) {
				t.Errorf("the server does not send the tablespace; the backup ended with %v", err)
			}
			b.noBackup()
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(backup.Tablespaces) != 0 {
			t.Errorf("tablespaces %v are to lie elsewhere", backup.Tablespaces)
		}
		b.countedAsSent(b.repo, backup.ID)
		dir := t.TempDir()
		b.writeOut(backup.ID, dir)
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes, want %d; %v", name, len(got), len(content), err)
		}
	}
}
