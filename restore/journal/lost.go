package journal

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// Branch is WAL of a timeline that does not lie on the path to the wanted one: behind the point at which the path has left the timeline, or
// all of a timeline that the path does not go through. A failover leaves one when the archive was ahead of the new primary, and so does a restore.
type Branch struct {
	Timeline pg.Timeline `json:"timeline"`
	Start    pg.LSN      `json:"start"` // the first position that the path does not have
	End      pg.LSN      `json:"end"`   // of what the archive has of it
}

// deadBranches finds where each timeline has left the path to tip, or the path the timeline. Each byte of a timeline's own belongs to at most one
// of them; End is not known yet.
func deadBranches(tip pg.Timeline, histories map[pg.Timeline]pg.History) []Branch {
	var branches []Branch
	for tli, history := range histories {
		if tli == tip {
			continue
		}
		onPath := slices.IndexFunc(histories[tip], func(a pg.Ancestor) bool { return a.Timeline == tli })
		switch {
		case onPath >= 0:
			branches = append(branches, Branch{Timeline: tli, Start: histories[tip][onPath].Switch})
		default:
			branches = append(branches, Branch{Timeline: tli, Start: history.Begin(tli, tli)})
		}
	}
	slices.SortFunc(branches, func(a, b Branch) int { return cmp.Compare(a.Timeline, b.Timeline) })
	return branches
}

// readLost tells what was committed on dead branches, branch by branch.
func (rd *reader) readLost(ctx context.Context) error {
	histories := map[pg.Timeline]pg.History{}
	for _, tli := range rd.known {
		history, err := rd.repo.History(ctx, tli)
		if err != nil {
			return err
		}
		histories[tli] = history
	}
	var unknown error // no branch so far has known the wanted relation
	known := false
	for _, branch := range deadBranches(rd.tip, histories) {
		path, err := rd.repo.Path(ctx, branch.Timeline, rd.cluster.SegmentSize, 0)
		if err != nil {
			return err
		}
		if branch.End = path.Last(); branch.End <= branch.Start {
			continue
		}
		switch err := rd.readBranch(ctx, branch, path); {
		case errors.Is(err, ErrNoRelation):
			unknown = err
		case err != nil:
			return err
		default:
			known = true
		}
	}
	if known {
		return nil
	}
	return unknown
}

func (rd *reader) readBranch(ctx context.Context, branch Branch, path *repo.Path) error {
	if err := rd.visit(Event{Branch: &branch}); err != nil {
		return err
	}
	return rd.readPath(ctx, path, branch.Start)
}
