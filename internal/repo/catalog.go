package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"pitr/internal/pg"
	"pitr/internal/store"
	"pitr/internal/wal"
)

// Catalog is what the relations of a cluster were called at a position. docs/FORMAT.md, "Catalogs".
type Catalog struct {
	LSN       pg.LSN            `json:"lsn"`  // flushed when it was read; the names may be a little newer
	Time      time.Time         `json:"time"` // by the clock of the database server
	Databases []CatalogDatabase `json:"databases"`
}

// CatalogDatabase is one database. Relations that all databases share are in each.
type CatalogDatabase struct {
	OID       uint32            `json:"oid"`
	Name      string            `json:"name"`
	Relations []CatalogRelation `json:"relations"` // null: it could not be read
}

// CatalogRelation is one row of pg_class.
type CatalogRelation struct {
	OID        uint32 `json:"oid"`
	Tablespace uint32 `json:"ts"`
	File       uint32 `json:"file,omitempty"` // relfilenode; zero: none of its own
	Shared     bool   `json:"shared,omitempty"`
	Kind       string `json:"kind"` // relkind
	Schema     string `json:"schema"`
	Name       string `json:"name"`
}

// Locator is where the relation lies.
func (d CatalogDatabase) Locator(r CatalogRelation) wal.Relation {
	if r.Shared {
		return wal.Relation{Tablespace: r.Tablespace, Number: r.File}
	}
	return wal.Relation{Tablespace: r.Tablespace, Database: d.OID, Number: r.File}
}

// catalogSizeMax bounds a catalog: some two million relations.
const catalogSizeMax = 256 << 20

// CatalogKey names a stored catalog.
type CatalogKey struct {
	Timeline pg.Timeline
	LSN      pg.LSN
	Time     time.Time
}

// PutCatalog stores a catalog.
func (r *Repo) PutCatalog(ctx context.Context, tli pg.Timeline, c Catalog) error {
	content, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("put catalog: %w", err)
	}
	if len(content) > catalogSizeMax {
		return fmt.Errorf("put catalog: it has %d bytes, at most %d are stored", len(content), catalogSizeMax)
	}
	key := catalogKey(CatalogKey{tli, c.LSN, c.Time})
	err = r.store.Put(ctx, r.prefix+key, seal(KindCatalog, c.Time, content, r.compressor.Append(nil, content), CodecZstd), store.PutOptions{IfAbsent: true})
	if err != nil && !errors.Is(err, store.ErrExist) {
		return fmt.Errorf("put %s: %w", key, err)
	}
	return nil
}

// ReadCatalog returns a stored catalog.
func (r *Repo) ReadCatalog(ctx context.Context, key CatalogKey) (Catalog, error) {
	content, _, err := r.get(ctx, catalogKey(key), KindCatalog, catalogSizeMax)
	if err != nil {
		return Catalog{}, err
	}
	var c Catalog
	if err := json.Unmarshal(content, &c); err != nil {
		return Catalog{}, fmt.Errorf("get %s: %w: %w", catalogKey(key), ErrDamaged, err)
	}
	return c, nil
}

// Catalogs lists the stored catalogs of a timeline, in WAL order. Their names say where and when.
func (r *Repo) Catalogs(ctx context.Context, tli pg.Timeline) ([]CatalogKey, error) {
	var found []CatalogKey
	dir := catalogsDir + tli.Hex() + "/"
	err := r.keys(ctx, dir, func(object store.Object) error {
		var lsn, micros uint64
		key := CatalogKey{Timeline: tli}
		if _, err := fmt.Sscanf(object.Key[len(dir):], "%016X-%016X", &lsn, &micros); err == nil {
			key.LSN, key.Time = pg.LSN(lsn), time.UnixMicro(int64(micros)).UTC()
		}
		if catalogKey(key) != object.Key {
			return fmt.Errorf("%s is no catalog: %w", object.Key, ErrDamaged)
		}
		found = append(found, key)
		return nil
	})
	return found, err
}

// DeleteCatalog removes a catalog of which nothing is left to name.
func (r *Repo) DeleteCatalog(ctx context.Context, key CatalogKey) error {
	return r.store.Delete(ctx, r.prefix+catalogKey(key))
}
