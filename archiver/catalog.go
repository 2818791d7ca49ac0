package archiver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"strconv"
	"time"

	"pitr/archiver/replication"
	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// Waits around DDL: a migration mostly brings more than one statement, and a large cluster must not be asked all the time.
const (
	catalogPause   = time.Second
	catalogGapMin  = 5 * time.Second
	catalogGapLoad = 20 // the gap is at least so many times what the last reading took
	catalogTimeout = time.Minute
)

// pgClass is RelationRelationId of src/include/catalog/pg_class.h, its file too until somebody rewrites it with VACUUM FULL.
const pgClass = 1259

// cataloguer stores what relations are called: regularly and soon after DDL, so that a dropped table still has a name. Nothing is stored
// while nothing has changed. It keeps no connection.
type cataloguer struct {
	session *session
	wanted  chan struct{} // DDL was seen
	warned  bool
}

func newCataloguer(s *session) *cataloguer {
	return &cataloguer{session: s, wanted: make(chan struct{}, 1)}
}

// noteDDL looks at a transaction that has ended, from the goroutine that receives WAL. It never waits.
func (c *cataloguer) noteDDL(e *wal.Ended) {
	changed := len(e.Created)+len(e.Dropped)+len(e.Relations)+len(e.Databases) > 0
	if e.Database != 0 && !changed {
		for _, rows := range e.Rows {
			changed = changed || rows.Relation.Number == pgClass
		}
	}
	if !changed || !e.Committed {
		return
	}
	select {
	case c.wanted <- struct{}{}:
	default: // one wish that waits is enough
	}
}

// run stores catalogs until ctx ends.
func (c *cataloguer) run(ctx context.Context, tli pg.Timeline) {
	interval := c.session.opt.CatalogInterval
	if interval == 0 {
		return
	}
	for {
		began := time.Now()
		c.store(ctx, tli)
		gap := max(catalogGapMin, catalogGapLoad*time.Since(began))
		if !sleep(ctx, catalogPause) {
			return
		}
		timer := time.NewTimer(max(interval, gap))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
			continue
		case <-c.wanted:
			timer.Stop()
		}
		// The transaction is visible at once; others that belong to it may follow.
		if !sleep(ctx, max(catalogPause, time.Until(began.Add(gap)))) {
			return
		}
	}
}

// sleep reports whether ctx still goes on after a while.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// catalogSeed makes sums of catalogs, which never leave the process.
var catalogSeed = maphash.MakeSeed()

// store reads the catalog and stores it if it differs from the last one of this process.
func (c *cataloguer) store(ctx context.Context, tli pg.Timeline) {
	a, log := c.session.archiver, c.session.log
	reading, cancel := context.WithTimeout(ctx, catalogTimeout)
	defer cancel()
	catalog, err := c.read(reading)
	if catalog.Databases != nil {
		content, marshalErr := json.Marshal(catalog.Databases)
		sum := catalogSum{tli, maphash.Bytes(catalogSeed, content)}
		err = errors.Join(err, marshalErr)
		if sum != a.catalog {
			if putErr := c.session.opt.Repo.PutCatalog(ctx, tli, catalog); putErr == nil {
				a.catalog = sum
				a.counts.catalogs.Add(1)
			} else {
				err = errors.Join(err, putErr)
			}
		}
	}
	if err == nil {
		c.warned = false
		return
	}
	if ctx.Err() != nil {
		return
	}
	a.counts.catalogFailures.Add(1)
	if !c.warned {
		c.warned = true
		log.Warn("the names of relations were not all stored; pitr log may lack some", "error", err)
	}
}

// catalogSum tells catalogs apart.
type catalogSum struct {
	timeline pg.Timeline
	sum      uint64
}

// read asks every database for its relations. Those that cannot be asked are in the error, the others in the catalog.
func (c *cataloguer) read(ctx context.Context) (repo.Catalog, error) {
	var catalog repo.Catalog
	// CREATE DATABASE waits only 5 s for others to leave its template (CountOtherDBBackends of src/backend/storage/ipc/procarray.c).
	rows, err := c.query(ctx, "", "SELECT oid, datname FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate ORDER BY oid", &catalog)
	if err != nil {
		return repo.Catalog{}, err
	}
	var errs []error
	left := c.session.opt.CatalogRelationsMax
	for _, row := range rows {
		oid, err := strconv.ParseUint(row[0], 10, 32)
		if err != nil {
			return repo.Catalog{}, fmt.Errorf("catalog: %w", err)
		}
		db := repo.CatalogDatabase{OID: uint32(oid), Name: row[1]}
		if db.Relations, err = c.relations(ctx, db.Name, left); err != nil {
			errs = append(errs, fmt.Errorf("names of database %s: %w", db.Name, err))
		}
		left -= len(db.Relations)
		catalog.Databases = append(catalog.Databases, db)
	}
	return catalog, errors.Join(errs...)
}

// relations are those with a file, partitioned tables too; temporary ones never are in the WAL.
func (c *cataloguer) relations(ctx context.Context, database string, limit int) ([]repo.CatalogRelation, error) {
	rows, err := c.query(ctx, database, fmt.Sprintf(`SELECT c.oid, CASE c.reltablespace WHEN 0 THEN d.dattablespace ELSE c.reltablespace END,
		coalesce(pg_catalog.pg_relation_filenode(c.oid), 0), c.relisshared, c.relkind, n.nspname, c.relname
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
		WHERE c.relpersistence <> 't' AND c.relkind IN ('r', 'i', 'S', 't', 'm', 'p') ORDER BY c.oid LIMIT %d`, limit+1), nil)
	if err != nil {
		return nil, err
	}
	if len(rows) > limit {
		return nil, fmt.Errorf("the cluster has more relations than archive.catalog_relations_max (%d)", c.session.opt.CatalogRelationsMax)
	}
	relations := make([]repo.CatalogRelation, len(rows))
	for i, row := range rows {
		oid, err1 := strconv.ParseUint(row[0], 10, 32)
		tablespace, err2 := strconv.ParseUint(row[1], 10, 32)
		file, err3 := strconv.ParseUint(row[2], 10, 32)
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, err
		}
		relations[i] = repo.CatalogRelation{OID: uint32(oid), Tablespace: uint32(tablespace), File: uint32(file), Shared: row[3] == "t", Kind: row[4], Schema: row[5], Name: row[6]}
	}
	return relations, nil
}

// query runs one statement in a database, that of the DSN where it is "". It also notes clock and position in catalog, if that is not nil.
func (c *cataloguer) query(ctx context.Context, database, sql string, catalog *repo.Catalog) (rows [][]string, err error) {
	conn, err := replication.Connect(ctx, replication.ConnectOptions{DSN: c.session.opt.DSN, Database: database, ApplicationName: c.session.opt.Slot + " catalog", Role: c.session.opt.StreamFrom})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	if catalog != nil {
		if catalog.Time, err = readClock(ctx, conn); err != nil {
			return nil, err
		}
		at, err := conn.Query(ctx, "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_flush_lsn() END")
		if err != nil {
			return nil, err
		}
		if catalog.LSN, err = pg.ParseLSN(at[0][0]); err != nil {
			return nil, err
		}
	}
	return conn.Query(ctx, sql)
}
