package restore

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"time"

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

// VerifyOptions says what Verify reads.
type VerifyOptions struct {
	Level VerifyLevel
	Slice int // of Of: at level checksum only the objects of one slice are read; names and sizes are compared of all
	Of    int // zero: all objects are read
	Plan  PlanOptions
}

// has reports whether an object is in the slice that is read. docs/FORMAT.md, "Proofs".
func (opt VerifyOptions) has(key string) bool {
	return opt.Of <= 1 || crc32.Checksum([]byte(key), crc32.MakeTable(crc32.Castagnoli))%uint32(opt.Of) == uint32(opt.Slice)
}

// Report is what a verification has found.
type Report struct {
	Level    VerifyLevel `json:"level"`
	Backups  int         `json:"backups"`
	Packs    int         `json:"packs"`
	Segments int         `json:"wal_segments"`
	Bytes    int64       `json:"stored_bytes"` // looked at
	Read     int         `json:"objects_read"` // at level checksum
	ReadSize int64       `json:"bytes_read"`
	Windows  []Window    `json:"windows"` // that can be reached
	Defects  []string    `json:"defects"`

	Encrypted bool `json:"encrypted,omitempty"` // and not to be opened here: the windows are not known
}

// verifier is the state of one Verify.
type verifier struct {
	repo     *repo.Repo
	opt      VerifyOptions
	level    VerifyLevel
	parallel int
	cluster  repo.Cluster
	keeps    map[string]repo.Keep
	uses     map[string]*packUse // what backups refer to, by pack: several refer to one

	mu     sync.Mutex // guards report
	report Report
}

func (v *verifier) defect(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Defects = append(v.report.Defects, fmt.Sprintf(format, args...))
}

// Verify looks for everything that would make a restore fail. What it finds is in the report; an error means that it could not look.
func Verify(ctx context.Context, r *repo.Repo, opt VerifyOptions) (Report, error) {
	v := &verifier{repo: r, opt: opt, level: opt.Level, parallel: max(1, opt.Plan.Parallel), uses: map[string]*packUse{}, report: Report{Level: opt.Level, Defects: []string{}, Windows: []Window{}}}
	var err error
	if v.cluster, err = r.Cluster(ctx); err != nil {
		return v.report, err
	}
	if v.keeps, err = r.Keeps(ctx); err != nil {
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
	sizes := map[string]int64{}
	for _, packs := range stored {
		for _, pack := range packs {
			sizes[pack.Key] = pack.Size
		}
	}
	for _, b := range backups {
		if err := v.backup(ctx, b.ID, sizes); err != nil {
			return v.report, err
		}
	}
	if err := v.readPacks(ctx); err != nil {
		return v.report, err
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
	windows, err := Reachable(ctx, r, opt.Plan)
	v.report.Windows = append(v.report.Windows, windows...)
	return v.report, v.defectOr(err)
}

// defectOr notes an error that says that an object is absent or damaged, and returns any other.
func (v *verifier) defectOr(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, repo.ErrDamaged) || errors.Is(err, repo.ErrNotExist) {
		v.defect("%v", err)
		return nil
	}
	return err
}

// read counts an object that is read.
func (v *verifier) read(size int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Read++
	v.report.ReadSize += size
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
		noted, err := v.repo.Gaps(ctx, tli)
		if err != nil {
			if err := v.defectOr(err); err != nil {
				return err
			}
		}
		runs := inv.Runs()
		for i := 1; i < len(runs); i++ {
			if v.expired(runs[i].Start, backups) {
				continue
			}
			v.defect("timeline %d: WAL is missing from %s to %s%s", tli, runs[i-1].End, runs[i].Start, why(noted, runs[i-1].End, runs[i].Start))
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

// expired reports whether WAL before a position may have gone, since nothing but backups that are kept by hand lies before it: they need only what makes
// them consistent, which is looked for by itself.
func (v *verifier) expired(before pg.LSN, backups []repo.Backup) bool {
	kept := 0
	for _, b := range backups {
		if b.Start >= before {
			continue
		}
		if _, byHand := v.keeps[b.ID]; !byHand {
			return false
		}
		kept++
	}
	return kept > 0
}

// why says what was noted of a hole.
func why(noted []repo.Gap, from, to pg.LSN) string {
	for _, gap := range noted {
		if gap.From < to && from < gap.To {
			return fmt.Sprintf("; noticed %s: %s", gap.Noticed.Format(time.RFC3339), gap.Reason)
		}
	}
	return ""
}

// timeline checks that indexes are there, and at level checksum decodes every byte of WAL.
func (v *verifier) timeline(ctx context.Context, inv *repo.Inventory, runs []repo.Run) error {
	completed := slices.DeleteFunc(inv.Completed(), func(number uint64) bool { return !v.inSlice(inv, number) })
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
		if !v.inSlice(inv, segment.Number) {
			decoder = nil
			continue
		}
		content, err := v.repo.ReadSegment(ctx, inv.Size, segment)
		if err != nil {
			decoder = nil
			if err := v.defectOr(err); err != nil {
				return err
			}
			continue
		}
		v.read(int64(len(content)))
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

// inSlice reports whether a segment is to be read.
func (v *verifier) inSlice(inv *repo.Inventory, number uint64) bool {
	return v.opt.has(pg.Segment{Timeline: inv.Timeline, Number: number}.Name(inv.Size))
}
