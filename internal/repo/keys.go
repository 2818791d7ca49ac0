package repo

import (
	"fmt"
	"strings"

	"pitr/internal/pg"
)

// The first elements of the keys below <cluster>/: see docs/FORMAT.md, "Keys".
const (
	clusterKey    = "cluster.json"
	timelinesDir  = "timelines/"
	walDir        = "wal/"
	indexDir      = "index/"
	clocksDir     = "clocks/"
	catalogsDir   = "catalogs/"
	packsDir      = "packs/"
	contentsDir   = "contents/"
	backupsDir    = "backups/"
	keysDir       = "keys/"
	leasesDir     = "leases/"
	gapsDir       = "gaps/"
	refusedDir    = "refused/"
	keepsDir      = "keeps/"
	tombstonesDir = "tombstones/"
	runningDir    = "running/"
	proofsDir     = "proofs/"
	manifestName  = "/manifest"
	partsSuffix   = ".parts"
	timelineChars = 8
)

func historyKey(tli pg.Timeline) string { return timelinesDir + tli.HistoryName() }

func segmentKey(segment pg.Segment, size pg.SegmentSize) string {
	return walDir + segment.Timeline.Hex() + "/" + segment.Name(size)
}

func indexKey(segment pg.Segment, size pg.SegmentSize) string {
	return indexDir + segment.Timeline.Hex() + "/" + segment.Name(size)
}

// Part is a stretch of WAL that was stored before its segment was complete: the bytes from Start up to, not including, End.
type Part struct {
	Timeline   pg.Timeline
	Start, End pg.LSN
	Size       int64 // of the object
}

func partKey(p Part, size pg.SegmentSize) string {
	return segmentKey(size.Segment(p.Timeline, p.Start), size) + partsSuffix + "/" + p.Start.Hex() + "-" + p.End.Hex()
}

func clockKey(tli pg.Timeline, c Clock) string {
	return fmt.Sprintf("%s%s/%s-%016X", clocksDir, tli.Hex(), c.LSN.Hex(), uint64(c.Time.UnixMicro()))
}

func catalogKey(key CatalogKey) string {
	return fmt.Sprintf("%s%s/%s-%016X", catalogsDir, key.Timeline.Hex(), key.LSN.Hex(), uint64(key.Time.UnixMicro()))
}

func packKey(backup string, number int) string {
	return fmt.Sprintf("%s%s/%06d", packsDir, backup, number)
}

// contentsKey is that of the contents of a pack.
func contentsKey(pack string) string { return contentsDir + strings.TrimPrefix(pack, packsDir) }

func manifestKey(backup string) string { return backupsDir + backup + manifestName }

// parseWALKey reads the key of a segment or a part; ok is false for what is neither.
func parseWALKey(key string, size pg.SegmentSize) (segment pg.Segment, part *Part, ok bool) {
	rest, found := strings.CutPrefix(key, walDir)
	if !found || len(rest) < timelineChars+1 || rest[timelineChars] != '/' {
		return pg.Segment{}, nil, false
	}
	name, partName, isPart := strings.Cut(rest[timelineChars+1:], partsSuffix+"/")
	segment, err := pg.ParseSegmentName(name, size)
	if err != nil || segment.Timeline.Hex() != rest[:timelineChars] {
		return pg.Segment{}, nil, false
	}
	if !isPart {
		return segment, nil, true
	}
	first, second, found := strings.Cut(partName, "-")
	start, err1 := pg.ParseLSNHex(first)
	end, err2 := pg.ParseLSNHex(second)
	if !found || err1 != nil || err2 != nil || start >= end || start < segment.Start(size) || end > segment.End(size) {
		return pg.Segment{}, nil, false
	}
	return segment, &Part{Timeline: segment.Timeline, Start: start, End: end}, true
}
