package restore

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"

	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/restore/journal"
)

// stretches yields a scan of each stretch of WAL without a gap that a backup opens, from the oldest one that does.
func (p *planner) stretches() iter.Seq[scan] {
	return func(yield func(scan) bool) {
		for i, b := range p.backups {
			if i > 0 && p.frontier(p.backups[i-1]) == p.frontier(b) {
				continue // the scan from the one before has come by here
			}
			if !yield(scan{planner: p, backup: b}) {
				return
			}
		}
	}
}

func (p *planner) planLSN(ctx context.Context) (*Plan, error) {
	chosen := p.backupBefore(p.target.LSN)
	if chosen == nil {
		return nil, p.unreachable(ctx, fmt.Sprintf("the first base backup is consistent from %s on", p.backups[0].Stop))
	}
	if frontier := p.frontier(*chosen); p.target.LSN >= frontier {
		return nil, p.unreachable(ctx, fmt.Sprintf("the archive ends at %s", frontier))
	}
	s := scan{planner: p, backup: *chosen}
	found, err := s.findRecord(ctx, p.target.LSN)
	if err != nil {
		return nil, err
	}
	if found == nil {
		return p.planEnd(ctx, *chosen) // the target lies within the last record
	}
	return p.finish(ctx, &s, found)
}

func (p *planner) planPoint(ctx context.Context) (*Plan, error) {
	var points []repo.RestorePoint
	for s := range p.stretches() {
		more, err := s.restorePoints(ctx, p.target.Name)
		if err != nil {
			return nil, err
		}
		points = append(points, more...)
	}
	if len(points) == 0 {
		return nil, p.unreachable(ctx, fmt.Sprintf("no restore point of the name %q is in the archive", p.target.Name))
	}
	if len(points) > 1 {
		return nil, p.unreachable(ctx, fmt.Sprintf("%d restore points have the name %q; choose by lsn:%s (the newest) or another", len(points), p.target.Name, points[len(points)-1].At))
	}
	return p.planRecord(ctx, points[0].At)
}

// planXID stops at the end of a transaction, with it or without.
func (p *planner) planXID(ctx context.Context) (*Plan, error) {
	var ends []Xact
	for s := range p.stretches() {
		more, err := s.findXID(ctx, p.target.XID)
		if err != nil {
			return nil, err
		}
		ends = append(ends, more...)
	}
	switch len(ends) {
	case 0:
		return nil, p.unreachable(ctx, fmt.Sprintf("no transaction %d has ended in the archive behind the first base backup; it may not have ended, have written nothing, or have ended before", p.target.XID))
	case 1:
	default:
		return nil, p.unreachable(ctx, fmt.Sprintf("%d transactions have had the id %d, which comes again after four billion; choose by lsn: %s", len(ends), p.target.XID, listed(ends)))
	}
	if p.target.Kind == BeforeXID {
		return p.planBefore(ctx, ends[0].LSN)
	}
	if !ends[0].Committed {
		p.warnings = append(p.warnings, fmt.Sprintf("transaction %d was rolled back", p.target.XID))
	}
	return p.planRecord(ctx, ends[0].LSN)
}

func listed(ends []Xact) string {
	var texts []string
	for _, x := range ends {
		texts = append(texts, x.String())
	}
	return strings.Join(texts, "; ")
}

// planDrop stops before the commit that drops a relation. Several that bear the name are several tables: which one is meant nobody can guess.
func (p *planner) planDrop(ctx context.Context) (*Plan, error) {
	drops, err := journal.Drops(ctx, p.repo, journal.Options{Timeline: p.path.Tip, Relation: p.target.Relation, After: p.backups[0].Start, Parallel: p.opt.Parallel})
	if err != nil {
		return nil, fmt.Errorf("look for the drop of %s: %w", p.target.Relation, err)
	}
	drops = slices.DeleteFunc(drops, func(d journal.Drop) bool { return p.backupBefore(d.LSN) == nil })
	switch len(drops) {
	case 0:
		return nil, p.unreachable(ctx, fmt.Sprintf("the archive has no drop of %q behind the first base backup; `pitr log --destructive` lists what it has", p.target.Relation))
	case 1:
		return p.planBefore(ctx, drops[0].LSN)
	}
	var texts []string
	for _, d := range drops {
		texts = append(texts, fmt.Sprintf("--before-xid %d (%s at %s)", d.XID, d.Relation, d.Time.UTC().Format("2006-01-02 15:04:05.000000Z07:00")))
	}
	return nil, p.unreachable(ctx, fmt.Sprintf("%q was dropped %d times; choose: %s", p.target.Relation, len(drops), strings.Join(texts, ", ")))
}

// planRecord stops behind the record that begins at a position.
func (p *planner) planRecord(ctx context.Context, lsn pg.LSN) (*Plan, error) {
	chosen := p.backupBefore(lsn)
	if chosen == nil {
		return nil, p.unreachable(ctx, fmt.Sprintf("it lies at %s, and the first base backup is consistent from %s on", lsn, p.backups[0].Stop))
	}
	s := scan{planner: p, backup: *chosen}
	found, err := s.findRecord(ctx, lsn)
	if err == nil && found == nil {
		err = fmt.Errorf("the record at %s was not found: %w", lsn, repo.ErrDamaged)
	}
	if err != nil {
		return nil, err
	}
	return p.finish(ctx, &s, found)
}

// planBefore stops before the record that begins at a position.
func (p *planner) planBefore(ctx context.Context, lsn pg.LSN) (*Plan, error) {
	chosen := p.backupBefore(lsn)
	if chosen == nil {
		return nil, p.unreachable(ctx, fmt.Sprintf("it lies at %s, and the first base backup is consistent from %s on", lsn, p.backups[0].Stop))
	}
	s := scan{planner: p, backup: *chosen}
	found, err := s.findBefore(ctx, lsn)
	if err == nil && found.lsn == 0 {
		err = fmt.Errorf("the record at %s was not found: %w", lsn, repo.ErrDamaged)
	}
	if err != nil {
		return nil, err
	}
	return p.finish(ctx, &s, found)
}
