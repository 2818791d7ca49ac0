package archiver

import (
	"context"
	"fmt"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// Behind a gap nothing can be restored until a base backup lies behind it, however much WAL is in the store. While that is so the
// archive is exposed, and commits that wait for it go on waiting: they are not told that they are safe.

// noteGap notes that the archive has a gap that ends at a position. What is known of the server ended when its stream did.
func (a *Archiver) noteGap(end pg.LSN) {
	if a.gapEnd.Swap(uint64(end)) != uint64(end) {
		a.wantBackup("") // whoever takes backups may be about to sleep for long: he finds out whether one is due
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.exposedSince.IsZero() {
		a.exposedSince = a.contact
	}
}

// way is the path to the timeline that is streamed. Only from a backup on it what follows a gap can be recovered.
type way struct {
	tip     pg.Timeline
	history pg.History
}

// leavesAt is where the way leaves a timeline; its end has none.
func (w way) leavesAt(tli pg.Timeline) (at pg.LSN, isOn bool) {
	for _, ancestor := range w.history {
		if ancestor.Timeline == tli {
			return ancestor.Switch, true
		}
	}
	return ^pg.LSN(0), tli == w.tip
}

func (w way) passes(b repo.Backup) bool {
	left, isOn := w.leavesAt(b.Timeline)
	return isOn && b.Stop <= left
}

// setWay notes that the server is on a timeline. A gap that does not lie on the way to it does not matter any more, and backups may not.
func (a *Archiver) setWay(w way) {
	a.mu.Lock()
	defer a.mu.Unlock()
	was := a.way
	if a.way = w; was.tip == w.tip || was.tip == 0 {
		return
	}
	if left, isOn := w.leavesAt(was.tip); !isOn || pg.LSN(a.gapEnd.Load()) > left {
		a.gapEnd.Store(0)
		a.exposedSince = time.Time{}
	}
	a.covered.Store(0) // they are listed again before streaming begins
}

// noteJoints looks for a gap where the path to the server's timeline goes from one timeline to the next: within each of them the WAL may be whole.
// A hole that is about to be filled from a position on is none.
func (s *session) noteJoints(ctx context.Context, at position) error {
	if len(s.history) == 0 {
		return nil
	}
	path, err := s.opt.Repo.Path(ctx, s.system.Timeline, s.size, 0)
	if err != nil {
		return err
	}
	runs := path.Runs()
	if len(runs) < 2 || at.LSN < runs[len(runs)-1].Start {
		return nil
	}
	s.log.Warn("the archive has gaps on the way to the server's timeline; restores across them are not possible", "timeline", s.system.Timeline, "runs", len(runs))
	s.archiver.noteGap(runs[len(runs)-1].Start)
	return nil
}

// exposed tells whether no backup is known to lie behind the last gap.
func (a *Archiver) exposed() bool { return a.covered.Load() < a.gapEnd.Load() }

// cover notes how far backups reach, and lets the commits go that have waited for one. The caller holds mu.
func (a *Archiver) cover(backups []repo.Backup) {
	was, covered := a.exposed(), uint64(0)
	for _, b := range backups {
		if a.way.passes(b) {
			covered = max(covered, uint64(b.Start))
		}
	}
	a.covered.Store(covered)
	if a.exposed() {
		if a.exposedSince.IsZero() {
			a.exposedSince = a.contact
		}
		return
	}
	a.exposedSince = time.Time{}
	if was && a.current != nil {
		select {
		case a.current.nudge <- struct{}{}:
		default:
		}
	}
}

// mindGap finds out, before streaming begins, whether commits have to wait for a backup. The server keeps their WAL meanwhile. Where no
// commit waits for anybody, WAL is acknowledged as ever: the slot would only hold up what is in the store already.
func (s *session) mindGap(ctx context.Context) error {
	a := s.archiver
	s.holds = false
	if !a.exposed() {
		return nil
	}
	backups, err := s.opt.Repo.Backups(ctx)
	if err != nil {
		return err
	}
	a.noteBackups(backups)
	if !a.exposed() {
		return nil
	}
	rows, err := s.conn.Query(ctx, "SHOW synchronous_standby_names")
	if err != nil {
		return err
	}
	if len(rows) != 1 || len(rows[0]) != 1 {
		return fmt.Errorf("SHOW synchronous_standby_names gave %d rows", len(rows))
	}
	if s.holds = rows[0][0] != ""; s.holds {
		s.log.Warn("commits that wait for the archive wait until a base backup lies behind its gap", "gap_ends", pg.LSN(a.gapEnd.Load()))
	}
	return nil
}
