package restore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// VerifyLevel says how much Verify reads.
type VerifyLevel string

// The levels of `pitr verify`.
const (
	Inventory VerifyLevel = "inventory" // every object that a restore would need is there, by name and size
	Checksum  VerifyLevel = "checksum"  // and every byte is what it was; WAL is decoded
)

// Report is what a verification has found.
type Report struct {
	Level    VerifyLevel `json:"level"`
	Backups  int         `json:"backups"`
	Packs    int         `json:"packs"`
	Segments int         `json:"wal_segments"`
	Bytes    int64       `json:"stored_bytes"` // looked at
	Windows  []Window    `json:"windows"`      // that can be reached
	Defects  []string    `json:"defects"`

	Encrypted bool `json:"encrypted,omitempty"` // and not to be opened here: the windows are not known
}

// verifier is the state of one Verify.
type verifier struct {
	repo     *repo.Repo
	level    VerifyLevel
	parallel int
	cluster  repo.Cluster

	mu     sync.Mutex // guards report
	report Report
}

func (v *verifier) defect(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Defects = append(v.report.Defects, fmt.Sprintf(format, args...))
}

// Verify looks for everything that would make a restore fail. What it finds is in the report; an error means that it could not look.
func Verify(ctx context.Context, r *repo.Repo, level VerifyLevel, opt PlanOptions) (Report, error) {
	v := &verifier{repo: r, level: level, parallel: max(1, opt.Parallel), report: Report{Level: level, Defects: []string{}, Windows: []Window{}}}
	var err error
	if v.cluster, err = r.Cluster(ctx); err != nil {
		return v.report, err
	}
	backups, damaged, err := r.ReadableBackups(ctx)
	if err != nil {
		return v.report, err
	}
	for _, trouble := range damaged {
		v.defect("%v", trouble)
	}
	stored, err := r.StoredPacks(ctx)
	if err != nil {
		return v.report, err
	}
	for _, b := range backups {
		if err := v.backup(ctx, b.ID, stored[b.ID]); err != nil {
			return v.report, err
		}
	}
	timelines, err := r.Timelines(ctx)
	if err != nil {
		return v.report, err
	}
	if err := v.wal(ctx, timelines, backups); err != nil {
		return v.report, err
	}
	if v.report.Encrypted {
		return v.report, nil
	}
	return v.report, v.windows(ctx, opt)
}

// defectOr notes an error that says that an object is absent or damaged, and returns any other.
func (v *verifier) defectOr(err error) error {
	if errors.Is(err, repo.ErrDamaged) || errors.Is(err, repo.ErrNotExist) {
		v.defect("%v", err)
		return nil
	}
	return err
}

func (v *verifier) backup(ctx context.Context, id string, stored []repo.Pack) error {
	packs, err := v.packs(ctx, id)
	if err != nil {
		return v.defectOr(err)
	}
	v.report.Backups++
	sizes := map[string]int64{}
	for _, pack := range stored {
		sizes[pack.Key] = pack.Size
	}
	var present []repo.Pack
	for _, pack := range packs {
		size, found := sizes[pack.Key]
		switch {
		case !found:
			v.defect("backup %s: pack %s is missing", id, pack.Key)
		case size != pack.Size:
			v.defect("backup %s: pack %s has %d bytes, its manifest says %d", id, pack.Key, size, pack.Size)
		default:
			present = append(present, pack)
			v.report.Packs++
			v.report.Bytes += pack.Size
		}
	}
	if v.level != Checksum {
		return nil
	}
	return v.each(len(present), func(i int) error {
		if err := v.repo.VerifyPack(ctx, present[i]); err != nil {
			return v.defectOr(fmt.Errorf("backup %s: %w", id, err))
		}
		return nil
	})
}

// packs lists what a backup refers to. For names and sizes it is enough what an encrypted manifest says in the clear.
func (v *verifier) packs(ctx context.Context, id string) ([]repo.Pack, error) {
	manifest, err := v.repo.ReadManifest(ctx, id)
	if cannotOpen(err) && v.level == Inventory {
		v.report.Encrypted = true
		b, err := v.repo.ReadBackup(ctx, id)
		return b.Packs, err
	}
	if err != nil {
		return nil, err
	}
	return manifest.Packs, nil
}

