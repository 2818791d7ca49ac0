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
	"pitr/restore/journal"
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
	StopEnd  pg.LSN      `json:"-"`         // Postgres needs no WAL behind it

	LastIncluded  *Xact `json:"last_included"`  // nil: no transaction has ended behind the backup's start
	FirstExcluded *Xact `json:"first_excluded"` // nil: the archive holds none
	LeftBehind    int   `json:"left_behind"`    // commits and aborts in the archive that are not included

	Prepared    []Prepared        `json:"prepared,omitempty"`         // transactions that are neither committed nor rolled back at the target
	Tablespaces []repo.Tablespace `json:"tablespaces_made,omitempty"` // that recovery makes where they were
	Raised      []Raised          `json:"raised,omitempty"`           // settings that the WAL requires to be higher than the backup says
	Unlogged    []string          `json:"unlogged,omitempty"`         // tables that will be empty; Describe

	Outside   []Outside   `json:"configuration_outside,omitempty"` // files of the configuration that lay outside of the data directory; Describe
	Reordered []Reordered `json:"collations_changed,omitempty"`    // collations that are of another version here; Compare

	BackupBytes int64    `json:"backup_bytes"` // of the files
	FetchBytes  int64    `json:"fetch_bytes"`  // of the packs
	WALBytes    int64    `json:"wal_bytes"`    // to be replayed
	Segments    int      `json:"wal_segments"`
	Expected    Estimate `json:"expected"`
	Warnings    []string `json:"warnings,omitempty"`

	ended    map[uint32]bool // prepared transactions that the WAL ends before the stop
	tip      pg.Timeline     // the way to it was read
	manifest *repo.Manifest  // of the backup, once it was read
}

// Xact is the end of a transaction.
type Xact struct {
	XID       uint32    `json:"xid"`
	Time      time.Time `json:"time"`
	LSN       pg.LSN    `json:"lsn"`
	Committed bool      `json:"committed"`

	Touched *journal.Transaction `json:"touched,omitempty"` // what it has done; Describe
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
	Rates    Rates // zero: those of the last test restore, or assumed ones
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
	case AtXID, BeforeXID:
		return p.planXID(ctx)
	case BeforeDrop:
		return p.planDrop(ctx)
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
	if p.opt.Rates == (Rates{}) {
		proofs, err := p.repo.Proofs(ctx)
		if err != nil { // in an incident a damaged proof is in nobody's way
			p.warnings = append(p.warnings, fmt.Sprintf("what test restores have shown cannot be used: %v", err))
		}
		p.opt.Rates = ratesOf(proofs)
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
			return p.finish(ctx, &s, found)
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
	return p.finish(ctx, &s, found)
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

// finish makes the plan for a position that was found by a scan. The backup may still be another one than that from which it was found: what the
// cluster was at a position does not depend on where its replay begins.
func (p *planner) finish(ctx context.Context, s *scan, stop *stop) (*Plan, error) {
	b := p.quickest(s.backup, stop.lsn)
	if b.ID != s.backup.ID {
		s = &scan{planner: p, backup: b}
		again, err := s.find(ctx, stop.lsn, stop.inclusive)
		if err != nil {
			return nil, err
		}
		stop.last = again.last
	}
	timeline, err := p.timelineOf(ctx, b, stop)
	if err != nil {
		return nil, err
	}
	segments := p.path.Segments(p.path.Size.Start(b.Start), stop.lsn+1)
	plan := &Plan{Target: p.target.Text, Backup: b, BackupID: b.ID, SystemID: b.SystemID, Timeline: timeline, StopLSN: stop.lsn, StopAt: stop.inclusive, StopEnd: stop.end,
		LastIncluded: stop.last, FirstExcluded: stop.next, LeftBehind: stop.behind, tip: p.path.Tip,
		BackupBytes: b.Bytes, FetchBytes: b.StoredBytes, WALBytes: int64(stop.lsn - b.Start), Segments: len(segments), Warnings: p.warnings,
		Expected: p.opt.Rates.estimate(b, stop.lsn)}
	plan.setRaised(s.parameters)
	plan.setPrepared(s)
	plan.setTablespaces(s)
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
