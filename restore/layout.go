package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"pitr/internal/repo"
)

// layout is where the files of a restore go.
type layout struct {
	dir         string
	tablespaces map[string]string // directories by object id
	beside      bool              // some lie in tablespacesDir
	linked      map[string]bool   // those, by object id, to which the directory's own link leads already: what is in them is the cluster's
}

// newLayout decides where tablespaces go: where the caller wants them, by object id or by the path that they had; else, with keep, where the
// directory's own links lead; else beside the data directory.
func newLayout(dir string, m *repo.Manifest, wanted map[string]string, keep bool) (*layout, error) {
	l := &layout{dir: dir, tablespaces: map[string]string{}, linked: map[string]bool{}}
	used := map[string]bool{}
	for _, t := range m.Tablespaces {
		if t.OID == "" || strings.Trim(t.OID, "0123456789") != "" {
			return nil, fmt.Errorf("the manifest names a tablespace %q: %w", t.OID, repo.ErrDamaged)
		}
		target := ""
		for _, key := range []string{t.OID, t.Path} {
			if to, found := wanted[key]; found {
				used[key], target = true, to
			}
		}
		if linked := linkedTablespace(dir, t.OID); keep && linked != "" && (target == "" || resolvesTo(target, linked)) {
			target, l.linked[t.OID] = linked, true
		}
		if target == "" {
			target, l.beside = filepath.Join(tablespacesDir(dir), t.OID), true
		}
		l.tablespaces[t.OID] = target
	}
	for key := range wanted {
		if !used[key] {
			return nil, fmt.Errorf("the backup has no tablespace %q: %w; it has %s", key, ErrNoTablespace, tablespaceList(m))
		}
	}
	return l, nil
}

// ErrNoTablespace says that a tablespace was mapped that the backup has not.
var ErrNoTablespace = errors.New("no such tablespace")

func tablespaceList(m *repo.Manifest) string {
	var texts []string
	for _, t := range m.Tablespaces {
		texts = append(texts, t.OID+" ("+t.Path+")")
	}
	if len(texts) == 0 {
		return "none"
	}
	return strings.Join(texts, ", ")
}

// linkedTablespace is where a data directory's link to a tablespace leads; empty when there is none.
func linkedTablespace(dir, oid string) string {
	link := filepath.Join(dir, "pg_tblspc", oid)
	if _, err := os.Readlink(link); err != nil {
		return ""
	}
	target, err := filepath.EvalSymlinks(link)
	if err != nil {
		return ""
	}
	return target
}

func resolvesTo(path, want string) bool {
	real, err := filepath.EvalSymlinks(path)
	return err == nil && real == want
}

// roots are the trees that the restore fills.
func (l *layout) roots() []string {
	roots := []string{l.dir}
	if l.beside {
		roots = append(roots, tablespacesDir(l.dir))
	}
	for _, target := range l.tablespaces {
		if filepath.Dir(target) != tablespacesDir(l.dir) {
			roots = append(roots, target)
		}
	}
	return roots
}

// tablespaceMark begins the name of a file in a tablespace directory of the caller's choice while a restore fills it; the directory that the
// restore is for follows in it. It makes sure that what an interrupted restore has left there is recognised, and nobody else's is removed.
const tablespaceMark = "pitr_restore_unfinished_tablespace"

// check refuses tablespace directories of the caller's choice that hold something of others. With keep, those that the cluster itself has are
// used as they are; one that it is not linked to is somebody else's then too, also beside the data directory.
func (l *layout) check(keep bool) error {
	for oid, target := range l.tablespaces {
		if err := l.checkPlace(oid, target); err != nil {
			return err
		}
		if l.linked[oid] || !keep && filepath.Dir(target) == tablespacesDir(l.dir) {
			continue
		}
		entries, err := os.ReadDir(target)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("tablespace %s: %w", oid, err)
		}
		mark, err := os.ReadFile(filepath.Join(target, tablespaceMark))
		if len(entries) > 0 && (err != nil || string(mark) != l.dir) {
			return fmt.Errorf("tablespace %s: %s: %w", oid, target, ErrNotEmpty)
		}
	}
	return nil
}

// checkPlace refuses a directory in which a tablespace would be mixed with something else.
func (l *layout) checkPlace(oid, target string) error {
	if !filepath.IsAbs(target) {
		return fmt.Errorf("tablespace %s: %q is no absolute path", oid, target)
	}
	switch {
	case within(l.dir, target):
		return fmt.Errorf("tablespace %s: %s lies in the data directory", oid, target)
	case within(target, l.dir):
		return fmt.Errorf("tablespace %s: the data directory lies in %s", oid, target)
	}
	for other, place := range l.tablespaces {
		if other != oid && within(place, target) && !(l.linked[oid] && l.linked[other]) { // the cluster had it so
			return fmt.Errorf("tablespace %s: %s lies in the directory of tablespace %s", oid, target, other)
		}
	}
	return nil
}

// within reports whether a path is a directory or lies in it.
func within(dir, path string) bool {
	relative, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(relative)
}

// make makes the empty directory tree. What an unfinished attempt has left in tablespaces goes, unless what is there is to be used.
func (l *layout) make(m *repo.Manifest, own func(string) error, keep bool) error {
	for _, t := range m.Tablespaces {
		if err := l.makeTablespace(t.OID, own, keep); err != nil {
			return err
		}
	}
	for _, f := range m.Entries {
		if !filepath.IsLocal(f.Path) {
			return fmt.Errorf("the manifest names %q, which leaves the data directory: %w", f.Path, repo.ErrDamaged)
		}
		path := filepath.Join(l.dir, filepath.FromSlash(f.Path))
		parent := filepath.Dir(path)
		if f.Type == repo.TypeDir {
			parent = path
		}
		if err := os.MkdirAll(parent, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// makeTablespace makes the directory of a tablespace, and a link to it where Postgres looks for it.
func (l *layout) makeTablespace(oid string, own func(string) error, keep bool) error {
	target := l.tablespaces[oid]
	if filepath.Dir(target) != tablespacesDir(l.dir) && !l.linked[oid] {
		if err := os.MkdirAll(target, 0o700); err != nil {
			return err
		}
		entries, err := os.ReadDir(target) // check has made sure that they are ours; the directory itself may be a mount point
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if err := os.RemoveAll(filepath.Join(target, entry.Name())); err != nil {
				return err
			}
		}
		if err := writeDurable(filepath.Join(target, tablespaceMark), l.dir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	owned := target
	if l.beside {
		owned = filepath.Dir(target)
	}
	if err := own(owned); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(l.dir, "pg_tblspc"), 0o700); err != nil {
		return err
	}
	link := filepath.Join(l.dir, "pg_tblspc", oid)
	if there, err := os.Readlink(link); keep && err == nil {
		if there == target {
			return nil
		}
		if err := os.Remove(link); err != nil {
			return err
		}
	}
	return os.Symlink(target, link)
}

// finish removes the marks of tablespaces, once the directory can be started.
func (l *layout) finish() error {
	var errs []error
	for _, target := range l.tablespaces {
		errs = append(errs, removeIfThere(filepath.Join(target, tablespaceMark)))
	}
	return errors.Join(errs...)
}

// tablespacesDir is where the tablespaces of a data directory are restored to.
func tablespacesDir(dir string) string { return dir + ".tablespaces" }
