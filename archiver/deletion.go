package archiver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// orphanAge is how old the packs of a backup without manifest must be before they are swept: no backup takes longer.
const orphanAge = 7 * 24 * time.Hour

// Expired is what carrying out a plan has done.
type Expired struct {
	Removed  int // objects
	Retained int // objects that stay, since the store retains them
}

// CarryOut does what the plan says: tombstones first; then, of what has had one for long enough, manifests, packs, and WAL. What a kill leaves
// behind, the next one removes, and so it does with what the store still retains. repo.ErrDenied says that these credentials may not delete.
func (e Expiry) CarryOut(ctx context.Context, r *repo.Repo, now time.Time) (Expired, error) {
	var done removal
	err := e.carryOut(ctx, r, now, &done)
	return Expired(done), err
}

func (e Expiry) carryOut(ctx context.Context, r *repo.Repo, now time.Time, done *removal) error {
	for _, b := range slices.Concat(e.Condemn, e.Expire) {
		if err := r.PutTombstone(ctx, b.ID, repo.Tombstone{Since: now.UTC()}); err != nil {
			return err
		}
	}
	for _, id := range e.Pardon {
		if err := done.note(r.DeleteTombstone(ctx, id)); err != nil {
			return err
		}
	}
	// A backup that begins from here on sees the tombstones; whatever has begun before is seen here, as running or with its manifest.
	c, err := LoadCatalogue(ctx, r)
	if err != nil {
		return err
	}
	packs, err := r.StoredPacks(ctx)
	if err != nil {
		return err
	}
	// What the plan did not know, since it has happened meanwhile, counts too.
	fresh := PlanExpiry(c, now, e.retention)
	d := deletion{now: now, used: usedByRunning(c, now), running: stillRunning(c, now), gone: map[string]bool{}, why: fresh.Why, wal: fresh}
	d.wal.WALFrom, d.wal.Islands = min(e.WALFrom, fresh.WALFrom), slices.Concat(e.Islands, fresh.Islands)
	for _, b := range c.Backups {
		is := func(dead repo.Backup) bool { return dead.ID == b.ID }
		dies := slices.ContainsFunc(e.Expire, is) && slices.ContainsFunc(fresh.Expire, is)
		if dies {
			// Removing the one before may have taken long; whoever keeps this one is told that it was kept if the manifest is still there.
			keeps, err := r.Keeps(ctx)
			if err != nil {
				return err
			}
			_, kept := keeps[b.ID]
			dies = !kept
		}
		if dies {
			retained := done.Retained
			if err := done.note(r.DeleteBackup(ctx, b.ID, nil)); err != nil {
				return err
			}
			if done.Retained == retained {
				d.gone[b.ID] = true
				continue
			}
		}
		d.stay(b) // it exists, and so needs what it needs
	}
	if err := d.packs(ctx, r, packs, done); err != nil {
		return err
	}
	for id := range d.gone {
		if err := done.note(r.DeleteTombstone(ctx, id)); err != nil {
			return err
		}
	}
	if err := e.tidyNotes(ctx, r, c, now, done); err != nil || d.wal.WALFrom == 0 {
		return err
	}
	return expireWAL(ctx, r, d.wal, done)
}

// deletion is what is being carried out.
type deletion struct {
	now     time.Time
	used    map[string]bool // by backups that are being taken
	running []repo.Running  // these
	gone    map[string]bool // manifests that were removed
	kept    []repo.Backup
	why     map[string]string
	wal     Expiry // which WAL is needed
}

// stay adds what a backup needs that is there, whether the plan knew of it or not.
func (d *deletion) stay(b repo.Backup) {
	d.kept = append(d.kept, b)
	if start := b.SegmentSize.Start(b.Start); d.why[b.ID] != byHand && start < d.wal.WALFrom {
		d.wal.WALFrom = start
	}
}

// packs removes those that no manifest refers to: of backups that have gone, and of those that were given up.
func (d *deletion) packs(ctx context.Context, r *repo.Repo, packs map[string][]repo.Pack, done *removal) error {
	// A backup may refer to packs of an earlier one: those stay as long as it does.
	needed, kept := map[string]bool{}, map[string]bool{}
	for _, b := range d.kept {
		kept[b.ID] = true
		for _, pack := range b.Packs {
			needed[pack.Key] = true
		}
	}
	for id, stored := range packs {
		if kept[id] || d.used[id] || !d.gone[id] && (!orphaned(id, d.now) || d.built(id)) {
			continue
		}
		unneeded := slices.DeleteFunc(stored, func(pack repo.Pack) bool { return needed[pack.Key] })
		for _, pack := range unneeded {
			if err := done.note(r.DeletePack(ctx, pack)); err != nil {
				return err
			}
		}
	}
	return nil
}

// built reports whether a backup that is being taken may refer to the packs of one that was interrupted: they were young enough when it began.
func (d *deletion) built(id string) bool {
	began, err := time.Parse(BackupIDLayout, id)
	return err == nil && slices.ContainsFunc(d.running, func(r repo.Running) bool { return r.Since.Sub(began) < orphanReuse })
}

// readingsKept is for how long it is told what reading the repository has shown.
const readingsKept = 400 * 24 * time.Hour

