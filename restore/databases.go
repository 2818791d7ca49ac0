package restore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"pitr/internal/repo"
	"pitr/restore/journal"
)

// firstNormalObject is FirstNormalObjectId of src/include/access/transam.h: databases below it were made by initdb. Templates among them are
// needed to make others, and postgres to connect to.
const firstNormalObject = 16384

// wholeFiles are needed of every database, so that it can be dropped in order.
var wholeFiles = map[string]bool{"PG_VERSION": true, "pg_filenode.map": true}

// ErrNoDatabase says that the archive knows no database of a name.
var ErrNoDatabase = errors.New("the archive knows no such database")

// OtherDatabases finds the databases of a plan's backup that are not among those of the names, by object id, and what they are called there.
// Those that initdb has made are never among them.
func OtherDatabases(ctx context.Context, r *repo.Repo, plan *Plan, names []string) (map[uint32]string, error) {
	known, err := journal.Databases(ctx, r, plan.tip, plan.Backup.StopTime)
	if err != nil {
		return nil, fmt.Errorf("find the databases of backup %s: %w", plan.BackupID, err)
	}
	for _, name := range names {
		if !slices.Contains(slices.Collect(maps.Values(known)), name) {
			return nil, fmt.Errorf("%w: %q; it knows %s", ErrNoDatabase, name, strings.Join(slices.Sorted(maps.Values(known)), ", "))
		}
	}
	if plan.manifest == nil {
		if plan.manifest, err = r.ReadManifest(ctx, plan.BackupID); err != nil {
			return nil, err
		}
	}
	others := map[uint32]string{}
	for _, f := range plan.manifest.Entries {
		oid, _ := databaseOf(f.Path)
		// Without a name it is a template, or one that nobody may connect to: these stay whole.
		if name := known[oid]; oid >= firstNormalObject && name != "" && !slices.Contains(names, name) {
			others[oid] = name
		}
	}
	return others, nil
}

// databaseOf is the database that a file belongs to, and the file's own name; zero for what belongs to none.
func databaseOf(name string) (oid uint32, file string) {
	parts := strings.Split(name, "/")
	text := ""
	switch {
	case len(parts) >= 2 && parts[0] == "base":
		text = parts[1]
	case len(parts) >= 4 && parts[0] == "pg_tblspc":
		text = parts[3]
	}
	number, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0, ""
	}
	return uint32(number), path.Base(name)
}

// isSparse reports whether only the size of a file is restored. Recovery writes whole pages into it before it changes any, since each
// page's first change behind the backup's checkpoint is logged with the page.
func isSparse(name string, databases map[uint32]bool) bool {
	oid, file := databaseOf(name)
	return databases[oid] && !wholeFiles[file]
}
