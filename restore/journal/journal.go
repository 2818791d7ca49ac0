// Package journal tells what happened in the archive: which transaction changed, dropped or truncated what, in WAL order. It reads and never
// writes; its memory is that of one segment, of the transactions that are open at the same time, and of the relations' names. Indexes and
// catalogs are specified in docs/FORMAT.md.
package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// Options narrows what Read tells. Zero values do not.
type Options struct {
	Timeline    pg.Timeline // zero: the newest
	Lost        bool        // what was committed behind the points at which the path to the timeline has left others, and nothing else
	From, To    time.Time   // the transaction ended at or between them
	After       pg.LSN      // it ended behind this position
	Until       pg.LSN      // nothing behind this position is wanted
	LeadMax     int64       // bytes of WAL that are read at most to see long transactions from their beginning; zero: leadMax
	XID         uint32      // the transaction, or one of its subtransactions, has this id
	Relation    string      // name, schema.name, database.schema.name, or tablespace/database/file
	Destructive bool        // it has dropped, truncated or deleted much
	MassRows    int         // so many deleted rows of a relation are much; zero: DefaultMassRows
	Parallel    int         // how many indexes are fetched at once
}

// DefaultMassRows is how many deleted rows of a relation are marked.
const DefaultMassRows = 1000

// Event is one of its fields.
type Event struct {
	Branch       *Branch            `json:"branch,omitempty"` // what follows is told of it; Options.Lost
	Transaction  *Transaction       `json:"transaction,omitempty"`
	RestorePoint *repo.RestorePoint `json:"restore_point,omitempty"`
	Parameters   *Parameters        `json:"parameters,omitempty"`
	Gap          *repo.Run          `json:"gap,omitempty"` // WAL that the archive lacks
}

// Transaction is a transaction that has ended.
type Transaction struct {
	XID       uint32      `json:"xid"`
	Time      time.Time   `json:"time"`
	LSN       pg.LSN      `json:"lsn"` // of the commit or abort record
	Timeline  pg.Timeline `json:"timeline"`
	Committed bool        `json:"committed"`
	Prepared  bool        `json:"prepared,omitempty"` // by COMMIT PREPARED or ROLLBACK PREPARED
	Subxacts  int         `json:"subtransactions,omitempty"`
	Bytes     uint64      `json:"bytes"`              // of its WAL
	Database  string      `json:"database,omitempty"` // where it is known
	Relations []Relation  `json:"relations,omitempty"`

	Dropped          []string `json:"dropped,omitempty"`           // relations
	DroppedDatabases []string `json:"dropped_databases,omitempty"` // by name, or by object id
	Truncated        []string `json:"truncated,omitempty"`
	Rewritten        []string `json:"rewritten,omitempty"`    // the rows have moved to a new file: VACUUM FULL, CLUSTER, ALTER TABLE
	MassDeletes      []string `json:"mass_deletes,omitempty"` // relations that have lost many rows

	// Partial says that the transaction may have begun before the first WAL that was read: its counts may be too low.
	Partial bool `json:"partial,omitempty"`
	// Incomplete says that it was too large to be followed wholly: its counts may be too low.
	Incomplete bool `json:"incomplete,omitempty"`
}

// Destructive reports whether something is gone that only a restore brings back. What was rolled back is not gone.
func (t *Transaction) Destructive() bool {
	return t.Committed && len(t.Dropped)+len(t.DroppedDatabases)+len(t.Truncated)+len(t.MassDeletes) > 0
}

// Relation is what a transaction has done to the rows of one relation.
type Relation struct {
	Name     string `json:"name"` // database.schema.name, or the locator where the archive knows no name
	Locator  string `json:"locator"`
	Kind     string `json:"kind,omitempty"` // relkind, where it is known: r table, m materialized view, t TOAST table, S sequence
	System   bool   `json:"system,omitempty"`
	Inserted int    `json:"inserted,omitempty"`
	Updated  int    `json:"updated,omitempty"`
	Deleted  int    `json:"deleted,omitempty"`
}

// Parameters is a change of settings that the server has put on record.
type Parameters struct {
	LSN pg.LSN `json:"lsn"`
	wal.Parameters
}

// Errors that a caller may want to tell apart.
var (
	ErrEmpty      = errors.New("the repository holds no WAL")
	ErrNoRelation = errors.New("the archive knows no such relation")
	// ErrStop makes Read end early, without an error.
	ErrStop = errors.New("enough was read")
)

// reader is the state of one Read.
type reader struct {
	repo    *repo.Repo
	opt     Options
	visit   func(Event) error
	cluster repo.Cluster
	tip     pg.Timeline
	known   []pg.Timeline // of which the repository has WAL or a history file

	path  *repo.Path // that is read
	after pg.LSN     // what ends at or before it is not wanted
	names *names

	ledger wal.Ledger
	from   pg.LSN // records that end at or before it are only followed, not told
	sure   xidFloor
}

// Read passes what has happened, in WAL order, until visit returns an error.
func Read(ctx context.Context, r *repo.Repo, opt Options, visit func(Event) error) error {
	if opt.MassRows == 0 {
		opt.MassRows = DefaultMassRows
	}
	if opt.LeadMax == 0 {
		opt.LeadMax = leadMax
	}
	rd := &reader{repo: r, opt: opt, visit: visit}
	if err := rd.open(ctx); err != nil {
		return err
	}
	if opt.Lost {
		return ignoreStop(rd.readLost(ctx))
	}
	path, err := r.Path(ctx, rd.tip, rd.cluster.SegmentSize, 0)
	if err != nil {
		return err
	}
	if len(path.Runs()) == 0 {
		return ErrEmpty
	}
	return ignoreStop(rd.readPath(ctx, path, opt.After))
}

