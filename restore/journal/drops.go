package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// Drop is a commit that has dropped a relation.
type Drop struct {
	Relation string // database.schema.name
	*Transaction
}

// Drops lists the commits behind a position that have dropped a relation of a name, in WAL order. The indexes tell which segments may hold one;
// only those are read. ErrNoRelation says that no catalog knows the name.
func Drops(ctx context.Context, r *repo.Repo, opt Options) ([]Drop, error) {
	opt.MassRows, opt.LeadMax = DefaultMassRows, 1 // counts of rows are of no interest
	rd := &reader{repo: r, opt: opt}
	if err := rd.open(ctx); err != nil {
		return nil, err
	}
	path, err := r.Path(ctx, rd.tip, rd.cluster.SegmentSize, rd.cluster.SegmentSize.Start(opt.After))
	if err != nil {
		return nil, err
	}
	rd.path, rd.after = path, opt.After
	if err := rd.loadNames(ctx); err != nil {
		return nil, err
	}
	var wanted []pg.LSN
	for _, run := range path.Runs() {
		more, err := rd.mayDrop(ctx, run)
		if err != nil {
			return nil, err
		}
		wanted = append(wanted, more...)
	}
	var drops []Drop
	for _, start := range wanted {
		found, err := readDrops(ctx, r, opt, max(start, opt.After), start+pg.LSN(path.Size))
		if err != nil {
			return nil, err
		}
		drops = append(drops, found...)
	}
	return drops, nil
}

// mayDrop lists the starts of the segments in which a commit may have dropped the wanted relation.
func (rd *reader) mayDrop(ctx context.Context, run repo.Run) ([]pg.LSN, error) {
	var wanted []pg.LSN
	unfinished := run.Start
	for _, segment := range rd.path.Segments(run.Start, run.End) {
		index, ok, err := rd.repo.IndexOf(ctx, rd.path, segment)
		if err == nil && !ok {
			index, err = rd.makeIndex(ctx, min(unfinished, segment.Start(rd.path.Size)), segment)
		}
		if err != nil {
			return nil, err
		}
		if unfinished = index.Unfinished; unfinished == 0 {
			unfinished = segment.End(rd.path.Size)
		}
		if rd.tellsDrop(index) {
			wanted = append(wanted, segment.Start(rd.path.Size))
		}
	}
	return wanted, nil
}

// tellsDrop reports whether an index tells of a commit that removes the wanted relation, or a file of it, or cannot tell.
func (rd *reader) tellsDrop(index repo.Index) bool {
	if index.Detail == 0 || slices.Contains(index.Limits, "removals") {
		return true
	}
	for _, removal := range index.Removals {
		if removal.At < rd.after {
			continue
		}
		for _, object := range removal.Dropped {
			if rd.names.object(object, removal.At).is(rd.opt.Relation) {
				return true
			}
		}
		for _, file := range removal.Files {
			var locator wal.Relation
			if _, err := fmt.Sscanf(file, "%d/%d/%d", &locator.Tablespace, &locator.Database, &locator.Number); err != nil || rd.names.file(locator, removal.At).is(rd.opt.Relation) {
				return true
			}
		}
	}
	return false
}

// readDrops reads the records that end in a segment, and tells which commits among them have dropped the wanted relation.
func readDrops(ctx context.Context, r *repo.Repo, opt Options, after, until pg.LSN) ([]Drop, error) {
	var drops []Drop
	opt.After, opt.Until, opt.Destructive = after, until, true
	err := Read(ctx, r, opt, func(e Event) error {
		if e.Transaction == nil {
			return nil
		}
		for _, relation := range e.Transaction.Dropped {
			if relation == opt.Relation || strings.HasSuffix(relation, "."+opt.Relation) {
				drops = append(drops, Drop{relation, e.Transaction})
			}
		}
		return nil
	})
	if errors.Is(err, ErrNoRelation) {
		return nil, nil
	}
	return drops, err
}
