package archiver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"pitr/archiver/replication"
	"pitr/internal/pg"
	"pitr/internal/repo"
)

// resumePoint finds where to go on: behind the last WAL that the repository holds on the way to the server's timeline. An empty
// repository begins with the slot's first segment.
func (s *session) resumePoint(ctx context.Context) (position, error) {
	next := position{}
	for _, tli := range s.newestFirst() {
		inv, err := s.opt.Repo.Inventory(ctx, tli, s.size, 0)
		if err != nil {
			return position{}, err
		}
		runs := inv.Runs()
		if len(runs) == 0 {
			next = position{tli, s.size.Start(s.history.Begin(s.system.Timeline, tli))}
			continue
		}
		end, err := s.endToResume(ctx, tli, runs)
		if err != nil {
			return position{}, err
		}
		if left, isAncestor := s.leftAt(tli); isAncestor && end >= left {
			if end > left {
				s.log.Warn("the archive is ahead of the point at which the server left a timeline; the dead branch is kept", "timeline", tli, "archived_to", end, "left_at", left,
					"hint", "pitr log --lost tells which transactions were committed only there")
			}
			return next, nil
		}
		if tli == s.system.Timeline && end > s.system.Position {
			if s.standby {
				return position{}, fmt.Errorf("the standby has WAL of timeline %d only up to %s, the archive up to %s: waiting until it has come further", tli, s.system.Position, end)
			}
			return position{}, fmt.Errorf("the archive holds WAL of timeline %d up to %s, but the server has written only up to %s; was it restored without a new timeline, or is it another copy of the cluster?",
				tli, end, s.system.Position)
		}
		return position{tli, end}, nil
	}
	return s.slotStart(ctx)
}

// endToResume is the end of the run to go on from: the last one, or one before it if the server still has the WAL behind that, so that a hole
// is filled which somebody has left who pushed segments, or was killed.
func (s *session) endToResume(ctx context.Context, tli pg.Timeline, runs []repo.Run) (pg.LSN, error) {
	last := runs[len(runs)-1].End
	if len(runs) == 1 {
		return last, nil
	}
	kept, err := s.slotStart(ctx)
	if err != nil && !errors.Is(err, errSlotEmpty) {
		return 0, err
	}
	for _, run := range runs {
		if err == nil && run.End >= kept.LSN && kept.Timeline <= tli && run.End < last {
			s.log.Info("the archive has a hole that the server can fill", "timeline", tli, "from", run.End)
			return run.End, nil
		}
	}
	s.log.Warn("the archive has gaps; restores across them are not possible", "timeline", tli, "runs", len(runs))
	s.archiver.noteGap(runs[len(runs)-1].Start)
	return last, nil
}

// newestFirst are the server's timeline and its ancestors.
func (s *session) newestFirst() []pg.Timeline {
	list := []pg.Timeline{s.system.Timeline}
	for _, ancestor := range slices.Backward(s.history) {
		list = append(list, ancestor.Timeline)
	}
	return list
}

func (s *session) leftAt(tli pg.Timeline) (pg.LSN, bool) {
	for _, ancestor := range s.history {
		if ancestor.Timeline == tli {
			return ancestor.Switch, true
		}
	}
	return 0, false
}

var errSlotEmpty = errors.New("keeps no WAL: it was invalidated, or it is no physical slot; drop it and start the archiver again")

// slotStart is the start of the segment from which the slot keeps WAL.
func (s *session) slotStart(ctx context.Context) (position, error) {
	conn, err := replication.Connect(ctx, replication.ConnectOptions{DSN: s.opt.DSN, ApplicationName: s.opt.Slot, Role: s.opt.StreamFrom})
	if err != nil {
		return position{}, err
	}
	rows, err := conn.Query(ctx, fmt.Sprintf("SELECT restart_lsn FROM pg_catalog.pg_replication_slots WHERE slot_name = '%s' AND slot_type = 'physical'", s.opt.Slot))
	if closeErr := conn.Close(ctx); err == nil {
		err = closeErr
	}
	if err != nil {
		return position{}, fmt.Errorf("slot %s: %w", s.opt.Slot, err)
	}
	if len(rows) != 1 || rows[0][0] == "" {
		return position{}, fmt.Errorf("slot %s %w", s.opt.Slot, errSlotEmpty)
	}
	restart, err := pg.ParseLSN(rows[0][0])
	if err != nil {
		return position{}, err
	}
	start := s.size.Start(restart)
	return position{s.history.SegmentAt(s.system.Timeline, start, s.size).Timeline, start}, nil
}

// skipGap is called when the server has removed WAL that the archive lacks. The hole stays visible: restores across it are refused,
// and a base backup is wanted at once so that a new recovery window begins.
func (s *session) skipGap(ctx context.Context, at position, cause error) (position, error) {
	next, err := s.slotStart(ctx)
	if errors.Is(err, errSlotEmpty) || err == nil && next.LSN <= at.LSN {
		// The slot was invalidated, or stands where there is nothing any more: one that reserves what there is takes its place.
		if next, err = s.renewSlot(ctx); err == nil && next.LSN <= at.LSN {
			err = cause
		}
	}
	if err != nil {
		return position{}, err
	}
	s.archiver.counts.gaps.Add(1)
	s.log.Error("WAL is lost: the server has removed it before it was archived", "timeline", at.Timeline, "from", at.LSN, "to", next.LSN, "error", cause)
	s.archiver.noteGap(next.LSN)
	s.recordGap(ctx, at, next, cause)
	s.archiver.wantBackup("gap in the archive")
	return next, nil
}

// recordGap writes down what is lost, for those who look later. On another timeline the gap ends where that begins.
func (s *session) recordGap(ctx context.Context, at, next position, cause error) {
	gap := repo.Gap{Timeline: at.Timeline, From: at.LSN, To: next.LSN, Noticed: time.Now().UTC(), Reason: cause.Error()}
	if left, isAncestor := s.leftAt(at.Timeline); isAncestor && left > gap.From {
		gap.To = min(gap.To, left)
	}
	if len(gap.Reason) > gapReasonMax {
		gap.Reason = gap.Reason[:gapReasonMax]
	}
	if err := s.opt.Repo.PutGap(ctx, gap); err != nil {
		s.log.Warn("the gap was not written down; it shows all the same", "error", err)
	}
}

// gapReasonMax bounds what is quoted of the server's error.
const gapReasonMax = 1000

func (s *session) renewSlot(ctx context.Context) (position, error) {
	if s.conn == nil {
		if err := s.login(ctx); err != nil {
			return position{}, err
		}
	}
	if err := s.conn.DropSlot(ctx, s.opt.Slot); err != nil {
		return position{}, err
	}
	if err := s.conn.CreateSlot(ctx, s.opt.Slot); err != nil {
		return position{}, err
	}
	return s.slotStart(ctx)
}
