// Package restore brings a data directory back from the repository. It first makes a Plan, a value that says exactly what will be
// included, and refuses before anything is downloaded what cannot be reached. Then it fetches, verifies and writes; global/pg_control
// comes last, so that an unfinished restore cannot start (law 5). docs/ARCHITECTURE.md, "The restore".
package restore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// Plan is what a restore will do.
type Plan struct {
	Target   string      `json:"target"`
	Backup   repo.Backup `json:"-"`
	BackupID string      `json:"backup"`
	SystemID pg.SystemID `json:"system_identifier,string"`
	Timeline pg.Timeline `json:"timeline"`  // the recovery follows the way to it
	StopLSN  pg.LSN      `json:"stop_lsn"`  // recovery_target_lsn
	StopAt   bool        `json:"inclusive"` // recovery_target_inclusive: whether the record at StopLSN is replayed

	LastIncluded  *Xact `json:"last_included"`  // nil: no transaction has ended behind the backup's start
	FirstExcluded *Xact `json:"first_excluded"` // nil: the archive holds none
	LeftBehind    int   `json:"left_behind"`    // commits and aborts in the archive that are not included

	BackupBytes int64    `json:"backup_bytes"` // of the files
	FetchBytes  int64    `json:"fetch_bytes"`  // of the packs
	WALBytes    int64    `json:"wal_bytes"`    // to be replayed
	Segments    int      `json:"wal_segments"`
	Warnings    []string `json:"warnings,omitempty"`
}

// Xact is the end of a transaction.
type Xact struct {
	XID       uint32    `json:"xid"`
	Time      time.Time `json:"time"`
	LSN       pg.LSN    `json:"lsn"`
	Committed bool      `json:"committed"`
}

func (x Xact) String() string {
	kind := "commit"
	if !x.Committed {
		kind = "abort"
	}
	return fmt.Sprintf("%s of xid %d at %s, LSN %s", kind, x.XID, x.Time.UTC().Format("2006-01-02 15:04:05.000000Z07:00"), x.LSN)
}

// Window is a stretch of time that can be reached.
type Window struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

// String prints whole seconds that are certainly inside.
func (w Window) String() string {
	from := w.From.UTC().Add(time.Second - time.Nanosecond).Truncate(time.Second)
	return from.Format("2006-01-02 15:04:05Z07:00") + " to " + w.To.UTC().Truncate(time.Second).Format("2006-01-02 15:04:05Z07:00")
}

// UnreachableError says why a target cannot be reached and what can.
type UnreachableError struct {
	Target  string
	Reason  string
	Windows []Window
}

func (e *UnreachableError) Error() string {
	text := fmt.Sprintf("target %s cannot be reached: %s", e.Target, e.Reason)
	if len(e.Windows) == 0 {
		return text
	}
	var windows []string
	for _, w := range e.Windows {
		windows = append(windows, w.String())
	}
	return text + "; any second can be reached from " + strings.Join(windows, ", and from ")
}

// PlanOptions narrows what NewPlan may choose.
type PlanOptions struct {
	Timeline pg.Timeline // zero: the newest
	Now      time.Time
	Parallel int
}

// planner is the state of one NewPlan.
type planner struct {
	repo    *repo.Repo
	opt     PlanOptions
	target  Target
	path    *repo.Path
	backups []repo.Backup // on the path, oldest first

	warnings []string
}

// NewPlan finds the backup and the position that a target means. It reads names, indexes and, around the target, a little WAL.
func NewPlan(ctx context.Context, r *repo.Repo, target Target, opt PlanOptions) (*Plan, error) {
	p := &planner{repo: r, opt: opt, target: target}
	if target.Kind == AtTime && target.Time.After(opt.Now) {
		return nil, p.unreachable(ctx, fmt.Sprintf("it lies in the future; it is %s now", opt.Now.UTC().Format("2006-01-02 15:04:05Z07:00")))
	}
	if err := p.load(ctx); err != nil {
		return nil, err
	}
	if len(p.backups) == 0 {
		reason := append([]string{"the repository has no base backup on the way to this timeline"}, p.warnings...)
		return nil, p.unreachable(ctx, strings.Join(reason, "; "))
	}
	switch target.Kind {
	case AtTime:
		return p.planTime(ctx)
	case AtLSN:
		return p.planLSN(ctx)
	case AtPoint:
		return p.planPoint(ctx)
	default:
		newest := p.backups[len(p.backups)-1]
		return p.planEnd(ctx, newest)
	}
}

