package archiver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"pitr/archiver/replication"
	"pitr/internal/repo"
)

const (
	// originFileMax bounds what is kept of a file of the configuration.
	originFileMax = 1 << 20
	// originListMax bounds each list of a database, and of a collation's indexes.
	originListMax = 1000
	// originDatabasesMax bounds the databases that are connected to; of the others it is noted that they were not.
	originDatabasesMax = 1000
)

// originReader finds out what a backup tells of its server. What cannot be found out is noted there, and does not stop the backup.
type originReader struct {
	opt    BackupOptions
	major  int
	origin *repo.Origin
}

func readOrigin(ctx context.Context, opt BackupOptions, major int) (origin *repo.Origin, err error) {
	o := &originReader{opt: opt, major: major, origin: &repo.Origin{}}
	conn, err := opt.connect(ctx, "", false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	settings, err := originSettings(ctx, conn)
	if err != nil {
		return nil, err
	}
	o.origin.Preload = repo.Preload{Shared: libraries(settings["shared_preload_libraries"]), Session: libraries(settings["session_preload_libraries"]),
		Local: libraries(settings["local_preload_libraries"])}
	o.readFiles(ctx, conn, settings)
	if o.origin.Libc, err = o.libc(ctx, conn); err != nil {
		return nil, err
	}
	allowed, err := o.readDatabases(ctx, conn)
	if err != nil {
		return nil, err
	}
	for i := range o.origin.Databases {
		d := &o.origin.Databases[i]
		err := errNoConnections
		switch {
		case i >= originDatabasesMax:
			err = errTooMany
		case allowed[d.OID]:
			err = o.readDatabase(ctx, d)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			d.Unread = err.Error()
			if allowed[d.OID] {
				opt.Log.Warn("what a database has could not be recorded with the backup", "database", d.Name, "error", err)
			}
		}
	}
	return o.origin, nil
}

var (
	errNoConnections = errors.New("it is a template, or allows no connections")
	errTooMany       = fmt.Errorf("there are more than %d databases", originDatabasesMax)
)

// originSettings are those that a member of pg_read_all_settings may see.
func originSettings(ctx context.Context, conn *replication.Conn) (map[string]string, error) {
	rows, err := conn.Query(ctx, `SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ('shared_preload_libraries', 'session_preload_libraries',
 'local_preload_libraries', 'config_file', 'hba_file', 'ident_file', 'data_directory')`)
	if err != nil {
		return nil, err
	}
	settings := map[string]string{}
	for _, row := range rows {
		settings[row[0]] = row[1]
	}
	return settings, nil
}

// libraries splits a list of names: SplitDirectoriesString of src/backend/utils/adt/varlena.c, which removes quotation marks.
func libraries(setting string) (names []string) {
	for name := range strings.SplitSeq(setting, ",") {
		if name = strings.Trim(strings.TrimSpace(name), `"`); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// configFiles are the settings that name files, and what these are called in a data directory.
var configFiles = [][2]string{{"config_file", "postgresql.conf"}, {"hba_file", "pg_hba.conf"}, {"ident_file", "pg_ident.conf"}}

// readFiles keeps the files of the configuration that lie outside of the data directory: those inside are files of the backup.
func (o *originReader) readFiles(ctx context.Context, conn *replication.Conn, settings map[string]string) {
	for _, file := range configFiles {
		path := settings[file[0]]
		if inside, err := filepath.Rel(settings["data_directory"], path); path == "" || err == nil && filepath.IsLocal(inside) {
			continue
		}
		f := repo.OriginFile{Name: file[1], Path: path}
		content, err := readServerFile(ctx, conn, path)
		if f.Content = content; err != nil {
			f.Unread = err.Error()
			o.opt.Log.Warn("a file of the configuration lies outside of the data directory, and could not be recorded with the backup", "file", path, "error", err)
		}
		o.origin.Files = append(o.origin.Files, f)
	}
}

func readServerFile(ctx context.Context, conn *replication.Conn, path string) (string, error) {
	rows, err := conn.Query(ctx, fmt.Sprintf("SELECT pg_catalog.pg_read_file(%s, 0, %d)", literal(path), originFileMax+1))
	switch {
	case err != nil:
		return "", err
	case len(rows) != 1:
		return "", errors.New("the server does not tell it")
	case len(rows[0][0]) > originFileMax:
		return "", fmt.Errorf("it has more than %d bytes", originFileMax)
	}
	return rows[0][0], nil
}

// literal quotes a text, whatever standard_conforming_strings says: quote_literal of src/backend/utils/adt/quote.c.
func literal(text string) string {
	quoted := "'" + strings.ReplaceAll(text, "'", "''") + "'"
	if strings.Contains(text, `\`) {
		quoted = "E" + strings.ReplaceAll(quoted, `\`, `\\`)
	}
	return quoted
}

// libc asks some collation of the C library for its version, which is the library's: get_collation_actual_version of
// src/backend/utils/adt/pg_locale.c. C and POSIX have none.
func (o *originReader) libc(ctx context.Context, conn *replication.Conn) (string, error) {
	rows, err := conn.Query(ctx, `SELECT coalesce(max(pg_catalog.pg_collation_actual_version(oid)), '') FROM
 (SELECT oid FROM pg_catalog.pg_collation WHERE collprovider = 'c' AND collcollate !~* '^(c|posix)($|\.)' ORDER BY oid LIMIT 1) AS found`)
	if err != nil || len(rows) != 1 {
		return "", err
	}
	return rows[0][0], nil
}

// databaseColumns are provider, locale, recorded and actual version of a database's collation. Before version 15 only the C library has them, and
// nothing is recorded.
func (o *originReader) databaseColumns() string {
	switch {
	case o.major >= 17:
		return "datlocprovider, coalesce(datlocale, datcollate), datcollversion, pg_catalog.pg_database_collation_actual_version(oid)"
	case o.major >= 15:
		return "datlocprovider, coalesce(daticulocale, datcollate), datcollversion, pg_catalog.pg_database_collation_actual_version(oid)"
	}
	return fmt.Sprintf(`'c', datcollate, '', CASE WHEN datcollate !~* '^(c|posix)($|\.)' THEN %s END`, literal(o.origin.Libc))
}

// readDatabases lists the databases and returns which of them are connected to. CREATE DATABASE would wait for us to leave its template.
func (o *originReader) readDatabases(ctx context.Context, conn *replication.Conn) (map[uint32]bool, error) {
	rows, err := conn.Query(ctx, `SELECT oid, datname, datallowconn AND NOT datistemplate, CASE WHEN pg_catalog.has_database_privilege(oid, 'CONNECT') OR pg_catalog.pg_has_role('pg_read_all_stats', 'MEMBER')
 THEN pg_catalog.pg_database_size(oid) ELSE -1 END, pg_catalog.pg_encoding_to_char(encoding), datcollate, datctype, `+o.databaseColumns()+` FROM pg_catalog.pg_database ORDER BY oid`)
	if err != nil {
		return nil, err
	}
	allowed := map[uint32]bool{}
	for _, row := range rows {
		oid, err := strconv.ParseUint(row[0], 10, 32)
		if err != nil {
			return nil, err
		}
		size, err := strconv.ParseInt(row[3], 10, 64)
		if err != nil {
			size = -1 // dropped while it was looked at
		}
		allowed[uint32(oid)] = row[2] == "t"
		o.origin.Databases = append(o.origin.Databases, repo.OriginDatabase{OID: uint32(oid), Name: row[1], Size: size, Encoding: row[4], Collate: row[5], CType: row[6],
			Collation: repo.Collation{Provider: row[7], Locale: row[8], Version: row[9], Actual: row[10]}})
	}
	return allowed, nil
}

// readDatabase connects to a database and asks what it has.
func (o *originReader) readDatabase(ctx context.Context, d *repo.OriginDatabase) (err error) {
	conn, err := o.opt.connect(ctx, d.Name, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	rows, err := o.list(ctx, conn, "extensions", "SELECT extname, extversion FROM pg_catalog.pg_extension ORDER BY 1")
	if err != nil {
		return err
	}
	for _, row := range rows {
		d.Extensions = append(d.Extensions, repo.OriginExtension{Name: row[0], Version: row[1]})
	}
	rows, err = o.list(ctx, conn, "unlogged", `SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relpersistence = 'u' AND c.relkind = 'r' ORDER BY 1`)
	if err != nil {
		return err
	}
	for _, row := range rows {
		d.Unlogged = append(d.Unlogged, row[0])
	}
	return o.readCollations(ctx, conn, d)
}

// indexedCollations are the pairs of a collation and an index that uses it. Locales of pg_collation are called colliculocale in 15 and 16, colllocale
// since 17, and are collcollate before.
const indexedCollations = `SELECT l.collprovider, ln.nspname || '.' || l.collname, %s, l.collversion, pg_catalog.pg_collation_actual_version(l.oid), x.nspname || '.' || x.relname
 FROM (SELECT DISTINCT pg_catalog.unnest(i.indcollation::oid[]) AS coll, c.relname, n.nspname FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relpersistence <> 't' AND c.oid >= 16384) AS x
 JOIN pg_catalog.pg_collation l ON l.oid = x.coll JOIN pg_catalog.pg_namespace ln ON ln.oid = l.collnamespace
 WHERE l.collprovider = 'd' OR pg_catalog.pg_collation_actual_version(l.oid) IS NOT NULL ORDER BY 2, 6`

// collationPairsMax bounds the pairs that are looked at.
const collationPairsMax = 100_000

func (o *originReader) readCollations(ctx context.Context, conn *replication.Conn, d *repo.OriginDatabase) error {
	locale := "l.collcollate"
	switch {
	case o.major >= 17:
		locale = "coalesce(l.colllocale, l.collcollate)"
	case o.major >= 15:
		locale = "coalesce(l.colliculocale, l.collcollate)"
	}
	rows, err := conn.Query(ctx, fmt.Sprintf(indexedCollations, locale)+fmt.Sprintf(" LIMIT %d", collationPairsMax+1))
	if err != nil {
		return err
	}
	if len(rows) > collationPairsMax {
		o.limit("indexes")
	}
	for _, row := range rows {
		c := &d.Collation
		if row[0] != "d" {
			c = o.collation(d, repo.Collation{Provider: row[0], Name: row[1], Locale: row[2], Version: row[3], Actual: row[4]})
		}
		switch {
		case c == nil || c.Actual == "": // too many; or the order never changes
		case len(c.Indexes) >= originListMax:
			o.limit("indexes")
		default:
			c.Indexes = append(c.Indexes, row[5])
		}
	}
	return nil
}

// collation finds or adds a collation of a database; nil when there are too many. They come in the order of their names.
func (o *originReader) collation(d *repo.OriginDatabase, c repo.Collation) *repo.Collation {
	n := len(d.Collations)
	if n == 0 || d.Collations[n-1].Name != c.Name {
		if n >= originListMax {
			o.limit("collations")
			return nil
		}
		d.Collations = append(d.Collations, c)
		n++
	}
	return &d.Collations[n-1]
}

// list asks for the rows of a list that is bounded.
func (o *originReader) list(ctx context.Context, conn *replication.Conn, name, sql string) ([][]string, error) {
	rows, err := conn.Query(ctx, fmt.Sprintf("%s LIMIT %d", sql, originListMax+1))
	if len(rows) > originListMax {
		o.limit(name)
		rows = rows[:originListMax]
	}
	return rows, err
}

func (o *originReader) limit(name string) {
	if !slices.Contains(o.origin.Limits, name) {
		o.origin.Limits = append(o.origin.Limits, name)
	}
}
