package archiver

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pitr/internal/pg"
	"pitr/internal/postmaster"
)

const workloadOfAllKinds = `
create table if not exists plain (i int primary key, t text);
insert into plain select i, md5(i::text) from generate_series((select coalesce(max(i), 0) from plain) + 1, (select coalesce(max(i), 0) from plain) + 20000) i;
create table if not exists pts (p point); insert into pts select point(random(), random()) from generate_series(1, 5000);
create index if not exists pts_spgist on pts using spgist (p); create index if not exists plain_hash on plain using hash (t);
create index if not exists plain_gin on plain using gin (string_to_array(t, 'a')); create index if not exists plain_brin on plain using brin (i);
create sequence if not exists s; select count(nextval('s')) from generate_series(1, 100);
create unlogged table if not exists unlogged_one (i int); insert into unlogged_one values (1);
delete from plain where i % 10 = 3; update plain set t = 'x' || t where i % 50 = 7;
select count(*) from plain where t like '%f%'; select count(*) from pts where p <@ box '(0,0),(0.5,0.5)';
vacuum plain; vacuum pts; analyze plain; select count(nextval('s')) from generate_series(1, 10);
drop table if exists rewritten; create table rewritten as select * from plain; truncate rewritten; insert into rewritten select * from plain;
alter table rewritten add column n int default random() * 10; delete from rewritten where i > 1000; vacuum rewritten; vacuum full rewritten;`

// workload runs statements one by one: VACUUM is not allowed in a transaction block.
func (b *bench) workload() {
	b.t.Helper()
	for statement := range strings.SplitSeq(workloadOfAllKinds, ";") {
		if statement = strings.TrimSpace(statement); statement != "" {
			b.query(statement)
		}
	}
}

func TestWhateverPostgresChangesIsNamedByTheIndex(t *testing.T) {
	b := newBench(t, 1, "wal_keep_size=1GB", "autovacuum_naptime=1s", "bgwriter_lru_maxpages=500")
	a := b.run(b.options())
	b.workload()
	a.archived(b.written())
	b.backup()
	for round := range 4 {
		b.workload()
		if round%2 == 0 {
			b.query("checkpoint")
		}
		b.query("create database made" + string(rune('a'+round)) + []string{"", " strategy file_copy"}[round%2])
		second := b.backup()
		b.countedAsSent(b.repo, second.ID)
	}
	if n := strings.Count(b.log.String(), `what has changed is what the WAL says" extents=`); n != 4 || strings.Contains(b.log.String(), "is not compared") {
		t.Errorf("%d of 4 backups were compared with the WAL", n)
	}
	if strings.Contains(b.log.String(), `what the WAL says" extents=0 `) {
		t.Error("nothing had changed: the test shows nothing")
	}
}

// touchPage changes a byte of free space in a page of a relation, with the right checksum, as nobody does whose changes are logged.
func touchPage(t *testing.T, name string, block uint32) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	page := make([]byte, pg.PageSize)
	if _, err := f.ReadAt(page, int64(block)*pg.PageSize); err != nil {
		t.Fatal(err)
	}
	upper := binary.LittleEndian.Uint16(page[14:])
	page[upper-1] ^= 0x55 // right before the tuples: PageAddItem leaves it alone until a tuple comes there
	binary.LittleEndian.PutUint16(page[8:], pg.PageChecksum(page, block))
	if _, err := f.WriteAt(page, int64(block)*pg.PageSize); err != nil || f.Close() != nil {
		t.Fatal(err)
	}
}

// changedBehind is a server with a backup, of which a page in extent 2 of a file has changed since, behind everybody's back.
func changedBehind(t *testing.T, source Source) (b *bench, name string) {
	t.Helper()
	b = newBench(t, 16)
	b.query("create table t as select i, repeat('x', 700) from generate_series(1, 2000) i")
	b.query("vacuum freeze t")
	name = b.query("select pg_relation_filepath('t')")
	a := b.run(b.options())
	a.archived(b.written())
	opt := b.fileOptions()
	opt.Source = source
	b.backupWith(opt)
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	if err := b.server.Stop(t.Context(), postmaster.Fast); err != nil {
		t.Fatal(err)
	}
	touchPage(t, filepath.Join(b.server.Dir, name), 70)
	b.restart(t.Context())
	b.run(b.options())
	return b, name
}

func TestChangeThatNoWALTellsOfStopsTheBackup(t *testing.T) {
	b, name := changedBehind(t, SourceServer)
	_, err := TakeBackup(t.Context(), b.backupOptions())
	if !errors.Is(err, ErrUnnamed) || !strings.Contains(err.Error(), "extent 2 of "+name) {
		t.Errorf("a page has changed behind everybody's back; the backup ended with %v", err)
	}
	if backups, err := b.repo.Backups(t.Context()); err != nil || len(backups) != 1 {
		t.Errorf("backups %v, %v", backups, err)
	}
	opt := b.backupOptions()
	opt.Full = true
	full := b.backupWith(opt)
	if full.ChecksumFailures != 0 {
		t.Errorf("%d checksums are wrong: the test shows something else", full.ChecksumFailures)
	}
	b.backup() // it is compared with the full one
}
