package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"pitr/internal/repo"
)

// ErrTablespaceInUse says that recovery would write into a directory that holds files of somebody else.
var ErrTablespaceInUse = errors.New("recovery would write into the place of a tablespace that holds files already")

// setTablespaces finds the tablespaces that were made behind the backup's start and up to the stop. Recovery makes them where they were, and writes, truncates and
// removes files there: on the machine of the origin, the origin's own.
func (plan *Plan) setTablespaces(s *scan) {
	known := map[string]bool{"0": true, strconv.Itoa(defaultTablespace): true, strconv.Itoa(globalTablespace): true}
	inBackup := map[string]bool{}
	for _, t := range plan.Backup.Tablespaces {
		inBackup[t.OID] = true
	}
	for _, made := range s.tablespaces {
		included := made.At >= plan.Backup.Start && made.At <= plan.StopLSN
		oid := strconv.FormatUint(uint64(made.OID), 10)
		// One of the backup that was made behind its start is made again, too: recovery replaces the restore's own link to it.
		if included && !known[oid] && made.Path != "" {
			plan.Tablespaces = append(plan.Tablespaces, repo.Tablespace{OID: oid, Path: made.Path})
		}
		known[oid] = true
	}
	for oid := range inBackup {
		known[oid] = true
	}
	// An index of an older program does not tell of tablespaces, but of the files that change in them.
	for _, oid := range s.touchedTablespaces {
		if !known[oid] {
			plan.Tablespaces = append(plan.Tablespaces, repo.Tablespace{OID: oid})
			known[oid] = true
		}
	}
}

// globalTablespace is GLOBALTABLESPACE_OID of src/include/catalog/pg_tablespace.dat.
const globalTablespace = 1664

// tablespacesOf adds the tablespaces of the files that a segment has changed, of which the index does not tell where they are.
func tablespacesOf(index repo.Index, list []string) []string {
	if index.TellsTablespaces() {
		return list
	}
	for _, fork := range index.Extents {
		oid, _, _ := strings.Cut(fork.Relation, "/")
		if !slices.Contains(list, oid) {
			list = append(list, oid)
		}
	}
	return list
}

// prepareTablespaces makes sure that recovery can make the tablespaces of a plan, and that nobody's files lie where it will.
func prepareTablespaces(plan *Plan, own func(string) error) error {
	for _, t := range plan.Tablespaces {
		if t.Path == "" {
			return fmt.Errorf("%w: tablespace %s was made behind the backup, by a program that did not note where; restore from a later backup, or on a machine that does not have the origin's tablespaces, with its directory made", ErrTablespaceInUse, t.OID)
		}
		entries, err := os.ReadDir(t.Path)
		if errors.Is(err, fs.ErrNotExist) {
			if err = os.MkdirAll(t.Path, 0o700); err == nil {
				err = own(t.Path)
			}
		}
		if err != nil {
			return fmt.Errorf("tablespace %s, which recovery makes at %s: %w", t.OID, t.Path, err)
		}
		if len(entries) > 0 {
			return fmt.Errorf("%w: tablespace %s was made behind the backup at %s, and recovery makes it there again; that directory holds %s, perhaps of the origin. "+
				"Restore to an instant behind a later backup, on another machine, or once the directory was moved away", ErrTablespaceInUse, t.OID, t.Path, entries[0].Name())
		}
	}
	return nil
}
