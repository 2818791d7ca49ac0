package repo

import (
	"testing"

	"pitr/internal/store"
)

func TestKeysTellWhatObjectsAreFor(t *testing.T) {
	for key, want := range map[string]store.Use{
		"main/cluster.json":                            store.Kept,
		"main/timelines/00000002.history":              store.Kept,
		"main/index/00000001/000000010000000000000001": store.Kept,
		"main/catalogs/00000001/0000000000000001-1":    store.Kept,
		"main/backups/20260101T000000Z/manifest":       store.Kept,
		"main/keys/0123/000000":                        store.Kept,
		"main/proofs/20260101T000000Z/x.json":          store.Kept,
		"main/wal/00000001/000000010000000000000001":   store.Bulk,
		"main/packs/20260101T000000Z/000000":           store.Bulk,
		"main/clocks/00000001/0000000000000001-1":      store.Passing,
		"main/leases/0000000000000001":                 store.Passing,
		"main/keeps/20260101T000000Z":                  store.Passing,
		"main/tombstones/20260101T000000Z":             store.Passing,
		"main/running/20260101T000000Z":                store.Passing,
		store.ProbePrefix + "X":                        store.Passing,
		"main/wal/00000001/000000010000000000000001.parts/0000000001000000-0000000001000100": store.Brief,
		"main/wal/00000001/000000010000000000000001.parts/0000000001000000-0000000002000000": store.Brief,
		// 64 MiB of a large segment: nothing replaces it.
		"main/wal/00000001/000000010000000000000001.parts/0000000044000000-0000000048000000": store.Bulk,
		"main/wal/00000001/000000010000000000000001.parts/0000000044000001-0000000048000001": store.Brief,
	} {
		if got := Use(key); got != want {
			t.Errorf("%s: %d, want %d", key, got, want)
		}
	}
}
