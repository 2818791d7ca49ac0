package archiver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"pitr/internal/repo"
	"pitr/internal/wal"
)

// untouched says which extents need not be read, since no WAL since the backup before names them. It is what PostgreSQL's own incremental backups rely
// on (GetFileBackupMethod of src/backend/backup/basebackup_incremental.c), with our own index: only main forks, since free space maps are not in the WAL
// and records that clear bits of visibility maps do not name these.
type untouched struct {
	before  map[string]*repo.File
	touched *touched
	audit   int // of so many extents that need not be read one is read all the same; zero: none
}

// auditOneIn is how many extents that need not be read are passed over for one that is read all the same and held against the WAL: so each backup looks for
// changes that the index does not know, and for a disk that forgets.
const auditOneIn = 32

// untouchedWait bounds how long a backup waits for the WAL before its begin, rather than read everything.
const untouchedWait = 30 * time.Second

// newUntouched waits for the WAL up to the backup's start and reads what it has changed. Without it everything is read; reason says why, unless nobody expects
// anything else.
func newUntouched(ctx context.Context, opt BackupOptions, b repo.Backup, before previous, since *comparison) (u *untouched, reason string, err error) {
	if opt.Incremental == IncrementalOff || before.backup == nil {
		return nil, "", nil
	}
	if reason := before.unfit(b); reason != "" {
		return nil, reason, nil
	}
	switch {
	case b.FromStandby || before.manifest.FromStandby:
		return nil, "one of two backups is from a standby", nil
	case b.Timeline != before.manifest.Timeline:
		return nil, "the timeline has changed", nil
	case b.Start < before.manifest.Stop:
		return nil, "the backup before ended behind the begin of this one: the server is an older one", nil
	}
	patient := opt
	patient.WALWait = min(opt.WALWait, untouchedWait)
	err = waitForWAL(ctx, patient, b, b.Start)
	if errors.Is(err, ErrNoWAL) && ctx.Err() == nil {
		return nil, "the WAL up to its begin has not arrived in time", nil
	}
	if err != nil {
		return nil, "", err
	}
	p, err := opt.Repo.Path(ctx, b.Timeline, b.SegmentSize, before.manifest.Start)
	if err != nil {
		return nil, "", err
	}
	if end := p.Frontier(b.SegmentSize.Start(before.manifest.Start)); end < b.Start {
		return nil, fmt.Sprintf("WAL since the backup before is missing in the archive from %s on", end), nil
	}
	u = &untouched{before: map[string]*repo.File{}}
	if since.before != nil {
		u.audit = cmp.Or(opt.auditOneIn, auditOneIn)
	}
	if u.touched, err = readTouched(ctx, opt.Repo, p, b.SystemID, before.manifest.Start, b.Start); err != nil {
		return nil, "", err
	}
	for i := range before.manifest.Entries {
		f := &before.manifest.Entries[i]
		u.before[f.Path] = f
	}
	return u, "", nil
}

// untouchedFile is what holds for one file; nil: all of it is read.
type untouchedFile struct {
	now, before *repo.File
	file        relationFile
	touched     *touchedFork
	audit       int
}

// of says which extents of a file need not be read.
func (u *untouched) of(f *repo.File) *untouchedFile {
	if u == nil {
		return nil
	}
	before := u.before[f.Path]
	file, ok := parseRelationFile(f.Path)
	if before == nil || !ok || file.fork != wal.ForkMain {
		return nil
	}
	return &untouchedFile{f, before, file, u.touched.of(file.relation, file.fork), u.audit}
}

// extent returns an extent as it was, if it still is. One that has grown or shrunk is not: files are made longer without WAL.
func (u *untouchedFile) extent(number int) (old repo.Extent, ok bool) {
	if u == nil || number >= len(u.before.Extents) || extentLength(u.before, number) != extentLength(u.now, number) {
		return old, false
	}
	old = u.before.Extents[number]
	return old, old.CRC.Known && !u.touched.names(u.file.block(number)) && (u.audit == 0 || rand.IntN(u.audit) != 0)
}