func cannotOpen(err error) bool {
	return errors.Is(err, repo.ErrNoIdentity) || errors.Is(err, repo.ErrWrongIdentity)
}

// each calls do for 0 to n-1, some at a time, and returns the first error.
func (v *verifier) each(n int, do func(int) error) error {
	next := make(chan int)
	errs := make([]error, v.parallel)
	var workers sync.WaitGroup
	for w := range v.parallel {
		workers.Go(func() {
			for i := range next {
				if errs[w] == nil {
					errs[w] = do(i)
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	workers.Wait()
	return errors.Join(errs...)
}

// wal looks for gaps: on each timeline there should be one run, and each backup needs its own WAL.
func (v *verifier) wal(ctx context.Context, timelines []pg.Timeline, backups []repo.Backup) error {
	for _, tli := range timelines {
		inv, err := v.repo.Inventory(ctx, tli, v.cluster.SegmentSize, 0)
		if err != nil {
			return v.defectOr(err)
		}
		v.report.Segments += len(inv.Completed())
		v.report.Bytes += inv.Bytes
		runs := inv.Runs()
		for i := 1; i < len(runs); i++ {
			v.defect("timeline %d: WAL is missing from %s to %s", tli, runs[i-1].End, runs[i].Start)
		}
		if err := v.timeline(ctx, inv, runs); err != nil {
			return err
		}
	}
	for _, b := range backups {
		p, err := v.repo.Path(ctx, b.Timeline, v.cluster.SegmentSize, b.Start)
		if err != nil {
			if err := v.defectOr(err); err != nil {
				return err
			}
			continue
		}
		if end := p.Frontier(v.cluster.SegmentSize.Start(b.Start)); end < b.Stop {
			v.defect("backup %s: its WAL is there up to %s only, it needs %s", b.ID, end, b.Stop)
		}
	}
	return nil
}

// timeline checks that indexes are there, and at level checksum decodes every byte of WAL.
func (v *verifier) timeline(ctx context.Context, inv *repo.Inventory, runs []repo.Run) error {
	completed := inv.Completed()
	err := v.each(len(completed), func(i int) error {
		segment := pg.Segment{Timeline: inv.Timeline, Number: completed[i]}
		if v.level != Checksum {
			return nil
		}
		_, err := v.repo.ReadIndex(ctx, inv.Size, segment)
		if errors.Is(err, repo.ErrNotExist) {
			return nil // the newest segment's may be on its way; a restore decodes what has none
		}
		return v.defectOr(err)
	})
	if err != nil || v.level != Checksum {
		return err
	}
	for _, run := range runs {
		if err := v.decode(ctx, inv, run); err != nil {
			return err
		}
	}
	return nil
}

// decode reads a run of WAL. Behind a defect it goes on with the next segment.
func (v *verifier) decode(ctx context.Context, inv *repo.Inventory, run repo.Run) error {
	var decoder *wal.Decoder
	for at := run.Start; at < run.End; {
		segment := inv.Size.Segment(inv.Timeline, at)
		at = min(segment.End(inv.Size), run.End)
		content, err := v.repo.ReadSegment(ctx, inv.Size, segment)
		if err != nil {
			decoder = nil
			if err := v.defectOr(err); err != nil {
				return err
			}
			continue
		}
		if decoder == nil {
			decoder = wal.NewDecoder(wal.Options{Start: segment.Start(inv.Size), SegmentSize: inv.Size, SystemID: v.cluster.SystemID, Timeline: inv.Timeline},
				func(*wal.Record) error { return nil })
		}
		if _, err := decoder.Write(content); err != nil {
			v.defect("segment %s: %v", segment.Name(inv.Size), err)
			decoder = nil
		}
	}
	return nil
}

// windows adds what can be reached at all.
func (v *verifier) windows(ctx context.Context, opt PlanOptions) error {
	p := &planner{repo: v.repo, opt: opt, target: Target{Text: "any"}}
	if err := p.load(ctx); err != nil {
		return v.defectOr(err)
	}
	var e *UnreachableError
	if err := p.unreachable(ctx, "window"); errors.As(err, &e) {
		v.report.Windows = append(v.report.Windows, slices.Clone(e.Windows)...)
	} else if err != nil {
		return v.defectOr(err)
	}
	return nil
}
