package archiver

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path"
	"strings"

	"pitr/archiver/replication"
	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// increments is a backup for which the server sends only what has changed since an earlier one: PostgreSQL 17 and later with summarize_wal. What
// comes is put together with what the repository has, as pg_combinebackup does, so that the backup is complete by itself.
type increments struct {
	files    map[string]*repo.File // of the backup before
	manifest []byte                // the server's, of the backup before
	filler   *filler
	repack   repacking // what lies in packs that are left alone is stored again
	sql      *replication.Conn
	sent     map[string]sentFile // files that are stored otherwise than they were sent
}

// incrementPrefix begins the name of a file of which only changed blocks are sent: INCREMENTAL_PREFIX of
// src/include/backup/basebackup_incremental.h.
const incrementPrefix = "INCREMENTAL."

// incrementsMost is the part of a database, one in so many, of which so much may have changed that increments are worth it: of an extent with a changed block the rest
// comes from the repository, which is read, decompressed and hashed for it, and that costs more than to have the server send it.
const incrementsMost = 3

// incrementsAnyway is how much may have changed whatever part it is: it takes a second or two.
const incrementsAnyway = 512 << 20

// newIncrements prepares to ask the server what has changed; nil when that is not possible, with the reason.
func newIncrements(ctx context.Context, opt BackupOptions, b repo.Backup, before previous) (x *increments, reason string, err error) {
	switch {
	case opt.Incremental == IncrementalOff || before.backup == nil || b.Major < 17:
		return nil, "", nil // nobody expects it
	case b.Settings["summarize_wal"] != "on":
		return nil, "summarize_wal is off", nil
	}
	if reason := before.unfit(b); reason != "" {
		return nil, reason, nil
	}
	changed, err := changedBytes(ctx, opt.Repo, *before.backup)
	if err != nil {
		return nil, "", err
	}
	if changed > max(incrementsAnyway, before.backup.Bytes/incrementsMost) {
		return nil, fmt.Sprintf("extents of %d MiB have changed, and reading all costs less than putting these together", changed>>20), nil
	}
	x = &increments{files: map[string]*repo.File{}, sent: map[string]sentFile{}, repack: before.repack}
	for i := range before.manifest.Entries {
		f := &before.manifest.Entries[i]
		x.files[f.Path] = f
	}
	x.filler = &filler{repo: opt.Repo, manifest: before.manifest}
	manifest := x.files["backup_manifest"]
	if manifest == nil {
		return nil, "the backup before has no manifest of the server", nil
	}
	if x.manifest, err = x.filler.read(ctx, manifest); err != nil {
		return nil, "", err
	}
	if x.sql, err = opt.connect(ctx, "", false); err != nil {
		return nil, "", err
	}
	if _, err := x.sql.Query(ctx, "SELECT pg_catalog.pg_read_binary_file('PG_VERSION')"); err != nil {
		return nil, "visibility maps could not be read (pg_read_binary_file): " + err.Error(), x.sql.Close(ctx)
	}
	return x, "", nil
}

// close ends the connection of a backup, if it has one.
func (x *increments) close(ctx context.Context) error {
	if x == nil {
		return nil
	}
	return x.sql.Close(ctx)
}

// part tells whether a file of the archive is one of which only changed blocks are sent, and which one it is.
func (x *increments) part(name string) (whole string, ok bool) {
	dir, base := path.Split(name)
	base, ok = strings.CutPrefix(base, incrementPrefix)
	if x == nil || !ok {
		return name, false
	}
	_, isRelation := parseRelationFile(dir + base)
	return dir + base, isRelation
}

// add takes over a file of which only changed blocks are sent, as sent is named.
func (x *increments) add(p *pipeline, f *repo.File, whole string, content io.Reader) error {
	name, size := f.Path, f.Size
	f.Path = whole
	sum := &summedReader{source: content}
	head, err := readIncrement(sum, size)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", replication.ErrNotIncremental, name, err)
	}
	if file, _ := parseRelationFile(whole); file.fork == wal.ForkVM {
		err = x.addMap(p, f, sum)
	} else {
		err = x.addBlocks(p, f, head, sum)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	x.sent[name] = sentFile{whole, size, sum.sum}
	return nil
}

