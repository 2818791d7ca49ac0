package archiver

import (
	"cmp"
	"context"
	"slices"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// Retention says what must stay restorable.
type Retention struct {
	Window  time.Duration
	Minimum int
	Grace   time.Duration // how long a backup that is not needed any more stays, with a tombstone
}

// Catalogue is what an expiry decides by: everything that the repository says about its backups.
type Catalogue struct {
	Backups    []repo.Backup
	Keeps      map[string]repo.Keep
	Tombstones map[string]repo.Tombstone
	Running    map[string]repo.Running
	Proven     string         // the backup whose restore was proven last; "": none
	Timelines  []pg.Timeline  // all of the repository
	Tip        pg.Timeline    // the newest
	History    pg.History     // of the newest
	segment    pg.SegmentSize // of the cluster
}

// LoadCatalogue reads it. What is running is read before the backups: one that ends meanwhile is seen as one or as the other.
func LoadCatalogue(ctx context.Context, r *repo.Repo) (c Catalogue, err error) {
	cluster, err := r.Cluster(ctx)
	if err != nil {
		return c, err
	}
	c.segment = cluster.SegmentSize
	if c.Tombstones, err = r.Tombstones(ctx); err != nil {
		return c, err
	}
	if c.Running, err = r.RunningBackups(ctx); err != nil {
		return c, err
	}
	if c.Keeps, err = r.Keeps(ctx); err != nil {
		return c, err
	}
	if c.Backups, err = r.Backups(ctx); err != nil {
		return c, err
	}
	proofs, err := r.Proofs(ctx)
	if err != nil {
		return c, err
	}
	for _, p := range slices.Backward(proofs) {
		if p.OK && slices.ContainsFunc(c.Backups, func(b repo.Backup) bool { return b.ID == p.Backup }) {
			c.Proven = p.Backup
			break
		}
	}
	if c.Timelines, err = r.Timelines(ctx); err != nil || len(c.Timelines) == 0 {
		return c, err
	}
	c.Tip = slices.Max(c.Timelines)
	c.History, err = r.History(ctx, c.Tip)
	return c, err
}

// onPath reports whether a backup leads to the newest timeline.
func (c Catalogue) onPath(b repo.Backup) bool {
	return c.Tip == 0 || b.Timeline == 0 || c.History.TimelineAt(c.Tip, max(b.Stop, 1)-1) == b.Timeline
}

// Expiry is the plan of what is not needed any more: a value that can be printed before it is carried out. Every backup is in exactly one of Keep,
// Condemn, Wait and Expire.
type Expiry struct {
	Keep    []repo.Backup     // oldest first
	Why     map[string]string // the retention's reason for each that is kept
	Condemn []repo.Backup     // not needed any more: they get a tombstone
	Wait    []repo.Backup     // have a tombstone that is too young, or a running backup refers to them
	Expire  []repo.Backup     // are removed
	Pardon  []string          // tombstones of backups that are needed again, or gone
	WALFrom pg.LSN            // WAL before it is not needed; zero: all is
	Islands []Island          // WAL before it that single backups need all the same, in order

	retention Retention
}

// Island is a stretch of WAL that a backup outside of the window needs to be consistent.
type Island struct{ From, To pg.LSN }

// Stay are the backups that exist when the plan was carried out, oldest first.
func (e Expiry) Stay() []repo.Backup {
	all := slices.Concat(e.Keep, e.Condemn, e.Wait)
	slices.SortFunc(all, func(a, b repo.Backup) int { return a.StopTime.Compare(b.StopTime) })
	return all
}

// needs reports whether a plan needs WAL of a stretch.
func (e Expiry) needs(from, to pg.LSN) bool {
	return e.WALFrom == 0 || to > e.WALFrom || slices.ContainsFunc(e.Islands, func(i Island) bool { return from < i.To && i.From < to })
}

// Reasons for which a backup stays.
const (
	inWindow    = "it ended within the window"
	opensWindow = "the window's first second needs it"
	ofMinimum   = "backup.retention.minimum"
	lastProven  = "no later one is proven"
	byHand      = "kept by hand"
)

// PlanExpiry keeps every backup that ended within the window; of those that lead to the newest timeline the newest that ended before it, which a restore
// to the window's first second needs, and the newest Minimum; the one that was proven last; and what is kept by hand. The last needs only
// the WAL that makes it consistent, once it is older than all that.
func PlanExpiry(c Catalogue, now time.Time, r Retention) Expiry {
	sorted := slices.Clone(c.Backups)
	slices.SortFunc(sorted, func(a, b repo.Backup) int { return cmp.Or(a.StopTime.Compare(b.StopTime), cmp.Compare(a.ID, b.ID)) })
	plan := Expiry{Why: map[string]string{}, retention: r}
	plan.retain(c, sorted, now, r)
	used := usedByRunning(c, now)
	for _, b := range sorted {
		_, why := plan.Why[b.ID]
		tombstone, condemned := c.Tombstones[b.ID]
		switch {
		case why:
			plan.Keep = append(plan.Keep, b)
			if condemned {
				plan.Pardon = append(plan.Pardon, b.ID)
			}
		case !condemned && r.Grace > 0:
			plan.Condemn = append(plan.Condemn, b)
		case now.Sub(tombstone.Since) < r.Grace, used[b.ID]:
			plan.Wait = append(plan.Wait, b)
		default:
			plan.Expire = append(plan.Expire, b)
		}
	}
	for id := range c.Tombstones {
		if !slices.ContainsFunc(sorted, func(b repo.Backup) bool { return b.ID == id }) {
			plan.Pardon = append(plan.Pardon, id)
		}
	}
	slices.Sort(plan.Pardon)
	plan.keepWAL()
	return plan
}

// retain finds the reasons for which backups stay. They are sorted.
func (e *Expiry) retain(c Catalogue, sorted []repo.Backup, now time.Time, r Retention) {
	horizon := now.Add(-r.Window)
	onPath := slices.DeleteFunc(slices.Clone(sorted), func(b repo.Backup) bool { return !c.onPath(b) })
	opening := -1
	for i, b := range onPath {
		if !b.StopTime.After(horizon) {
			opening = i
		}
	}
	for id := range c.Keeps {
		e.Why[id] = byHand
	}
	if c.Proven != "" {
		e.Why[c.Proven] = lastProven
	}
	for i := max(0, len(onPath)-max(1, r.Minimum)); i < len(onPath); i++ {
		e.Why[onPath[i].ID] = ofMinimum
	}
	if opening >= 0 {
		e.Why[onPath[opening].ID] = opensWindow
	}
	for _, b := range sorted {
		if b.StopTime.After(horizon) {
			e.Why[b.ID] = inWindow
		}
	}
	if len(onPath) == 0 { // whatever this is, the last backup is not what to remove
		for _, b := range sorted {
			e.Why[b.ID] = ofMinimum
		}
	}
}

// usedByRunning are the backups whose packs one that is being taken may refer to. A mark that is older than any backup takes means nothing.
func usedByRunning(c Catalogue, now time.Time) map[string]bool {
	used := map[string]bool{}
	for _, running := range stillRunning(c, now) {
		for _, base := range running.Bases {
			used[base] = true
		}
	}
	return used
}

func stillRunning(c Catalogue, now time.Time) (list []repo.Running) {
	for id, running := range c.Running {
		ended := slices.ContainsFunc(c.Backups, func(b repo.Backup) bool { return b.ID == id }) // its manifest says what it refers to
		if !ended && !orphaned(id, now) {
			list = append(list, running)
		}
	}
	return list
}

// keepWAL finds out which WAL is needed. Backups that wait for their end need theirs: a restore from one may be under way.
func (e *Expiry) keepWAL() {
	first := true
	for _, b := range slices.Concat(e.Keep, e.Condemn, e.Wait) {
		if e.Why[b.ID] == byHand {
			e.Islands = append(e.Islands, Island{b.SegmentSize.Start(b.Start), b.Stop})
			continue
		}
		if start := b.SegmentSize.Start(b.Start); first || start < e.WALFrom {
			e.WALFrom, first = start, false
		}
	}
	if first { // nothing but what is kept by hand, or nothing at all
		e.WALFrom = 0
	}
	e.Islands = slices.DeleteFunc(e.Islands, func(i Island) bool { return i.From >= e.WALFrom })
	slices.SortFunc(e.Islands, func(a, b Island) int { return cmp.Compare(a.From, b.From) })
}
