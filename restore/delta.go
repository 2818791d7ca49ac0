package restore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// ErrNoCluster says that a directory whose files are to be used holds no cluster.
var ErrNoCluster = errors.New("the directory holds something that is no cluster")

// CheckDelta refuses a directory whose files a restore must not use and replace: a server's that is running, and anything that is neither a
// cluster nor what CheckDirectory allows.
func CheckDelta(dir string) error {
	if !isCluster(dir) && !Unfinished(dir) {
		if err := CheckDirectory(dir); errors.Is(err, ErrNotEmpty) {
			return fmt.Errorf("restore into %s: %w", dir, ErrNoCluster)
		} else if err != nil {
			return err
		}
		return nil
	}
	return checkUnused(dir)
}

// isCluster reports whether a directory holds a cluster. The directory of a database has a PG_VERSION as well.
func isCluster(dir string) bool {
	info, err := os.Stat(filepath.Join(dir, filepath.Dir(controlFile)))
	return err == nil && info.IsDir() && fileExists(filepath.Join(dir, "PG_VERSION"))
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// ErrOtherCluster says that a directory whose files are to be used is another cluster's.
var ErrOtherCluster = errors.New("the directory holds another cluster")

// checkSameCluster refuses to make another cluster of the one that is in a directory. Its pg_control begins with the system identifier, in the
// byte order of the machine: ControlFileData of src/include/catalog/pg_control.h. One that is gone or cut off says nothing.
func checkSameCluster(dir string, want pg.SystemID) error {
	content, err := os.ReadFile(filepath.Join(dir, controlFile))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(content) < 8 {
		return nil
	}
	if err != nil {
		return err
	}
	if found := pg.SystemID(binary.NativeEndian.Uint64(content)); found != want {
		return fmt.Errorf("%w: its system identifier is %d, that of the backup %d; restore into another directory", ErrOtherCluster, found, want)
	}
	return nil
}

// Differs reports whether a directory holds something that a delta restore would replace.
func Differs(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && len(entries) > 0 && !Unfinished(dir)
}

// reuse makes of an old directory what the manifest says, but for the extents that differ: what is not in the backup goes, and what is right
// stays. It returns which extents of which file are right.
func reuse(ctx context.Context, l *layout, m *repo.Manifest, sparse func(string) bool, parallel int) (map[int][]bool, error) {
	if err := prune(l, m); err != nil {
		return nil, fmt.Errorf("remove what is not in the backup: %w", err)
	}
	right := make([][]bool, len(m.Entries))
	next := make(chan int)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var workers sync.WaitGroup
	for range parallel {
		workers.Go(func() {
			buf := make([]byte, repo.ExtentSize)
			for i := range next {
				var err error
				if right[i], err = compareFile(ctx, filepath.Join(l.dir, filepath.FromSlash(m.Entries[i].Path)), &m.Entries[i], buf); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i, f := range m.Entries {
		if sparse != nil && sparse(f.Path) {
			if err := removeIfThere(filepath.Join(l.dir, filepath.FromSlash(f.Path))); err != nil {
				cancel(err)
			}
			continue
		}
		// pg_control was removed, and is written under another name until all is done.
		if f.Type == repo.TypeFile && !skipped[f.Path] && f.Path != controlFile {
			next <- i
		}
	}
	close(next)
	workers.Wait()
	found := map[int][]bool{}
	for i, r := range right {
		if r != nil {
			found[i] = r
		}
	}
	return found, context.Cause(ctx)
}

// compareFile tells which extents of a file are what the backup says. A file that is not there has none; one that is too long is cut.
func compareFile(ctx context.Context, path string, f *repo.File, buf []byte) (_ []bool, err error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	right := make([]bool, len(f.Extents))
	for n, extent := range f.Extents {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		offset := int64(n) * repo.ExtentSize
		length := min(repo.ExtentSize, f.Size-offset)
		if offset+length > info.Size() {
			break
		}
		if _, err := file.ReadAt(buf[:length], offset); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		right[n] = repo.DigestOf(buf[:length]) == extent.Hash
	}
	return right, nil
}

// prune removes what the backup has not, and whatever is of another kind there. It follows no links but those that belong to a cluster: pg_wal, and
// those of the tablespaces.
func prune(l *layout, m *repo.Manifest) error {
	kinds := map[string]repo.FileType{}
	for _, f := range m.Entries {
		if skipped[f.Path] || f.Path == controlFile {
			continue
		}
		kinds[f.Path] = f.Type
		for parent := parentOf(f.Path); parent != ""; parent = parentOf(parent) {
			kinds[parent] = repo.TypeDir
		}
	}
	for oid := range l.tablespaces {
		kinds["pg_tblspc"], kinds["pg_tblspc/"+oid] = repo.TypeDir, repo.TypeDir
	}
	return pruneDir(l, l.dir, "", kinds)
}

func parentOf(path string) string {
	at := strings.LastIndexByte(path, '/')
	return path[:max(0, at)]
}

func pruneDir(l *layout, dir, below string, kinds map[string]repo.FileType) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name, path := below+entry.Name(), filepath.Join(dir, entry.Name())
		if name == unfinishedMark {
			continue
		}
		kind, wanted := kinds[name]
		isDir := entry.IsDir()
		if oid, below := strings.CutPrefix(name, "pg_tblspc/"); below && isDir && l.tablespaces[oid] != "" {
			wanted = false // a copy that has followed the link: the link takes its place
		}
		if entry.Type()&fs.ModeSymlink != 0 {
			target := ""
			if wanted && kind == repo.TypeDir {
				target = followed(l, name, path)
			}
			if target != "" {
				path, isDir = target, true
			} else if err := os.Remove(path); err != nil {
				return err
			} else {
				continue
			}
		}
		switch {
		case !wanted, isDir != (kind == repo.TypeDir), !isDir && !entry.Type().IsRegular():
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		case isDir:
			if err := pruneDir(l, path, name+"/", kinds); err != nil {
				return err
			}
		}
	}
	return nil
}

// followed is the directory that a link of a cluster leads to; empty when the link is not to be followed.
func followed(l *layout, name, path string) string {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return ""
	}
	if oid, found := strings.CutPrefix(name, "pg_tblspc/"); found {
		if l.tablespaces[oid] != target {
			return ""
		}
		return target
	}
	if name == "pg_wal" {
		return target
	}
	return ""
}
