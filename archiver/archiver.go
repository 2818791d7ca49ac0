// Package archiver carries WAL and base backups from Postgres to the repository. It is diskless: its truth is the slot in Postgres and
// the objects in the store, so it may be killed at any moment and replaced on any machine. It never acknowledges what the store does
// not durably hold (law 1) and checks WAL before it stores it (law 2). docs/ARCHITECTURE.md, "The archiver".
package archiver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/robfig/cron/v3"

	"pitr/archiver/replication"
	"pitr/internal/pg"
	"pitr/internal/repo"
)

// Options is what an Archiver needs; the fields are settings of the same names in config.
type Options struct {
	DSN             string
	Slot            string
	StreamFrom      replication.Role
	FlushInterval   time.Duration
	PartSizeMax     int
	BufferMax       int
	PutsInFlight    int
	ShutdownGrace   time.Duration
	Lease           time.Duration // zero: none, this is the only archiver
	BackupSchedule  string        // cron expression; empty: backups are taken by hand only
	BackupJitter    time.Duration // a backup of the schedule begins up to so much later
	BackupBufferMax int64
	BackupWALWait   time.Duration
	BackupRules     BackupRules
	Retention       Retention
	SweepGrace      time.Duration

	CatalogInterval     time.Duration // zero: no names are stored
	CatalogRelationsMax int

	Repo *repo.Repo
	Log  *slog.Logger
}

// Archiver streams WAL and takes the scheduled backups of one cluster.
type Archiver struct {
	opt      Options
	schedule cron.Schedule // nil: none
	counts   counters
	gapEnd   atomic.Uint64 // an LSN: the archive has a gap that ends there; zero: none is known
	covered  atomic.Uint64 // an LSN: where the latest backup that is known on our way starts
	backupMu sync.Mutex    // held while a backup runs: one at a time
	catalog  catalogSum    // of the last one that was stored; sessions follow one another
	lease    *lease        // nil: none

	mu           sync.Mutex // guards what follows
	current      *session   // nil while not streaming
	last         snapshot   // of the session before
	contact      time.Time  // when streaming ended, or we began
	way          way        // of the latest stream
	resuming     time.Time  // when a session has reached Postgres; zero: none has
	exposedSince time.Time  // no backup lies behind a gap; zero: one does, or there is none
	lastErr      string
	backups      backupFacts
	seen         sight         // the latest look at the server
	wanted       chan string   // a backup is wanted, for this reason
	began        chan struct{} // a stream has begun
}

// New checks the options.
func New(opt Options) (*Archiver, error) {
	a := &Archiver{opt: opt, contact: time.Now(), wanted: make(chan string, 1), began: make(chan struct{}, 1)}
	if opt.BackupSchedule != "" {
		schedule, err := cron.ParseStandard(opt.BackupSchedule)
		if err != nil {
			return nil, fmt.Errorf("backup.schedule %q: %w", opt.BackupSchedule, err)
		}
		a.schedule = schedule
	}
	if opt.Lease > 0 {
		a.lease = newLease(a)
	}
	return a, nil
}

// Pauses between attempts to stream, doubling from the first to the last.
const (
	reconnectPauseMin = 200 * time.Millisecond
	reconnectPauseMax = 10 * time.Second
)

// Run archives whenever it holds the lease, if there is one, until ctx ends. Its error is that of archive.
func (a *Archiver) Run(ctx context.Context) error {
	if a.lease == nil {
		return a.archive(ctx)
	}
	return a.lease.run(ctx, a.archive)
}

// archive streams until ctx ends, then stores what it has received within the shutdown grace and returns nil. It returns an error only
// for what waiting cannot mend: a repository that belongs to another cluster or holds another history.
func (a *Archiver) archive(ctx context.Context) error {
	backups, stopBackups := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	tasks.Go(func() { a.runBackups(backups) })
	tasks.Go(func() { a.runWatch(backups) })
	tasks.Go(func() { a.runSweep(backups) })
	tasks.Go(func() { a.keepOtherSlots(backups) })
	defer tasks.Wait()
	defer stopBackups()
	for pause := reconnectPauseMin; ; {
		begin := time.Now()
		err := a.stream(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, repo.ErrForeign) || errors.Is(err, repo.ErrConflict) || errors.Is(err, repo.ErrIncomparable) {
			return err
		}
		a.noteError(err)
		if time.Since(begin) > reconnectPauseMax || errors.Is(err, errTakenOver) {
			pause = reconnectPauseMin
		}
		a.opt.Log.Warn("streaming was interrupted", "error", err, "again_in", pause)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		pause = min(2*pause, reconnectPauseMax)
	}
}

func (a *Archiver) noteError(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.lastErr = err.Error()
		a.counts.interruptions.Add(1)
	}
}

// wantBackup asks for a backup soon. One wish that waits is enough.
func (a *Archiver) wantBackup(reason string) {
	select {
	case a.wanted <- reason:
	default:
	}
}

// stream runs one session: it connects, finds where to go on, and follows the server's timelines.
func (a *Archiver) stream(ctx context.Context) error {
	s := &session{archiver: a, opt: a.opt, log: a.opt.Log, nudge: make(chan struct{}, 1)}
	defer s.close()
	if err := s.connect(ctx); err != nil {
		return err
	}
	a.setResuming(time.Now())
	defer a.setResuming(time.Time{})
	a.setWay(way{s.system.Timeline, s.history})
	at, err := s.resumePoint(ctx)
	if err != nil {
		return err
	}
	if err := s.noteJoints(ctx, at); err != nil {
		return err
	}
	a.setSession(s)
	defer a.setSession(nil)
	for {
		next, err := s.follow(ctx, at)
		if err != nil {
			return err
		}
		at = next
	}
}

func (a *Archiver) setSession(s *session) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current != nil {
		a.last, a.contact = a.current.snapshot(), time.Now()
	}
	a.current = s
	if s != nil {
		a.lastErr = ""
	}
}

// lastContact is when streaming last ended, or we began: what the server has written since may not have arrived yet.
func (a *Archiver) lastContact() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.contact
}

// position is a place on a timeline.
type position struct {
	Timeline pg.Timeline
	LSN      pg.LSN
}
