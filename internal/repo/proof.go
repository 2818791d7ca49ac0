package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"pitr/internal/pg"
	"pitr/internal/store"
)

// Proof is what a test restore of a backup has shown. docs/FORMAT.md, "Proofs".
type Proof struct {
	Backup   string      `json:"backup"`
	Time     time.Time   `json:"time"` // when it ended
	OK       bool        `json:"ok"`   // the data came back, and no check has failed
	Target   string      `json:"target"`
	Timeline pg.Timeline `json:"timeline"`
	StopLSN  pg.LSN      `json:"stop_lsn"`

	BackupBytes     int64   `json:"backup_bytes"` // of the files
	FetchBytes      int64   `json:"fetch_bytes"`
	WALBytes        int64   `json:"wal_bytes"`        // replayed
	FetchSeconds    float64 `json:"fetch_seconds"`    // until the directory could be started
	RecoverySeconds float64 `json:"recovery_seconds"` // from the start of Postgres until it was open

	Checks  []Check `json:"checks"`
	Version string  `json:"version"` // of the program that made it
}

// Check is one thing that was looked at in restored data.
type Check struct {
	Name    string  `json:"name"`
	Outcome Outcome `json:"outcome"`
	Detail  string  `json:"detail,omitempty"`
}

// Outcome of a check.
type Outcome string

// Outcomes of a check. What was not done proves nothing, and fails nothing.
const (
	Passed  Outcome = "passed"
	Failed  Outcome = "failed"
	NotDone Outcome = "not done"
)

// Reading is what it has shown to read a slice of all objects. docs/FORMAT.md, "Proofs".
type Reading struct {
	Time    time.Time `json:"time"`
	Slice   int       `json:"slice"` // from 0 on
	Of      int       `json:"of"`
	Objects int       `json:"objects"`
	Bytes   int64     `json:"bytes"`
	Defects []string  `json:"defects"`
}

const (
	// proofSizeMax bounds a proof and a reading.
	proofSizeMax = 1 << 20
	readingsDir  = proofsDir + "checksum/"
	proofSuffix  = ".json"
)

func proofKey(p Proof) string {
	return proofsDir + p.Backup + "/" + p.Time.UTC().Format(backupIDLayout) + proofSuffix
}

// PutProof stores what a test restore has shown. In an encrypted repository the details of checks, which may name what is in the database, are left
// out: nobody's key is at hand where proofs are read.
func (r *Repo) PutProof(ctx context.Context, p Proof) error {
	p.Time = p.Time.UTC().Truncate(time.Second)
	if r.Encrypts() {
		p.Checks = slices.Clone(p.Checks)
		for i := range p.Checks {
			p.Checks[i].Detail = ""
		}
	}
	for {
		content, err := json.Marshal(p)
		if err != nil {
			return fmt.Errorf("put %s: %w", proofKey(p), err)
		}
		content = append(content, '\n')
		err = r.store.Put(ctx, r.prefix+proofKey(p), content, store.PutOptions{IfAbsent: true})
		if errors.Is(err, store.ErrExist) {
			there, readErr := store.ReadAll(ctx, r.store, r.prefix+proofKey(p), proofSizeMax)
			if readErr == nil && !bytes.Equal(there, content) { // of another restore that has ended in this second: one that has failed must not get lost
				p.Time = p.Time.Add(time.Second)
				continue
			}
			err = readErr
		}
		if err != nil {
			return fmt.Errorf("put %s: %w", proofKey(p), err)
		}
		return nil
	}
}

// Proofs lists what test restores have shown, of all backups, oldest first.
func (r *Repo) Proofs(ctx context.Context) ([]Proof, error) {
	var proofs []Proof
	err := r.keys(ctx, proofsDir, func(object store.Object) error {
		if strings.HasPrefix(object.Key, readingsDir) {
			return nil
		}
		var p Proof
		if err := r.readProof(ctx, object.Key, &p); err != nil {
			return err
		}
		if proofKey(p) != object.Key {
			return fmt.Errorf("get %s: %w: it is one of backup %q, of %s", object.Key, ErrDamaged, p.Backup, p.Time)
		}
		proofs = append(proofs, p)
		return nil
	})
	slices.SortStableFunc(proofs, func(a, b Proof) int { return a.Time.Compare(b.Time) })
	return proofs, err
}

func (r *Repo) readProof(ctx context.Context, key string, into any) error {
	content, err := store.ReadAll(ctx, r.store, r.prefix+key, proofSizeMax)
	if err != nil {
		return fmt.Errorf("get %s: %w", key, err)
	}
	if err := json.Unmarshal(content, into); err != nil {
		return fmt.Errorf("get %s: %w: %w", key, ErrDamaged, err)
	}
	return nil
}

// LastProven is the newest proof that is one; nil when no restore was ever proven.
func LastProven(proofs []Proof) *Proof {
	for i := range slices.Backward(proofs) {
		if proofs[i].OK {
			return &proofs[i]
		}
	}
	return nil
}

// PutReading stores what reading a slice has shown.
func (r *Repo) PutReading(ctx context.Context, reading Reading) error {
	reading.Time = reading.Time.UTC().Truncate(time.Second)
	return putNote(ctx, r, readingsDir+reading.Time.Format(backupIDLayout)+proofSuffix, reading)
}

// Readings lists what reading slices has shown since an instant, oldest first.
func (r *Repo) Readings(ctx context.Context, since time.Time) ([]Reading, error) {
	var readings []Reading
	err := r.keys(ctx, readingsDir, func(object store.Object) error {
		at, err := time.Parse(backupIDLayout+proofSuffix, object.Key[len(readingsDir):])
		if err != nil {
			return fmt.Errorf("%s is no reading: %w", object.Key, ErrDamaged)
		}
		if at.Before(since) {
			return nil
		}
		var reading Reading
		if err := r.readProof(ctx, object.Key, &reading); err != nil {
			return err
		}
		readings = append(readings, reading)
		return nil
	})
	return readings, err
}

// DeleteProofs removes the proofs of backups that are gone, except the newest proof of all, and readings from before an instant. It returns how many
// objects it has removed.
func (r *Repo) DeleteProofs(ctx context.Context, exists func(backup string) bool, before time.Time) (removed int, err error) {
	proofs, err := r.Proofs(ctx)
	if err != nil {
		return 0, err
	}
	var gone []string
	last := LastProven(proofs)
	for _, p := range proofs {
		if !exists(p.Backup) && (last == nil || proofKey(p) != proofKey(*last)) {
			gone = append(gone, proofKey(p))
		}
	}
	err = r.keys(ctx, readingsDir, func(object store.Object) error {
		at, err := time.Parse(backupIDLayout+proofSuffix, object.Key[len(readingsDir):])
		if err == nil && at.Before(before) {
			gone = append(gone, object.Key)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, key := range gone {
		switch err := r.store.Delete(ctx, r.prefix+key); {
		case err == nil:
			removed++
		case errors.Is(err, store.ErrLocked): // it goes when the store lets it
		default:
			errs = append(errs, fmt.Errorf("delete %s: %w", key, err))
		}
	}
	return removed, errors.Join(errs...)
}
