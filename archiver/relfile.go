package archiver

import (
	"strconv"
	"strings"

	"pitr/internal/pg"
	"pitr/internal/wal"
)

// relationFile is a file of a relation, by its name: parse_filename_for_nontemp_relation of src/backend/storage/file/reinit.c. Those of temporary
// relations are none: a base backup does not contain them.
type relationFile struct {
	relation wal.Relation
	fork     wal.Fork
	segment  uint32 // the file's number: each but the last has RelationSegmentBlocks
}

// Tablespaces that have no directory below pg_tblspc: src/include/catalog/pg_tablespace.dat.
const (
	defaultTablespace = 1663
	globalTablespace  = 1664
)

// parseRelationFile reads a path below the data directory; ok is false for what is no file of a relation.
func parseRelationFile(path string) (r relationFile, ok bool) {
	dir, rest, _ := strings.Cut(path, "/")
	switch dir {
	case "global":
		r.relation.Tablespace = globalTablespace
	case "base":
		r.relation.Tablespace = defaultTablespace
		r.relation.Database, rest, ok = cutNumber(rest)
	case "pg_tblspc":
		var version string
		if r.relation.Tablespace, rest, ok = cutNumber(rest); !ok {
			return r, false
		}
		if version, rest, ok = strings.Cut(rest, "/"); !ok || !strings.HasPrefix(version, "PG_") {
			return r, false
		}
		r.relation.Database, rest, ok = cutNumber(rest)
	default:
		return r, false
	}
	if dir != "global" && !ok {
		return r, false
	}
	name, number, segmented := strings.Cut(rest, ".")
	if segmented {
		if r.segment, ok = parseNumber(number); !ok {
			return r, false
		}
	}
	name, fork, hasFork := strings.Cut(name, "_")
	if hasFork {
		if r.fork, ok = forkOf(fork); !ok {
			return r, false
		}
	}
	r.relation.Number, ok = parseNumber(name)
	return r, ok
}

func forkOf(name string) (wal.Fork, bool) {
	for _, fork := range []wal.Fork{wal.ForkFSM, wal.ForkVM, wal.ForkInit} {
		if fork.String() == name {
			return fork, true
		}
	}
	return 0, false
}

// cutNumber reads the number before the first slash.
func cutNumber(path string) (n uint32, rest string, ok bool) {
	text, rest, found := strings.Cut(path, "/")
	n, ok = parseNumber(text)
	return n, rest, ok && found
}

// parseNumber reads digits, and a first one that is no zero: reinit.c takes nothing else for a name.
func parseNumber(text string) (uint32, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err == nil && text[0] >= '1' && text[0] <= '9'
}

// block is the number in its fork of the first block of an extent of the file.
func (r relationFile) block(extent int) uint32 {
	return r.segment*pg.RelationSegmentBlocks + uint32(extent)*blocksPerExtent
}
