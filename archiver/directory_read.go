package archiver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// directoryFiles reads the files of a data directory into a pipeline, while the server writes to them: what is torn or too new the WAL repairs.
type directoryFiles struct {
	dir    *dataDirectory
	server *openBackup
	same   *untouched // what need not be read; nil: everything is
	rate   *rate
	bytes  atomic.Int64 // that were read
}

// directoryReaders are extents that are read at the same time.
const directoryReaders = 4

// openFile is a file whose extents are being read. It is closed with the last of them.
type openFile struct {
	*os.File
	users atomic.Int32
}

func (f *openFile) release() error {
	if f.users.Add(-1) > 0 {
		return nil
	}
	return f.Close()
}

// extentRead is an extent that is to be read.
type extentRead struct {
	file   *repo.File
	number int
	from   *openFile
}

// read takes over all files; pg_control is the last of those that the server writes, as in a base backup of its own.
func (r *directoryFiles) read(p *pipeline, b *repo.Backup) error {
	b.Tablespaces = r.dir.tablespaces
	for _, dir := range r.dir.dirs {
		if err := r.directory(p, dir); err != nil {
			return err
		}
	}
	if err := r.readAll(p); err != nil {
		return err
	}
	control, err := r.dir.readControl()
	if err != nil {
		return err
	}
	if err := r.own(p, controlFile, control); err != nil {
		return err
	}
	ended, err := r.server.end(p.ctx, b)
	if err != nil {
		return err
	}
	b.Stop = ended.stop
	if err := r.own(p, "backup_label", []byte(ended.label)); err != nil {
		return err
	}
	if len(b.Tablespaces) > 0 {
		if err := r.own(p, "tablespace_map", []byte(ended.spaces)); err != nil {
			return err
		}
	}
	if err := p.settle(); err != nil {
		return err
	}
	manifest, err := writeServerManifest(p.files, b)
	if err != nil {
		return err
	}
	return r.own(p, "backup_manifest", manifest)
}

// own adds a file whose content is at hand.
func (r *directoryFiles) own(p *pipeline, name string, content []byte) error {
	return p.add(&repo.File{Path: name, Mode: 0o600, Size: int64(len(content)), ModTime: time.Now().UTC().Truncate(time.Second)}, bytes.NewReader(content))
}

func (r *directoryFiles) directory(p *pipeline, dir dataFile) error {
	info, err := os.Stat(dir.path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && dir.name == "pg_wal/summaries": // of a server that has never summarized
		p.begin(&repo.File{Path: dir.name, Type: repo.TypeDir, Mode: 0o700, ModTime: time.Now().UTC().Truncate(time.Second)})
		return nil
	case errors.Is(err, fs.ErrNotExist): // dropped meanwhile
		return nil
	case err != nil:
		return err
	}
	p.begin(&repo.File{Path: dir.name, Type: repo.TypeDir, Mode: uint32(info.Mode().Perm()), ModTime: info.ModTime().UTC().Truncate(time.Second)})
	return nil
}

// readAll opens one file after the other and has their extents read, several at a time and nearly in order.
func (r *directoryFiles) readAll(p *pipeline) error {
	extents := make(chan extentRead)
	var readers sync.WaitGroup
	for range directoryReaders {
		readers.Go(func() {
			for e := range extents {
				if err := r.extent(p, e); err != nil {
					p.cancel(err)
				}
			}
		})
	}
	var err error
	for _, f := range r.dir.files {
		if err = r.file(p, f, extents); err != nil {
			break
		}
	}
	close(extents)
	readers.Wait()
	return errors.Join(err, context.Cause(p.ctx))
}

// file takes over a file. One that is gone was removed since the backup began, and the WAL says so.
func (r *directoryFiles) file(p *pipeline, f dataFile, extents chan<- extentRead) (err error) {
	file, err := os.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	from := &openFile{File: file}
	from.users.Store(1)
	defer func() { err = errors.Join(err, from.release()) }()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	entry := &repo.File{Path: f.name, Mode: uint32(info.Mode().Perm()), Size: info.Size(), ModTime: info.ModTime().UTC().Truncate(time.Second)}
	p.begin(entry)
	same := r.same.of(entry)
	for i := range entry.Extents {
		if old, ok := same.extent(i); ok && p.take(&entry.Extents[i], old, extentLength(entry, i)) {
			continue
		}
		from.users.Add(1)
		select {
		case extents <- extentRead{entry, i, from}:
		case <-p.ctx.Done():
			return errors.Join(context.Cause(p.ctx), from.release())
		}
	}
	p.show()
	return nil
}

// extentLength is how many bytes an extent of a file has.
func extentLength(f *repo.File, number int) int {
	return int(min(repo.ExtentSize, f.Size-int64(number)*repo.ExtentSize))
}

// extent reads one extent. A file that was cut off meanwhile has zeros there, as in a base backup of the server (sendFile of
// src/backend/backup/basebackup.c): recovery cuts it off again.
func (r *directoryFiles) extent(p *pipeline, e extentRead) (err error) {
	defer func() { err = errors.Join(err, e.from.release()) }()
	length := extentLength(e.file, e.number)
	if err := r.rate.pass(p.ctx, length); err != nil {
		return err
	}
	plain, err := take(p.ctx, p.memory.plains, repo.ExtentSize)
	if err != nil {
		return err
	}
	plain = plain[:length]
	n, err := e.from.ReadAt(plain, int64(e.number)*repo.ExtentSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %s: %w", e.file.Path, err)
	}
	clear(plain[n:])
	r.bytes.Add(int64(n))
	return p.send(e.file, e.number, plain)
}

func (r *directoryFiles) again(_ context.Context, f pageFailure) (page []byte, err error) {
	file, err := os.Open(r.dir.place(f.path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	page = make([]byte, pg.PageSize)
	n, err := file.ReadAt(page, int64(f.page)*pg.PageSize)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return page[:n], err
}