// readPath tells what has ended on a path behind a position.
func (rd *reader) readPath(ctx context.Context, path *repo.Path, after pg.LSN) error {
	rd.path, rd.after = path, after
	if err := rd.loadNames(ctx); err != nil {
		return err
	}
	var before repo.Run
	for i, run := range path.Runs() {
		if i > 0 && run.Start > after {
			gap := repo.Run{Start: max(before.End, after), End: run.Start}
			if err := rd.visit(Event{Gap: &gap}); err != nil {
				return err
			}
		}
		before = run
		if run.End <= after || rd.opt.Until != 0 && run.Start >= rd.opt.Until {
			continue
		}
		if err := rd.readRun(ctx, run); err != nil {
			return err
		}
	}
	return nil
}

func ignoreStop(err error) error {
	if errors.Is(err, ErrStop) {
		return nil
	}
	return err
}

// open finds the timeline.
func (rd *reader) open(ctx context.Context) (err error) {
	rd.cluster, err = rd.repo.Cluster(ctx)
	if errors.Is(err, repo.ErrNotExist) {
		return fmt.Errorf("%w; do archive.store and cluster name the right place?", ErrEmpty)
	}
	if err != nil {
		return err
	}
	if rd.known, err = rd.repo.Timelines(ctx); err != nil {
		return err
	}
	if rd.opt.Timeline != 0 && !slices.Contains(rd.known, rd.opt.Timeline) {
		return fmt.Errorf("the repository has no timeline %d", rd.opt.Timeline)
	}
	if rd.tip = rd.opt.Timeline; rd.tip == 0 {
		rd.tip = slices.Max(rd.known)
	}
	return nil
}

// readRun tells what has happened in a stretch of WAL without a gap.
func (rd *reader) readRun(ctx context.Context, run repo.Run) error {
	span, ok, err := rd.span(ctx, run)
	if err != nil || !ok {
		return err
	}
	rd.ledger, rd.from, rd.sure = wal.Ledger{}, span.from, span.sure
	return rd.decode(ctx, rd.decoder(span.lead, rd.record), span.to)
}

func (rd *reader) decoder(start pg.LSN, emit func(*wal.Record) error) *wal.Decoder {
	return wal.NewDecoder(wal.Options{Start: start, SegmentSize: rd.path.Size, SystemID: rd.cluster.SystemID, Timeline: rd.path.Tip}, emit)
}

// decode feeds the decoder up to a position, or to where the WAL ends.
func (rd *reader) decode(ctx context.Context, decoder *wal.Decoder, to pg.LSN) error {
	err := rd.repo.ReadWAL(ctx, rd.path, decoder.Position(), to, func(_ pg.LSN, content []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, err := decoder.Write(content)
		return err
	})
	if err != nil && !errors.Is(err, ErrStop) {
		return fmt.Errorf("read the archived WAL: %w", err)
	}
	return err
}

// record follows one record and tells what it ends.
func (rd *reader) record(r *wal.Record) error {
	if err := r.Decode(); err != nil {
		return err
	}
	rd.sure.learn(r)
	rd.names.major = int(r.Version)
	ended, err := rd.ledger.Add(r)
	if err != nil {
		return err
	}
	if ended != nil && ended.Committed && len(ended.Relations) > 0 {
		newFiles(rd, ended).learn() // also of those that are not told
	}
	if r.End <= rd.from {
		return nil
	}
	if ended != nil {
		return rd.tell(ended)
	}
	if r.Rmgr != wal.RmgrXLOG || rd.narrowed() {
		return nil
	}
	if point, ok, err := r.RestorePoint(); err != nil || ok {
		if err != nil || !rd.inTime(point.Time) {
			return err
		}
		return rd.visit(Event{RestorePoint: &repo.RestorePoint{At: r.Start, Name: point.Name, Time: point.Time}})
	}
	if parameters, ok, err := r.Parameters(); err != nil || ok {
		if err != nil || !rd.opt.From.IsZero() || !rd.opt.To.IsZero() {
			return err // it has no time of its own
		}
		return rd.visit(Event{Parameters: &Parameters{r.Start, parameters}})
	}
	return nil
}

// narrowed reports whether only some transactions are wanted, and nothing else.
func (rd *reader) narrowed() bool {
	return rd.opt.XID != 0 || rd.opt.Relation != "" || rd.opt.Destructive || rd.opt.Lost
}

func (rd *reader) inTime(at time.Time) bool {
	return (rd.opt.From.IsZero() || !at.Before(rd.opt.From)) && (rd.opt.To.IsZero() || !at.After(rd.opt.To))
}

// tell passes a transaction on if it is wanted.
func (rd *reader) tell(e *wal.Ended) error {
	if rd.opt.Lost && !e.Committed {
		return nil
	}
	if !rd.inTime(e.Time) || rd.opt.XID != 0 && e.XID != rd.opt.XID && !slices.Contains(e.Subxacts, rd.opt.XID) {
		return nil
	}
	t := rd.describe(e)
	if rd.opt.Destructive && !t.Destructive() || rd.opt.Relation != "" && !rd.touches(e, t) {
		return nil
	}
	return rd.visit(Event{Transaction: t})
}

// xidFloor tells which transactions have certainly begun behind the start of reading.
type xidFloor struct {
	known bool
	first uint32 // this one and later ones have
}

func (f *xidFloor) learn(r *wal.Record) {
	if running, ok := r.Running(); ok && !f.known {
		f.known, f.first = true, running.Next
	}
}

func (f *xidFloor) covers(xid uint32) bool { return f.known && int32(xid-f.first) >= 0 }
