package journal

import (
	"context"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// Tables tells what the tables that lie in files were called about an instant: database.schema.name, or the locator where no catalog
// knows. It is false for what is no table: indexes, sequences and TOAST tables go with theirs.
func Tables(ctx context.Context, r *repo.Repo, tip pg.Timeline, at time.Time) (func(wal.Relation) (string, bool), error) {
	rd, err := namesAbout(ctx, r, tip, at)
	if err != nil {
		return nil, err
	}
	return func(file wal.Relation) (string, bool) {
		name := rd.names.file(file, ^pg.LSN(0))
		return name.String(), !name.known() || name.table() && name.kind != kindSequence
	}, nil
}

// Databases tells what the databases were called about an instant, by object id.
func Databases(ctx context.Context, r *repo.Repo, tip pg.Timeline, at time.Time) (map[uint32]string, error) {
	rd, err := namesAbout(ctx, r, tip, at)
	if err != nil {
		return nil, err
	}
	return rd.names.databases, nil
}

func namesAbout(ctx context.Context, r *repo.Repo, tip pg.Timeline, at time.Time) (*reader, error) {
	rd := &reader{repo: r, opt: Options{Timeline: tip, From: at, To: at}}
	if err := rd.open(ctx); err != nil {
		return nil, err
	}
	var err error
	if rd.path, err = r.Path(ctx, rd.tip, rd.cluster.SegmentSize, 0); err != nil {
		return nil, err
	}
	return rd, rd.loadNames(ctx)
}