// load reads the names of what there is on the way to the timeline.
func (p *planner) load(ctx context.Context) error {
	cluster, err := p.repo.Cluster(ctx)
	if errors.Is(err, repo.ErrNotExist) {
		return &UnreachableError{Target: p.target.Text, Reason: "the repository is empty; do archive.store and cluster name the right place?"}
	}
	if err != nil {
		return err
	}
	timelines, err := p.repo.Timelines(ctx)
	if err != nil {
		return err
	}
	tip := slices.Max(timelines)
	if p.opt.Timeline != 0 {
		if !slices.Contains(timelines, p.opt.Timeline) {
			return &UnreachableError{Target: p.target.Text, Reason: fmt.Sprintf("the repository has no timeline %d", p.opt.Timeline)}
		}
		tip = p.opt.Timeline
	}
	all, damaged, err := p.repo.ReadableBackups(ctx)
	if err != nil {
		return err
	}
	for _, trouble := range damaged {
		p.warnings = append(p.warnings, fmt.Sprintf("a backup cannot be used: %v", trouble))
	}
	from := pg.LSN(0)
	if len(all) > 0 {
		from = slices.MinFunc(all, func(a, b repo.Backup) int { return compare(a.Start, b.Start) }).Start
	}
	if p.path, err = p.repo.Path(ctx, tip, cluster.SegmentSize, cluster.SegmentSize.Start(from)); err != nil {
		return err
	}
	for _, b := range all {
		if p.path.Contains(b.Timeline, b.Stop) && p.frontier(b) >= b.Stop {
			p.backups = append(p.backups, b)
		}
	}
	slices.SortFunc(p.backups, func(a, b repo.Backup) int { return compare(a.Stop, b.Stop) })
	return nil
}

func compare(a, b pg.LSN) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// frontier is how far WAL can be replayed from a backup.
func (p *planner) frontier(b repo.Backup) pg.LSN { return p.path.Frontier(p.path.Size.Start(b.Start)) }

// planTime follows Postgres's rule (recoveryStopsBefore in src/backend/access/transam/xlogrecovery.c): recovery stops before the first
// commit or abort, in WAL order, whose time is later than the target.
func (p *planner) planTime(ctx context.Context) (*Plan, error) {
	for _, b := range slices.Backward(p.backups) {
		// A backup holds transactions up to its end; none may be later than the target.
		if b.StopTime.After(p.target.Time) {
			continue
		}
		s := scan{planner: p, backup: b}
		found, err := s.findLater(ctx, p.target.Time)
		switch {
		case err != nil:
			return nil, err
		case found == nil:
			return p.planIdle(ctx, b, s.lastClock)
		case found.lsn >= b.Stop:
			return p.finish(ctx, b, found)
		}
		// The backup's end was read from another clock than the transactions', or that one was set back: it holds one that is too late.
	}
	return nil, p.unreachable(ctx, "the first base backup ended at "+p.backups[0].StopTime.UTC().Format("2006-01-02 15:04:05.000Z07:00"))
}

// planIdle includes everything behind a backup, if the archive knows that nothing happened up to the target that it does not hold.
func (p *planner) planIdle(ctx context.Context, b repo.Backup, known time.Time) (*Plan, error) {
	clock, err := p.clockAt(ctx, b, known)
	if err != nil {
		return nil, err
	}
	if clock.Before(p.target.Time) {
		return nil, p.unreachable(ctx, fmt.Sprintf("the archive knows what happened up to %s only; --to latest includes everything that it holds", clock.UTC().Format("2006-01-02 15:04:05.000Z07:00")))
	}
	return p.planEnd(ctx, b)
}

// clockAt is the latest instant of which the archive knows that everything up to it is there.
func (p *planner) clockAt(ctx context.Context, b repo.Backup, known time.Time) (time.Time, error) {
	frontier := p.frontier(b)
	for tli := range p.path.Timelines() {
		clocks, err := p.repo.Clocks(ctx, tli)
		if err != nil {
			return known, err
		}
		for _, clock := range clocks {
			if clock.LSN <= frontier && p.tells(tli, clock.LSN) && clock.Time.After(known) {
				known = clock.Time
			}
		}
		inv := p.path.Inventory(tli)
		if inv == nil {
			continue
		}
		for _, part := range inv.Parts[uint64(frontier-1)/uint64(p.path.Size)] {
			if part.End != frontier || !p.tells(tli, frontier) {
				continue
			}
			clock, err := p.repo.PartClock(ctx, p.path.Size, part)
			if errors.Is(err, repo.ErrNotExist) {
				continue // compacted meanwhile
			}
			if err != nil {
				return known, err
			}
			if clock.Time.After(known) {
				known = clock.Time
			}
		}
	}
	return known, nil
}

// tells reports whether the clock of a server on a timeline says something about the path. One that stood where the path leaves its
// timeline may have gone on standing there while the next timeline was being written.
func (p *planner) tells(tli pg.Timeline, at pg.LSN) bool {
	for _, ancestor := range p.path.History {
		if ancestor.Timeline == tli {
			return at < ancestor.Switch
		}
	}
	return tli == p.path.Tip
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
	return p.finish(ctx, *chosen, found)
}

