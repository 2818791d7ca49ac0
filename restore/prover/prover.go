// Package prover lets the repository be verified on a schedule: what is there, by name and size; what it holds, a slice a day; and whether it can be
// restored, by restoring it. What it has shown is in the repository (docs/FORMAT.md, "Proofs"), so that whoever comes next goes on where this one was.
// It owns no verification of its own: package restore does that.
package prover

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"pitr/internal/repo"
	"pitr/restore"
)

// Options says what is verified, and how often. A zero interval is never.
type Options struct {
	Repo         *repo.Repo
	Inventory    time.Duration
	ChecksumDays int // in so many days every object is read, a slice each day
	Restore      time.Duration
	Settle       time.Duration // from the begin until something is verified
	Plan         restore.PlanOptions
	Prove        func(ctx context.Context, seed uint64) (repo.Proof, error) // a test restore
	Working      func() bool                                                // whether this archiver is the one that works
	Log          *slog.Logger
}

// Stats is what is known of verifications.
type Stats struct {
	LastProven  time.Time     // when the last proof was made that is one; zero: never tested
	RecoverTook time.Duration // of that proof: fetch and recovery
	LastTried   time.Time     // when a test restore ended, whatever it has shown
	LastFailed  bool          // and whether it has shown that the data did not come back

	Inventories, Slices, Restores uint64 // that were done
	InventoryAt, SliceAt          time.Time
	InventoryDefects              int // of the last one
	SliceDefects                  int
	Failures                      uint64 // verifications that could not be done
}

// Prover is the schedule.
type Prover struct {
	opt Options

	mu    sync.Mutex // guards what follows
	stats Stats
	told  map[string]string // the last reason for which something could not be done
}

// Waits of the schedule.
const (
	// look is how often it is asked whether something is due.
	look = time.Minute
	// pause is how long nothing is tried again that could not be done.
	pause = time.Hour
	// emptyPause is how long an empty repository is left alone.
	emptyPause = 5 * time.Minute
	day        = 24 * time.Hour
)

// New makes a schedule; Run runs it.
func New(opt Options) *Prover { return &Prover{opt: opt, told: map[string]string{}} }

// Stats is a snapshot.
func (p *Prover) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}

// Run verifies until ctx ends. What is found is told, and stops nothing.
func (p *Prover) Run(ctx context.Context) {
	tasks := []*task{
		{name: "inventory", every: p.opt.Inventory, last: p.lastInventory, do: p.inventory},
		{name: "checksum", every: day * time.Duration(min(1, p.opt.ChecksumDays)), last: p.lastSlice, do: p.slice},
		{name: "restore", every: p.opt.Restore, last: p.lastRestore, do: p.restore},
	}
	for wait := p.opt.Settle; sleep(ctx, wait); wait = look {
		if !p.opt.Working() {
			continue
		}
		for _, t := range tasks {
			if ctx.Err() == nil && !time.Now().Before(t.notBefore) {
				p.step(ctx, t)
			}
		}
	}
}

// task is one of the things that are verified.
type task struct {
	name      string
	every     time.Duration
	notBefore time.Time
	last      func(ctx context.Context) (time.Time, error) // when it was done
	do        func(ctx context.Context) error
}

// step does a task when it is due.
func (p *Prover) step(ctx context.Context, t *task) {
	if t.every == 0 {
		return
	}
	last, err := t.last(ctx)
	t.notBefore = last.Add(t.every) // until then nothing is asked of the store
	if err == nil && time.Since(last) >= t.every {
		err = t.do(ctx)
		t.notBefore = time.Now().Add(t.every)
	}
	if errors.Is(err, repo.ErrNotExist) { // nothing was ever archived, or no backup is there
		t.notBefore = time.Now().Add(emptyPause)
		return
	}
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		delete(p.told, t.name)
		return
	}
	p.stats.Failures++
	t.notBefore = time.Now().Add(pause)
	if p.told[t.name] != err.Error() {
		p.told[t.name] = err.Error()
		p.opt.Log.Warn("the repository could not be verified", "level", t.name, "error", err, "again_in", pause)
	}
}

func (p *Prover) lastInventory(context.Context) (time.Time, error) { return p.Stats().InventoryAt, nil }

func (p *Prover) inventory(ctx context.Context) error {
	report, err := restore.Verify(ctx, p.opt.Repo, restore.VerifyOptions{Level: restore.Inventory, Plan: p.plan()})
	if err != nil {
		return err
	}
	p.tell(report)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Inventories++
	p.stats.InventoryAt, p.stats.InventoryDefects = time.Now(), len(report.Defects)
	return nil
}