// addMap asks the server for a visibility map as a whole. Before version 19 records of the heap clear bits of a map without naming its block, so
// that summaries lack it, and a block that is taken over from the backup before may call pages all-visible that are not.
func (x *increments) addMap(p *pipeline, f *repo.File, sent io.Reader) error {
	if _, err := io.Copy(io.Discard, sent); err != nil {
		return err
	}
	var content []byte
	for {
		rows, err := x.sql.Query(p.ctx, fmt.Sprintf("SELECT pg_catalog.encode(pg_catalog.pg_read_binary_file('%s', %d, %d, true), 'hex')", f.Path, len(content), repo.ExtentSize))
		if err != nil {
			return err
		}
		if len(rows) != 1 {
			return errors.New("the server does not tell its visibility map")
		}
		piece, err := hex.DecodeString(rows[0][0])
		if err != nil {
			return err
		}
		content = append(content, piece...)
		if len(piece) < repo.ExtentSize { // also of a map that is gone: the WAL says so
			break
		}
	}
	f.Size = int64(len(content) / pg.PageSize * pg.PageSize)
	return p.add(f, bytes.NewReader(content))
}

// addBlocks puts blocks that have changed among those that have not. As in pg_combinebackup (reconstruct_from_incremental_file of
// src/bin/pg_combinebackup/reconstruct.c) what neither the server sends nor the file before has is zeros, and so is what the file before has from
// the truncation length on: it was cut off meanwhile.
func (x *increments) addBlocks(p *pipeline, f *repo.File, head increment, content io.Reader) error {
	before := x.files[f.Path]
	if before == nil {
		return fmt.Errorf("%w: the backup before does not have the file", replication.ErrNotIncremental)
	}
	f.Size = int64(head.length()) * pg.PageSize
	p.begin(f)
	blocks := head.blocks
	batch := x.filler.begin(p)
	for i := range f.Extents {
		length := int(min(repo.ExtentSize, f.Size-int64(i)*repo.ExtentSize))
		n := 0
		for n < len(blocks) && int(blocks[n])/blocksPerExtent == i {
			n++
		}
		var old *repo.Extent
		oldLength, oldKept := 0, 0
		if i < len(before.Extents) {
			old, oldLength = &before.Extents[i], int(min(repo.ExtentSize, before.Size-int64(i)*repo.ExtentSize))
			oldKept = int(max(0, min(int64(oldLength), int64(head.truncation)*pg.PageSize-int64(i)*repo.ExtentSize)))
		}
		if n == 0 && oldLength == length && oldKept == length && old.CRC.Known {
			if p.take(&f.Extents[i], *old, length) {
				continue
			}
			if !x.repack.isThin(old.Pack) {
				return fmt.Errorf("%w: extent %d of the backup before is not known", replication.ErrNotIncremental, i)
			}
		}
		plain, err := take(p.ctx, p.memory.plains, repo.ExtentSize)
		if err != nil {
			return err
		}
		hole := hole{file: f, number: i, plain: plain[:length], old: old, oldLength: oldLength, oldKept: oldKept}
		for _, block := range blocks[:n] {
			at := int(block) % blocksPerExtent
			hole.has |= 1 << at
			if _, err := io.ReadFull(content, plain[at*pg.PageSize:(at+1)*pg.PageSize]); err != nil {
				return fmt.Errorf("read block %d: %w", block, err)
			}
		}
		blocks = blocks[n:]
		if err := batch.add(hole); err != nil {
			return err
		}
	}
	p.show()
	return batch.flush()
}

// label takes away what says that a backup_label is one of an increment: write_backup_label of src/bin/pg_combinebackup/backup_label.c.
func (x *increments) label(f *repo.File, content io.Reader) (io.Reader, error) {
	all, err := io.ReadAll(io.LimitReader(content, labelMax))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Path, err)
	}
	var kept []byte
	for line := range bytes.Lines(all) {
		if !bytes.HasPrefix(line, []byte("INCREMENTAL FROM ")) {
			kept = append(kept, line...)
		}
	}
	x.sent[f.Path] = sentFile{f.Path, int64(len(all)), crc32.Checksum(all, castagnoli)}
	f.Size = int64(len(kept))
	return bytes.NewReader(kept), nil
}

// labelMax bounds a backup_label, which has some lines.
const labelMax = 1 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// summedReader sums up what is read.
type summedReader struct {
	source io.Reader
	sum    uint32
}

// Read implements io.Reader.
func (r *summedReader) Read(p []byte) (int, error) {
	n, err := r.source.Read(p)
	r.sum = crc32.Update(r.sum, castagnoli, p[:n])
	return n, err
}