func (p *planner) planPoint(ctx context.Context) (*Plan, error) {
	var points []repo.RestorePoint
	for i, b := range p.backups {
		if i > 0 && p.frontier(p.backups[i-1]) == p.frontier(b) {
			continue // the scan from the one before has come by here
		}
		s := scan{planner: p, backup: b}
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
	chosen := p.backupBefore(points[0].At)
	if chosen == nil {
		return nil, p.unreachable(ctx, fmt.Sprintf("the restore point at %s lies before the first base backup's end at %s", points[0].At, p.backups[0].Stop))
	}
	s := scan{planner: p, backup: *chosen}
	found, err := s.findRecord(ctx, points[0].At)
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, fmt.Errorf("the record of restore point %q at %s was not found: %w", p.target.Name, points[0].At, repo.ErrDamaged)
	}
	return p.finish(ctx, *chosen, found)
}

// backupBefore is the newest backup that is consistent at a position.
func (p *planner) backupBefore(lsn pg.LSN) *repo.Backup {
	var chosen *repo.Backup
	for i := range p.backups {
		if p.backups[i].Stop <= lsn {
			chosen = &p.backups[i]
		}
	}
	return chosen
}

// planEnd includes everything that the archive holds behind a backup, pinned to its last record as it is now.
func (p *planner) planEnd(ctx context.Context, b repo.Backup) (*Plan, error) {
	s := scan{planner: p, backup: b}
	found, err := s.findEnd(ctx)
	if err != nil {
		return nil, err
	}
	return p.finish(ctx, b, found)
}

// stop is where recovery ends, and what lies around.
type stop struct {
	lsn       pg.LSN
	end       pg.LSN // of the record at lsn
	inclusive bool
	last      *Xact
	next      *Xact
	behind    int
}

func (p *planner) finish(ctx context.Context, b repo.Backup, s *stop) (*Plan, error) {
	start := p.path.Size.Start(b.Start)
	timeline, err := p.timelineOf(ctx, b, s)
	if err != nil {
		return nil, err
	}
	segments := p.path.Segments(start, s.lsn+1)
	plan := &Plan{Target: p.target.Text, Backup: b, BackupID: b.ID, SystemID: b.SystemID, Timeline: timeline, StopLSN: s.lsn, StopAt: s.inclusive,
		LastIncluded: s.last, FirstExcluded: s.next, LeftBehind: s.behind,
		BackupBytes: b.Bytes, FetchBytes: b.StoredBytes, WALBytes: int64(s.lsn - b.Start), Segments: len(segments), Warnings: p.warnings}
	// Within one segment parts may be on their way that are there before others: nobody was told of them.
	if frontier, last := p.frontier(b), p.path.Last(); last > p.path.Size.Start(frontier)+pg.LSN(p.path.Size) {
		plan.Warnings = append(plan.Warnings, fmt.Sprintf("WAL is missing behind %s: transactions behind it, up to %s, cannot be reached from this backup", frontier, last))
	}
	return plan, nil
}

// timelineOf is the timeline to recover along: the one that the stop lies on, if its own files reach so far. Postgres lets the new timeline
// branch off the one that it recovers along, and a branch off a timeline that begins only later would be a false history.
func (p *planner) timelineOf(ctx context.Context, b repo.Backup, s *stop) (pg.Timeline, error) {
	owner := p.path.History.TimelineAt(p.path.Tip, s.lsn)
	if owner == p.path.Tip {
		return owner, nil
	}
	path, err := p.repo.Path(ctx, owner, p.path.Size, p.path.Size.Start(b.Start))
	if err != nil {
		return 0, err
	}
	if path.Frontier(p.path.Size.Start(b.Start)) < s.end {
		return p.path.Tip, nil
	}
	return owner, nil
}

// unreachable gathers what can be reached. The windows are those that are certain: from the end of a backup to the last known clock.
func (p *planner) unreachable(ctx context.Context, reason string) error {
	e := &UnreachableError{Target: p.target.Text, Reason: reason}
	if p.path == nil {
		if err := p.load(ctx); err != nil {
			return err
		}
	}
	for i, b := range p.backups {
		first := i == 0 || p.frontier(p.backups[i-1]) != p.frontier(b)
		if !first {
			continue // what can be reached from it lies in the window of the one before
		}
		until, err := p.lastKnown(ctx, p.frontier(b))
		if err != nil {
			return errors.Join(e, err)
		}
		if until.After(b.StopTime) {
			e.Windows = append(e.Windows, Window{b.StopTime, until})
		}
	}
	return e
}

// lastKnown is the latest instant that can be reached from any of the backups whose WAL ends at a position.
func (p *planner) lastKnown(ctx context.Context, frontier pg.LSN) (time.Time, error) {
	for _, b := range slices.Backward(p.backups) {
		if p.frontier(b) == frontier {
			s := scan{planner: p, backup: b}
			return s.lastKnown(ctx)
		}
	}
	panic("restore: the frontier of no backup")
}