func (p *Prover) plan() restore.PlanOptions {
	plan := p.opt.Plan
	plan.Now = time.Now()
	return plan
}

// defectsTold bounds how many defects are logged and kept of one verification.
const defectsTold = 20

func (p *Prover) tell(report restore.Report) {
	for i, defect := range report.Defects {
		if i == defectsTold {
			p.opt.Log.Error("the repository has more defects", "level", report.Level, "defects", len(report.Defects))
			break
		}
		p.opt.Log.Error("the repository has a defect", "level", report.Level, "defect", defect)
	}
}

func (p *Prover) lastSlice(ctx context.Context) (time.Time, error) {
	last, err := p.lastReading(ctx)
	return last.Time, err
}

// lastReading is the newest one; its zero value when there is none.
func (p *Prover) lastReading(ctx context.Context) (repo.Reading, error) {
	readings, err := p.opt.Repo.Readings(ctx, time.Now().Add(-2*day*time.Duration(max(1, p.opt.ChecksumDays))))
	if err != nil || len(readings) == 0 {
		return repo.Reading{Slice: -1}, err
	}
	return readings[len(readings)-1], nil
}

// slice reads the slice behind the last one that was read.
func (p *Prover) slice(ctx context.Context) error {
	last, err := p.lastReading(ctx)
	if err != nil {
		return err
	}
	of := p.opt.ChecksumDays
	reading := repo.Reading{Slice: (last.Slice + 1) % of, Of: of}
	report, err := restore.Verify(ctx, p.opt.Repo, restore.VerifyOptions{Level: restore.Checksum, Slice: reading.Slice, Of: of, Plan: p.plan()})
	if err != nil {
		return err
	}
	p.tell(report)
	reading.Time, reading.Objects, reading.Bytes = time.Now(), report.Read, report.ReadSize
	reading.Defects = report.Defects[:min(len(report.Defects), defectsTold)]
	if p.opt.Repo.Encrypts() {
		reading.Defects = make([]string, len(reading.Defects)) // that there are some may be known
	}
	if err := p.opt.Repo.PutReading(ctx, reading); err != nil {
		return err
	}
	p.opt.Log.Info("a slice of the repository was read", "slice", reading.Slice, "of", of, "objects", reading.Objects, "bytes", reading.Bytes, "defects", len(report.Defects))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Slices++
	p.stats.SliceAt, p.stats.SliceDefects = time.Now(), len(report.Defects)
	return nil
}

// lastRestore is when a restore was last tested, whatever that has shown; without a backup there is nothing to test.
func (p *Prover) lastRestore(ctx context.Context) (time.Time, error) {
	proofs, err := p.opt.Repo.Proofs(ctx)
	if err != nil {
		return time.Time{}, err
	}
	backups, _, err := p.opt.Repo.ReadableBackups(ctx)
	if err != nil {
		return time.Time{}, err
	}
	if len(backups) == 0 {
		return time.Time{}, repo.ErrNotExist
	}
	p.note(proofs)
	if len(proofs) == 0 {
		return time.Time{}, nil
	}
	return proofs[len(proofs)-1].Time, nil
}

func (p *Prover) note(proofs []repo.Proof) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if proven := repo.LastProven(proofs); proven != nil {
		p.stats.LastProven, p.stats.RecoverTook = proven.Time, Took(*proven)
	}
	if n := len(proofs); n > 0 {
		p.stats.LastTried, p.stats.LastFailed = proofs[n-1].Time, !proofs[n-1].OK
	}
}

// Took is how long it took until the data was back.
func Took(p repo.Proof) time.Duration {
	return time.Duration((p.FetchSeconds + p.RecoverySeconds) * float64(time.Second))
}

func (p *Prover) restore(ctx context.Context) error {
	seed := rand.Uint64()
	proof, err := p.opt.Prove(ctx, seed)
	if err != nil {
		return err
	}
	if err := p.opt.Repo.PutProof(ctx, proof); err != nil {
		return err
	}
	for _, check := range proof.Checks {
		if check.Outcome == repo.Failed {
			p.opt.Log.Error("a test restore has failed", "check", check.Name, "detail", check.Detail)
		}
	}
	p.opt.Log.Info("a restore was tested", "ok", proof.OK, "backup", proof.Backup, "target", proof.Target, "fetch_seconds", proof.FetchSeconds,
		"recovery_seconds", proof.RecoverySeconds, "wal_bytes", proof.WALBytes, "seed", seed)
	proofs, err := p.opt.Repo.Proofs(ctx)
	if err != nil {
		return err
	}
	p.note(proofs)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Restores++
	return nil
}

// sleep waits; false says that ctx has ended.
func sleep(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
