package archiver

import (
	"context"
	"fmt"
	"slices"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// Retention says what must stay restorable.
type Retention struct {
	Window  time.Duration
	Minimum int
}

// Expiry is the plan of what is not needed any more: a value that can be printed before it is carried out.
type Expiry struct {
	Keep    []repo.Backup
	Expire  []repo.Backup
	WALFrom pg.LSN // WAL before it is not needed by any backup that is kept; zero: all is
}

// PlanExpiry keeps the newest Minimum backups, every backup that ended within the window, and the newest that ended before it, which a
// restore to the window's first second needs.
func PlanExpiry(backups []repo.Backup, now time.Time, r Retention) Expiry {
	sorted := slices.Clone(backups)
	slices.SortFunc(sorted, func(a, b repo.Backup) int { return a.StopTime.Compare(b.StopTime) })
	horizon := now.Add(-r.Window)
	first := 0 // of those that are kept
	for i, b := range sorted {
		if !b.StopTime.After(horizon) {
			first = i
		}
	}
	first = max(0, min(first, len(sorted)-r.Minimum))
	plan := Expiry{Expire: sorted[:first:first], Keep: sorted[first:]}
	for i, b := range plan.Keep {
		if start := b.SegmentSize.Start(b.Start); i == 0 || start < plan.WALFrom {
			plan.WALFrom = start
		}
	}
	return plan
}

// orphanAge is how old the packs of a backup without manifest must be before they are swept: no backup takes longer.
const orphanAge = 7 * 24 * time.Hour

// CarryOut deletes what the plan says: manifests first, then packs, then WAL. What a kill leaves behind, the next one removes.
func (e Expiry) CarryOut(ctx context.Context, r *repo.Repo, now time.Time) (removed int, err error) {
	packs, err := r.StoredPacks(ctx)
	if err != nil {
		return 0, err
	}
	// A backup may refer to packs of an earlier one: those stay as long as it does.
	needed := map[string]bool{}
	for _, b := range e.Keep {
		for _, pack := range b.Packs {
			needed[pack.Key] = true
		}
	}
	for id := range packs {
		packs[id] = slices.DeleteFunc(packs[id], func(pack repo.Pack) bool { return needed[pack.Key] })
		if len(packs[id]) == 0 {
			delete(packs, id)
		}
	}
	for _, b := range e.Expire {
		if err := r.DeleteBackup(ctx, b.ID, packs[b.ID]); err != nil {
			return removed, err
		}
		removed += 1 + len(packs[b.ID])
		delete(packs, b.ID)
	}
	for _, b := range e.Keep {
		delete(packs, b.ID)
	}
	for id, orphans := range packs {
		began, err := time.Parse(BackupIDLayout, id)
		if err != nil || now.Sub(began) < orphanAge {
			continue // a backup that is running, or that we do not know
		}
		if err := r.DeleteBackup(ctx, id, orphans); err != nil {
			return removed, err
		}
		removed += len(orphans)
	}
	if e.WALFrom == 0 {
		return removed, nil
	}
	n, err := expireWAL(ctx, r, e.WALFrom)
	return removed + n, err
}

// expireWAL removes whole segments, their indexes, stray parts and idle clocks before a position, on every timeline.
func expireWAL(ctx context.Context, r *repo.Repo, before pg.LSN) (removed int, err error) {
	cluster, err := r.Cluster(ctx)
	if err != nil {
		return 0, err
	}
	timelines, err := r.Timelines(ctx)
	if err != nil {
		return 0, err
	}
	for _, tli := range timelines {
		inv, err := r.Inventory(ctx, tli, cluster.SegmentSize, 0)
		if err != nil {
			return removed, err
		}
		n, err := expireInventory(ctx, r, inv, before)
		if removed += n; err == nil {
			n, err = expireClocks(ctx, r, tli, before)
			removed += n
		}
		if err == nil {
			n, err = expireCatalogs(ctx, r, tli, before)
			removed += n
		}
		if err != nil {
			return removed, fmt.Errorf("expire WAL of timeline %d: %w", tli, err)
		}
	}
	return removed, nil
}

func expireInventory(ctx context.Context, r *repo.Repo, inv *repo.Inventory, before pg.LSN) (removed int, err error) {
	for _, number := range inv.Segments {
		segment := pg.Segment{Timeline: inv.Timeline, Number: number}
		if segment.End(inv.Size) > before {
			break
		}
		if err := r.DeleteSegment(ctx, inv.Size, segment); err != nil {
			return removed, err
		}
		removed++
	}
	for number, parts := range inv.Parts {
		segment := pg.Segment{Timeline: inv.Timeline, Number: number}
		if segment.End(inv.Size) <= before { // a large one, which is in parts for ever, has an index too
			if err := r.DeleteSegment(ctx, inv.Size, segment); err != nil {
				return removed, err
			}
		}
		for _, part := range parts {
			if part.End > before {
				continue
			}
			if err := r.DeletePart(ctx, inv.Size, part); err != nil {
				return removed, err
			}
			removed++
		}
	}
	return removed, nil
}

// expireCatalogs keeps the last catalog before the position: it names what lies behind it until the next.
func expireCatalogs(ctx context.Context, r *repo.Repo, tli pg.Timeline, before pg.LSN) (removed int, err error) {
	catalogs, err := r.Catalogs(ctx, tli)
	if err != nil {
		return 0, err
	}
	for i, catalog := range catalogs {
		if i+1 == len(catalogs) || catalogs[i+1].LSN > before {
			break
		}
		if err := r.DeleteCatalog(ctx, catalog); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}

func expireClocks(ctx context.Context, r *repo.Repo, tli pg.Timeline, before pg.LSN) (removed int, err error) {
	clocks, err := r.Clocks(ctx, tli)
	if err != nil {
		return 0, err
	}
	for _, clock := range clocks {
		if clock.LSN >= before {
			break
		}
		if err := r.DeleteClock(ctx, tli, clock); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}
