package archiver

import (
	"sync/atomic"
	"time"

	"pitr/internal/pg"
)

// counters count since the start of the process.
type counters struct {
	parts, stretches, segments, storeFailures, interruptions, corrupt, gaps atomic.Uint64
	backupsDone, backupsFailed                                              atomic.Uint64
	putSeconds                                                              atomic.Int64 // nanoseconds of the last put
	storeDown                                                               atomic.Bool
	catalogs, catalogFailures                                               atomic.Uint64
	swept, expiriesDenied                                                   atomic.Uint64
}

// backupFacts are what is known of base backups.
type backupFacts struct {
	last   time.Time // stop time of the newest
	lastID string
	count  int

	checksumFailures int // of the newest
}

// Stats is a snapshot for people and for /metrics.
type Stats struct {
	Streaming     bool
	Timeline      pg.Timeline
	Received      pg.LSN
	Stored        pg.LSN
	WaitingBytes  int
	Oldest        time.Time // when the oldest byte that is not in the store arrived, or could have; zero: none. Without a stream: since when nothing is known
	Exposed       time.Time // since then no backup lies behind a gap, and what is stored is of no use yet; zero: one does, or there is none
	StoreDown     bool
	LastPut       time.Duration
	Parts         uint64
	Stretches     uint64 // objects that hold a whole segment, or 64 MiB of a larger one
	Segments      uint64
	StoreFailures uint64
	Interruptions uint64
	Corrupt       uint64
	Gaps          uint64
	BufferFull    uint64
	Backups       int
	LastBackup    time.Time
	LastBackupID  string
	// ChecksumFailures is how many pages of the newest backup have a wrong checksum.
	ChecksumFailures int
	BackupsDone      uint64
	BackupsFailed    uint64
	LastError        string
	Slot             Slot
	Lease            LeaseStats
	CommitsWait      bool // commits wait until the store has their WAL
	CommitsStuck     bool // some wait for more than an archive does: synchronous_commit = remote_apply
	Catalogs         uint64
	// CatalogFailures counts the times that not all names of relations could be stored.
	CatalogFailures uint64
	Swept           uint64 // objects that a sweep has removed
	ExpiriesDenied  uint64 // expiries that were skipped since the credentials may not delete
}

// LeaseStats says who works. Without archive.lease it is zero.
type LeaseStats struct {
	Used    bool
	Held    bool   // by us
	Owner   string // of the newest lease
	Epoch   uint64 // of the newest lease
	Terms   uint64 // how often we have taken it
	StandBy bool   // we wait for it
}

// Stats returns a snapshot.
func (a *Archiver) Stats() Stats {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := &a.counts
	st := Stats{StoreDown: c.storeDown.Load(), LastPut: time.Duration(c.putSeconds.Load()), Parts: c.parts.Load(), Stretches: c.stretches.Load(), Segments: c.segments.Load(),
		StoreFailures: c.storeFailures.Load(), Interruptions: c.interruptions.Load(), Corrupt: c.corrupt.Load(), Gaps: c.gaps.Load(),
		Backups: a.backups.count, LastBackup: a.backups.last, LastBackupID: a.backups.lastID,
		ChecksumFailures: a.backups.checksumFailures, BackupsDone: c.backupsDone.Load(), BackupsFailed: c.backupsFailed.Load(), LastError: a.lastErr,
		Catalogs: c.catalogs.Load(), CatalogFailures: c.catalogFailures.Load(),
		Swept: c.swept.Load(), ExpiriesDenied: c.expiriesDenied.Load()}
	now := a.last
	if a.current != nil {
		now = a.current.snapshot()
		st.Streaming = now.streaming
	}
	st.Timeline, st.Received, st.Stored = now.timeline, now.at.Received, now.at.Stored
	st.WaitingBytes, st.Oldest, st.BufferFull = now.at.Waiting, now.at.Oldest, now.at.FullWaits
	st.Slot, st.CommitsWait, st.CommitsStuck = a.seen.Slot, a.seen.Commits.ForUs, a.seen.Commits.Stuck
	st.Exposed = a.exposedSince
	if a.lease != nil {
		v := a.lease.view()
		st.Lease = LeaseStats{Used: true, Held: v.held, Owner: v.seen.Owner, Epoch: v.seen.Epoch, Terms: v.terms, StandBy: v.standBy}
	}
	if st.Lease.StandBy {
		st.Oldest = time.Time{} // the archiver that works knows
	} else if !st.Streaming && (st.Oldest.IsZero() || a.contact.Before(st.Oldest)) {
		st.Oldest = a.contact // nobody knows what the server has written since
	}
	return st
}

// snapshot is how far a session has come.
type snapshot struct {
	streaming bool
	timeline  pg.Timeline
	at        positions
}

func (s *session) snapshot() snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queue == nil {
		return snapshot{}
	}
	return snapshot{streaming: true, timeline: s.timeline, at: s.queue.positions()}
}