// tidyNotes removes what was said about backups that are gone.
func (e Expiry) tidyNotes(ctx context.Context, r *repo.Repo, c Catalogue, now time.Time, done *removal) error {
	exists := map[string]bool{}
	for _, b := range c.Backups {
		exists[b.ID] = true
	}
	for id := range c.Keeps {
		if exists[id] {
			continue
		}
		if err := done.note(r.DeleteKeep(ctx, id)); err != nil {
			return err
		}
	}
	for id := range c.Running {
		if !exists[id] && !orphaned(id, now) {
			continue
		}
		if err := done.note(r.EndBackup(ctx, id)); err != nil {
			return err
		}
	}
	removed, err := r.DeleteProofs(ctx, func(id string) bool { return exists[id] }, now.Add(-readingsKept))
	done.Removed += removed
	return err
}

// orphaned reports whether packs without a manifest are too old to be those of a backup that is running.
func orphaned(id string, now time.Time) bool {
	began, err := time.Parse(BackupIDLayout, id)
	return err == nil && now.Sub(began) >= orphanAge
}

// expireWAL removes whole segments, their indexes, stray parts and idle clocks that a plan does not need, on every timeline.
func expireWAL(ctx context.Context, r *repo.Repo, plan Expiry, done *removal) error {
	before := plan.WALFrom
	cluster, err := r.Cluster(ctx)
	if err != nil {
		return err
	}
	timelines, err := r.Timelines(ctx)
	if err != nil {
		return err
	}
	for _, tli := range timelines {
		inv, err := r.Inventory(ctx, tli, cluster.SegmentSize, 0)
		if err != nil {
			return err
		}
		err = expireInventory(ctx, r, inv, plan, done)
		if err == nil {
			err = expireClocks(ctx, r, tli, before, done)
		}
		if err == nil {
			err = expireCatalogs(ctx, r, tli, before, done)
		}
		if err == nil {
			err = expireGaps(ctx, r, tli, before, done)
		}
		if err == nil {
			err = expireRefused(ctx, r, tli, before, done)
		}
		if err != nil {
			return fmt.Errorf("expire WAL of timeline %d: %w", tli, err)
		}
	}
	return nil
}

func expireInventory(ctx context.Context, r *repo.Repo, inv *repo.Inventory, plan Expiry, done *removal) error {
	for _, number := range inv.Segments {
		segment := pg.Segment{Timeline: inv.Timeline, Number: number}
		if plan.needs(segment.Start(inv.Size), segment.End(inv.Size)) {
			continue
		}
		if err := done.note(r.DeleteSegment(ctx, inv.Size, segment)); err != nil {
			return err
		}
	}
	for number, parts := range inv.Parts {
		segment := pg.Segment{Timeline: inv.Timeline, Number: number}
		if !plan.needs(segment.Start(inv.Size), segment.End(inv.Size)) && !inv.HasSegment(number) { // a large one, which is in parts for ever, has an index too
			if err := r.DeleteSegment(ctx, inv.Size, segment); err != nil && !errors.Is(err, repo.ErrLocked) {
				return err
			}
		}
		for _, part := range parts {
			if plan.needs(segment.Start(inv.Size), part.End) {
				continue
			}
			if err := done.note(r.DeletePart(ctx, inv.Size, part)); err != nil {
				return err
			}
		}
	}
	return nil
}

// expireCatalogs keeps the last catalog before the position: it names what lies behind it until the next.
func expireCatalogs(ctx context.Context, r *repo.Repo, tli pg.Timeline, before pg.LSN, done *removal) error {
	catalogs, err := r.Catalogs(ctx, tli)
	if err != nil {
		return err
	}
	for i, catalog := range catalogs {
		if i+1 == len(catalogs) || catalogs[i+1].LSN > before {
			break
		}
		if err := done.note(r.DeleteCatalog(ctx, catalog)); err != nil {
			return err
		}
	}
	return nil
}

func expireGaps(ctx context.Context, r *repo.Repo, tli pg.Timeline, before pg.LSN, done *removal) error {
	gaps, err := r.Gaps(ctx, tli)
	if err != nil {
		return err
	}
	for _, gap := range gaps {
		if gap.To > before {
			break
		}
		if err := done.note(r.DeleteGap(ctx, gap)); err != nil {
			return err
		}
	}
	return nil
}

func expireRefused(ctx context.Context, r *repo.Repo, tli pg.Timeline, before pg.LSN, done *removal) error {
	refused, err := r.Refused(ctx, tli)
	if err != nil {
		return err
	}
	for _, at := range refused {
		if at >= before {
			break
		}
		if err := done.note(r.DeleteRefused(ctx, tli, at)); err != nil {
			return err
		}
	}
	return nil
}

func expireClocks(ctx context.Context, r *repo.Repo, tli pg.Timeline, before pg.LSN, done *removal) error {
	clocks, err := r.Clocks(ctx, tli)
	if err != nil {
		return err
	}
	for _, clock := range clocks {
		if clock.LSN >= before {
			break
		}
		if err := done.note(r.DeleteClock(ctx, tli, clock)); err != nil {
			return err
		}
	}
	return nil
}
