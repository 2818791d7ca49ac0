package archiver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"pitr/internal/repo"
)

// ErrTablespaceLeftOut says that a backup lacks a tablespace. PostgreSQL before 16 does not send tablespaces that lie in the data directory itself
// (allow_in_place_tablespaces), and does not say so.
var ErrTablespaceLeftOut = errors.New("the server has not sent it, as versions before 16 do with tablespaces in place; backup.source: files reads them")

// serverTablespaces are the object ids of tablespaces that have a directory below pg_tblspc: those from FirstNormalObjectId of src/include/access/transam.h on.
func serverTablespaces(ctx context.Context, opt BackupOptions) (oids []string, err error) {
	conn, err := opt.connect(ctx, "", false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	rows, err := conn.Query(ctx, "SELECT oid FROM pg_catalog.pg_tablespace WHERE oid >= 16384 ORDER BY oid")
	for _, row := range rows {
		oids = append(oids, row[0])
	}
	return oids, err
}

// checkTablespaces makes sure that the tablespaces which were there when a backup began, and still are, came with it.
func checkTablespaces(ctx context.Context, opt BackupOptions, before []string, files []*repo.File) error {
	came := map[string]bool{}
	for _, f := range files {
		if rest, found := strings.CutPrefix(f.Path, tblspcDir+"/"); found {
			oid, _, _ := strings.Cut(rest, "/")
			came[oid] = true
		}
	}
	missing := slices.DeleteFunc(slices.Clone(before), func(oid string) bool { return came[oid] })
	if len(missing) == 0 {
		return nil
	}
	after, err := serverTablespaces(ctx, opt)
	if err != nil {
		return err
	}
	for _, oid := range missing {
		if slices.Contains(after, oid) { // otherwise it was dropped meanwhile
			return fmt.Errorf("tablespace %s: %w", oid, ErrTablespaceLeftOut)
		}
	}
	return nil
}
