// Package file keeps objects as files below a directory: for one machine, for a network file system, and for tests. A put is a
// temporary file that is synced and then linked or renamed into place; directories are synced too.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"pitr/internal/store"
)

// tmpPrefix begins the names of files that are not objects yet. Leftovers of a killed writer are swept by Open after a day.
const (
	tmpPrefix = ".pitr-tmp-"
	tmpAgeMax = 24 * time.Hour
)

// Store is a store.Store below one directory.
type Store struct {
	root string
}

var _ store.Store = (*Store)(nil)

// Open uses the existing directory root. It does not create it: a directory that is missing is more often a volume that is not
// mounted than a wish for a new one.
func Open(root string) (*Store, error) {
	info, err := os.Stat(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open store file://%s: the directory does not exist; create it, or mount its volume: %w", root, store.ErrPermanent)
	}
	if err != nil {
		return nil, fmt.Errorf("open store file://%s: %w", root, err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("open store file://%s: not a directory: %w", root, store.ErrPermanent)
	}
	return &Store{root: root}, nil
}

func (s *Store) path(key string) (string, error) {
	if err := store.CheckKey(key); err != nil {
		return "", fmt.Errorf("key %q: %w", key, err)
	}
	return filepath.Join(s.root, filepath.FromSlash(key)), nil
}

// checkRoot tells a store whose volume has gone from a store without objects.
func (s *Store) checkRoot() error {
	if _, err := os.Stat(s.root); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return denied(err)
		}
		return fmt.Errorf("store directory is not there any more: %w", errors.New(err.Error()))
	}
	return nil
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, content []byte, opt store.PutOptions) (err error) {
	path, err := s.path(key)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if opt.IfAbsent {
		if _, err := os.Lstat(path); err == nil {
			return store.ErrExist // spares the write; the link below decides races
		}
	}
	if err := s.checkRoot(); err != nil {
		return err
	}
	if err := mkdirDurable(s.root, filepath.Dir(path)); err != nil {
		return err
	}
	tmp, err := writeTemporary(filepath.Dir(path), content)
	if err != nil {
		return err
	}
	defer func() {
		if rmErr := os.Remove(tmp); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
	}()
	if err := ctx.Err(); err != nil {
		return err
	}
	if opt.IfAbsent {
		err = os.Link(tmp, path)
	} else {
		err = os.Rename(tmp, path)
	}
	if errors.Is(err, fs.ErrExist) {
		return store.ErrExist
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// writeTemporary leaves a synced file with content in dir and returns its name; on error it leaves nothing.
func writeTemporary(dir string, content []byte) (name string, err error) {
	f, err := os.CreateTemp(dir, tmpPrefix)
	if err != nil {
		return "", err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(0o640)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// mkdirDurable makes dir and its parents below root, and syncs the directory above each that it made.
func mkdirDurable(root, dir string) error {
	if _, err := os.Stat(dir); err == nil || dir == root {
		return err
	}
	parent := filepath.Dir(dir)
	if err := mkdirDurable(root, parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	path, err := s.path(key)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := s.checkRoot(); err != nil {
			return nil, err
		}
		return nil, store.ErrNotExist
	}
	if err != nil {
		return nil, denied(err)
	}
	body, err := section(f, offset, length)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return body, nil
}

// denied marks a missing right: asking again does not give it.
func denied(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %w", err, store.ErrPermanent)
	}
	return err
}

type fileSection struct {
	io.Reader
	io.Closer
}

func section(f *os.File, offset, length int64) (io.ReadCloser, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, store.ErrNotExist
	}
	rest := info.Size() - offset
	if offset < 0 || rest < 0 || rest == 0 && offset > 0 {
		return nil, store.ErrRange
	}
	if length >= 0 && length < rest {
		rest = length
	}
	return fileSection{io.NewSectionReader(f, offset, rest), f}, nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix, after string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		if err := s.checkRoot(); err != nil {
			yield(store.Object{}, err)
			return
		}
		w := walk{ctx: ctx, root: s.root, prefix: prefix, after: after, yield: yield}
		if err := w.dir(""); err != nil && !errors.Is(err, errStop) {
			yield(store.Object{}, err)
		}
	}
}

var errStop = errors.New("the caller has seen enough")

type walk struct {
	ctx           context.Context
	root          string
	prefix, after string
	yield         func(store.Object, error) bool
}

// dir yields what lies below the directory whose keys begin with base. Directories sort as if their name ended in a slash, which
// makes the order that of the keys' bytes.
func (w *walk) dir(base string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(w.root, filepath.FromSlash(base)))
	if errors.Is(err, fs.ErrNotExist) && base != "" {
		return nil // removed while we walked
	}
	if err != nil {
		return denied(err)
	}
	sort.Slice(entries, func(i, j int) bool { return sortName(entries[i]) < sortName(entries[j]) })
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), tmpPrefix) {
			w.sweep(base, entry)
			continue
		}
		if err := w.entry(base, entry); err != nil {
			return err
		}
	}
	return nil
}

func sortName(entry fs.DirEntry) string {
	if entry.IsDir() {
		return entry.Name() + "/"
	}
	return entry.Name()
}

func (w *walk) entry(base string, entry fs.DirEntry) error {
	key := base + sortName(entry)
	if entry.IsDir() {
		related := strings.HasPrefix(key, w.prefix) || strings.HasPrefix(w.prefix, key)
		passed := key <= w.after && !strings.HasPrefix(w.after, key)
		if !related || passed {
			return nil
		}
		return w.dir(key)
	}
	if !strings.HasPrefix(key, w.prefix) || key <= w.after {
		return nil
	}
	info, err := entry.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !w.yield(store.Object{Key: key, Size: info.Size(), Modified: info.ModTime()}, nil) {
		return errStop
	}
	return nil
}

// sweep removes the leftover of a writer that was killed long ago. That it fails harms nobody: the next listing tries again.
func (w *walk) sweep(base string, entry fs.DirEntry) {
	info, err := entry.Info()
	if err == nil && time.Since(info.ModTime()) > tmpAgeMax {
		_ = os.Remove(filepath.Join(w.root, filepath.FromSlash(base), entry.Name()))
	}
}

// Delete implements store.Store. Directories that become empty stay: removing them would race with a put.
func (s *Store) Delete(ctx context.Context, key string) error {
	path, err := s.path(key)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.checkRoot(); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := syncDir(filepath.Dir(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
