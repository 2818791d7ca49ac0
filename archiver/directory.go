package archiver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// ErrDirectory says that a directory is not the data directory of the server that a backup is taken of.
var ErrDirectory = errors.New("it is not the server's data directory")

// dataDirectory is a server's data directory as this process sees it.
type dataDirectory struct {
	root        string
	major       int
	control     pg.Control
	files       []dataFile // all but pg_control, which is read last
	dirs        []dataFile
	tablespaces []repo.Tablespace
}

// dataFile is a file or a directory of it.
type dataFile struct {
	name string // below the data directory; a tablespace's files are below pg_tblspc/<oid>/
	path string
}

// controlReads is how often pg_control is read: it is 8 kB that may be written at the same time.
const controlReads = 5

// openDirectory reads the control file of a directory.
func openDirectory(root string, system pg.SystemID, major int) (*dataDirectory, error) {
	d := &dataDirectory{root: root, major: major}
	if _, err := d.readControl(); err != nil {
		return nil, err
	}
	if d.control.SystemID != system {
		return nil, fmt.Errorf("%s: %w: its system identifier is %s, the server's %s", root, ErrDirectory, d.control.SystemID, system)
	}
	return d, nil
}

// readControl returns the bytes of pg_control, after their checksum was verified.
func (d *dataDirectory) readControl() (content []byte, err error) {
	for range controlReads {
		if content, err = os.ReadFile(d.place(controlFile)); err != nil {
			return nil, err
		}
		if d.control, err = pg.ParseControl(content); err == nil {
			return content, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", d.place(controlFile), err)
}

// begunAt makes sure that the server that has begun a backup has written into this directory: its checkpoint has put the start of the backup into pg_control.
// A copy of the cluster, or what another one has left here, has another, another state, or a postmaster on another port (running, see serves).
func (d *dataDirectory) begunAt(start pg.LSN, timeline pg.Timeline, standby bool, port string) error {
	if _, err := d.readControl(); err != nil {
		return err
	}
	state := uint32(pg.ControlInProduction)
	if standby {
		state = pg.ControlInRecovery
	}
	if d.control.State != state {
		return fmt.Errorf("%s: %w: its state is %d in pg_control, and that of the server %d (DBState)", d.root, ErrDirectory, d.control.State, state)
	}
	if err := d.serves(port); err != nil {
		return err
	}
	if d.control.Redo < start || d.control.Timeline != timeline {
		return fmt.Errorf("%s: %w: its last checkpoint is at %s on timeline %d, and the server has begun a backup at %s on timeline %d", d.root, ErrDirectory, d.control.Redo,
			d.control.Timeline, start, timeline)
	}
	return nil
}

// place is where a file of the directory lies: links lead into tablespaces.
func (d *dataDirectory) place(name string) string {
	return filepath.Join(d.root, filepath.FromSlash(name))
}

// serves makes sure that the postmaster of the directory listens on a port: line LOCK_FILE_LINE_PORT of src/include/miscadmin.h.
func (d *dataDirectory) serves(port string) error {
	text, err := os.ReadFile(d.place("postmaster.pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w: no postmaster has it", d.root, ErrDirectory)
	}
	if err != nil {
		return err
	}
	const portLine = 4
	lines := strings.Split(string(text), "\n")
	if len(lines) < portLine || strings.TrimSpace(lines[portLine-1]) != port {
		return fmt.Errorf("%s: %w: its postmaster has not port %s, on which the server is", d.root, ErrDirectory, port)
	}
	return nil
}

const (
	controlFile = "global/pg_control"
	tblspcDir   = "pg_tblspc"
)

// What a base backup leaves out: src/backend/backup/basebackup.c, excludeDirContents, excludeFiles and sendDir. The names hold wherever they occur.
var (
	emptiedDirs   = []string{"pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans"}
	leftOutFiles  = []string{"postgresql.auto.conf.tmp", "current_logfiles.tmp", "backup_label", "tablespace_map", "backup_manifest", "postmaster.pid", "postmaster.opts", ".DS_Store"}
	leftOutBegins = []string{"pg_internal.init", "pgsql_tmp"} // RELCACHE_INIT_FILENAME, PG_TEMP_FILE_PREFIX
)

// list finds what a base backup contains. What vanishes meanwhile is not there: the WAL says so.
func (d *dataDirectory) list() error {
	if err := d.listDir("", d.root); err != nil {
		return err
	}
	for _, dir := range d.walDirs() {
		d.dirs = append(d.dirs, dataFile{dir, d.place(dir)})
	}
	return nil
}

// walDirs are the directories below pg_wal that a server wants to find: sendDir of basebackup.c.
func (d *dataDirectory) walDirs() []string {
	dirs := []string{"pg_wal/archive_status"}
	if d.major >= 17 {
		dirs = append(dirs, "pg_wal/summaries")
	}
	return dirs
}

func (d *dataDirectory) listDir(name, place string) error {
	entries, err := os.ReadDir(place)
	if errors.Is(err, fs.ErrNotExist) && name != "" {
		return nil
	}
	if err != nil {
		return err
	}
	init := initForks(name, entries)
	for _, e := range entries {
		f := dataFile{path.Join(name, e.Name()), filepath.Join(place, e.Name())}
		switch {
		case leftOut(e.Name()) || f.name == controlFile:
		case name == tblspcDir && e.Type()&fs.ModeSymlink != 0:
			err = d.listTablespace(f)
		case f.name == "pg_wal" || (e.IsDir() || e.Type()&fs.ModeSymlink != 0) && slices.Contains(emptiedDirs, e.Name()):
			d.dirs = append(d.dirs, f)
		case e.IsDir():
			d.dirs = append(d.dirs, f)
			err = d.listDir(f.name, f.path)
		case e.Type().IsRegular() && !isTemporary(e.Name()) && !isUnlogged(f.name, init):
			d.files = append(d.files, f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// listTablespace lists what a link in pg_tblspc leads to: this version's directory of a tablespace (TABLESPACE_VERSION_DIRECTORY of
// src/include/common/relpath.h). Another version's server, before pg_upgrade, may have one beside it.
func (d *dataDirectory) listTablespace(link dataFile) error {
	target, err := os.Readlink(link.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	version := fmt.Sprintf("PG_%d_%d", d.major, d.control.Catalog)
	f := dataFile{path.Join(link.name, version), filepath.Join(link.path, version)}
	if _, err := os.Stat(f.path); err != nil {
		if _, gone := os.Lstat(link.path); errors.Is(gone, fs.ErrNotExist) {
			return nil // dropped meanwhile: its directory goes before the link
		}
		return fmt.Errorf("tablespace %s, which is to be at the same path here as for the server: %w", path.Base(link.name), err)
	}
	d.tablespaces = append(d.tablespaces, repo.Tablespace{OID: path.Base(link.name), Path: target})
	d.dirs = append(d.dirs, f)
	return d.listDir(f.name, f.path)
}

func leftOut(name string) bool {
	return slices.Contains(leftOutFiles, name) || slices.ContainsFunc(leftOutBegins, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// initForks are the relations of a directory that are unlogged, by the numbers of their files.
func initForks(dir string, entries []fs.DirEntry) map[uint32]bool {
	var found map[uint32]bool
	for _, e := range entries {
		if f, ok := parseRelationFile(path.Join(dir, e.Name())); ok && f.fork == wal.ForkInit {
			if found == nil {
				found = map[uint32]bool{}
			}
			found[f.relation.Number] = true
		}
	}
	return found
}

// isUnlogged reports whether a file is one of an unlogged relation that is empty after recovery.
func isUnlogged(name string, init map[uint32]bool) bool {
	f, ok := parseRelationFile(name)
	return ok && f.fork != wal.ForkInit && init[f.relation.Number]
}

// isTemporary recognises files of temporary relations, such as t3_16384_fsm.1: looks_like_temp_rel_name of src/backend/storage/file/fd.c.
func isTemporary(name string) bool {
	rest, begins := strings.CutPrefix(name, "t")
	backend, rest, divided := strings.Cut(rest, "_")
	if !begins || !divided || !isDigits(backend) {
		return false
	}
	rest, segment, segmented := strings.Cut(rest, ".")
	if segmented && !isDigits(segment) {
		return false
	}
	number, fork, forked := strings.Cut(rest, "_")
	if forked {
		if _, known := forkOf(fork); !known {
			return false
		}
	}
	return isDigits(number)
}

func isDigits(text string) bool {
	return text != "" && strings.Trim(text, "0123456789") == ""
}
