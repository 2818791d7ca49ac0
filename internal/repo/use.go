package repo

import (
	"strings"

	"pitr/internal/pg"
	"pitr/internal/store"
)

// Use says what the object under a key of the store is for. Keys alone tell.
func Use(key string) store.Use {
	if strings.HasPrefix(key, store.ProbePrefix) {
		return store.Passing
	}
	_, name, _ := strings.Cut(key, "/") // behind the cluster
	dir, _, _ := strings.Cut(name, "/")
	switch dir + "/" {
	case leasesDir, clocksDir, keepsDir, tombstonesDir, runningDir:
		return store.Passing
	case packsDir:
		return store.Bulk
	case walDir:
		_, part, isPart := strings.Cut(name, partsSuffix+"/")
		if isPart && !isStretch(part) {
			return store.Brief
		}
		return store.Bulk
	}
	return store.Kept
}

// isStretch reports whether a part, by its name, is a stretch of a large segment, which nothing replaces.
func isStretch(part string) bool {
	first, second, _ := strings.Cut(part, "-")
	start, err1 := pg.ParseLSNHex(first)
	end, err2 := pg.ParseLSNHex(second)
	return err1 == nil && err2 == nil && end > start && end-start == stretchMax && start%stretchMax == 0
}
