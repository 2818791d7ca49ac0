package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"pitr/internal/repo"
)

// originSuffix ends the names of copies of the origin's configuration: Postgres does not read them.
const originSuffix = ".origin"

// configurationNames are those of files that a restore puts beside the data. A manifest cannot name others.
var configurationNames = []string{"postgresql.conf", "pg_hba.conf", "pg_ident.conf"}

// Outside is a file of the origin's configuration that lay outside of its data directory.
type Outside struct {
	Path string `json:"path"`           // on the origin
	Copy string `json:"copy,omitempty"` // in the restored directory; empty: the backup does not have it
}

func (plan *Plan) describeOutside() {
	if plan.manifest.Origin == nil {
		return
	}
	for _, f := range plan.manifest.Origin.Files {
		outside := Outside{Path: f.Path}
		if isKept(f) {
			outside.Copy = f.Name + originSuffix
		}
		plan.Outside = append(plan.Outside, outside)
	}
}

func isKept(f repo.OriginFile) bool {
	return f.Unread == "" && slices.Contains(configurationNames, f.Name)
}

// writeOriginFiles puts the origin's configuration beside the one that is in effect: paths, ports and libraries of another machine need to be looked at.
func writeOriginFiles(dir string, origin *repo.Origin) error {
	if origin == nil {
		return nil
	}
	for _, f := range origin.Files {
		if !isKept(f) {
			continue
		}
		if err := writeDurable(filepath.Join(dir, f.Name+originSuffix), f.Content); err != nil {
			return err
		}
	}
	return nil
}

// Machine is what of the machine that a restored server runs on may differ from its origin's.
type Machine struct {
	Libc      string // version of the C library; empty: not known
	Libraries string // directory of the installation's libraries; empty: not known
}

// Reordered is a collation that may order otherwise here than on the origin: what indexes say about it is then wrong.
type Reordered struct {
	Database  string   `json:"database"`
	Collation string   `json:"collation,omitempty"` // empty: that of the database
	Locale    string   `json:"locale"`
	Origin    string   `json:"origin_version"`
	Here      string   `json:"here_version"`
	Indexes   []string `json:"indexes"`
}

// reorderedShown is how many indexes are named to a person; the JSON has all.
const reorderedShown = 10

func (r Reordered) String() string {
	name := "the default"
	if r.Collation != "" {
		name = r.Collation
	}
	shown, more := r.Indexes[:min(len(r.Indexes), reorderedShown)], ""
	if n := len(r.Indexes) - len(shown); n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("%s (%s) in database %s is of version %s here, and was of %s: REINDEX before it is used: %s%s", name, r.Locale, r.Database, r.Here, r.Origin,
		strings.Join(shown, ", "), more)
}

// libcProvider is COLLPROVIDER_LIBC of src/include/catalog/pg_collation.h.
const libcProvider = "c"

// Compare holds what the backup says of its origin against a machine; with start, the restored server is about to be started there. It comes after
// Describe. Versions of ICU are not compared: only a server that runs can tell its own.
func (plan *Plan) Compare(m Machine, start bool) {
	if plan.manifest == nil || plan.manifest.Origin == nil {
		return
	}
	origin := plan.manifest.Origin
	for _, d := range origin.Databases {
		for _, c := range append([]repo.Collation{d.Collation}, d.Collations...) {
			if c.Provider == libcProvider && c.Actual != "" && m.Libc != "" && c.Actual != m.Libc && len(c.Indexes) > 0 {
				plan.Reordered = append(plan.Reordered, Reordered{d.Name, c.Name, c.Locale, c.Actual, m.Libc, c.Indexes})
			}
		}
	}
	outside := slices.ContainsFunc(origin.Files, func(f repo.OriginFile) bool { return f.Name == configurationNames[0] })
	if !start || m.Libraries == "" || outside { // a configuration that is not in effect loads nothing
		return
	}
	for _, name := range origin.Preload.Shared {
		if file := libraryFile(name, m.Libraries); file != "" {
			if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
				plan.Warnings = append(plan.Warnings, fmt.Sprintf("shared_preload_libraries names %q, and there is no %s: the server will not start without it", name, file))
			}
		}
	}
}

// librarySuffix is DLSUFFIX of src/template/linux.
const librarySuffix = ".so"

// libraryFile is the file that a library's name stands for: load_libraries of src/backend/utils/init/miscinit.c and expand_dynamic_library_name of
// src/backend/utils/fmgr/dfmgr.c. Names with other directories than $libdir are looked up elsewhere; "" then.
func libraryFile(name, libdir string) string {
	name = strings.TrimPrefix(name, "$libdir/")
	switch {
	case filepath.IsAbs(name):
	case strings.Contains(name, "/"):
		return ""
	default:
		name = filepath.Join(libdir, name)
	}
	if filepath.Ext(name) == "" {
		name += librarySuffix
	}
	return name
}
