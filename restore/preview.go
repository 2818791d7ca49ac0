package restore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/restore/journal"
)

// Prepared is a transaction that PREPARE TRANSACTION has put aside and that nobody has ended by the target: it waits in the restored cluster, with
// its locks, for COMMIT PREPARED or ROLLBACK PREPARED.
type Prepared struct {
	XID uint32 `json:"xid"`
	GID string `json:"gid,omitempty"` // empty: it was prepared before the backup
}

// Raised is a setting that recovery needs higher than the backup says.
type Raised struct {
	Name   string `json:"name"`
	Backup int    `json:"backup"`
	Needed int    `json:"needed"`
}

// setRaised finds the settings that the WAL up to the stop tells to have been higher than the backup says.
func (plan *Plan) setRaised(changes []repo.Parameters) {
	for _, name := range required {
		before, err := strconv.Atoi(plan.Backup.Settings[name])
		if err != nil {
			before = 0 // not recorded
		}
		needed := before
		for _, change := range changes {
			if change.At >= plan.Backup.Start && change.At <= plan.StopLSN {
				needed = max(needed, parameter(change, name))
			}
		}
		if needed > before {
			plan.Raised = append(plan.Raised, Raised{name, before, needed})
		}
	}
}

func parameter(p repo.Parameters, name string) int {
	switch name {
	case "max_connections":
		return p.MaxConnections
	case "max_worker_processes":
		return p.MaxWorkerProcesses
	case "max_wal_senders":
		return p.MaxWALSenders
	case "max_prepared_transactions":
		return p.MaxPreparedTransactions
	case "max_locks_per_transaction":
		return p.MaxLocksPerTransaction
	}
	panic("restore: no parameter of the WAL: " + name)
}

// setPrepared finds the transactions that the WAL has prepared and not ended at the stop.
func (plan *Plan) setPrepared(s *scan) {
	pending := map[uint32]string{}
	plan.ended = map[uint32]bool{}
	for _, entry := range s.twoPhase {
		included := entry.At < plan.StopLSN || plan.StopAt && entry.At == plan.StopLSN
		switch {
		case entry.At < plan.Backup.Start || !included:
		case entry.GID != "":
			pending[entry.XID] = entry.GID
			delete(plan.ended, entry.XID)
		default:
			delete(pending, entry.XID)
			plan.ended[entry.XID] = true
		}
	}
	for xid, gid := range pending {
		plan.Prepared = append(plan.Prepared, Prepared{xid, gid})
	}
	slices.SortFunc(plan.Prepared, func(a, b Prepared) int { return cmp.Compare(a.XID, b.XID) })
	if s.untold {
		plan.Warnings = append(plan.Warnings, "some WAL was archived by an older program, whose indexes do not tell of prepared transactions: there may be more at the target")
	}
}

// describePrepared adds those that were prepared before the backup and lie in its files.
func (plan *Plan) describePrepared(ctx context.Context, r *repo.Repo) error {
	for i := range plan.manifest.Entries {
		f := &plan.manifest.Entries[i]
		text, found := strings.CutPrefix(f.Path, twoPhaseDir)
		if !found || f.Type != repo.TypeFile || f.Size == 0 || f.Size > repo.ExtentSize {
			continue
		}
		full, err := strconv.ParseUint(text, 16, 64) // 17 and later put the epoch before the id
		xid := uint32(full)
		if err != nil || plan.ended[xid] || slices.ContainsFunc(plan.Prepared, func(p Prepared) bool { return p.XID == xid }) {
			continue
		}
		content, err := readExtent(ctx, r, plan.manifest, f, 0)
		if err != nil {
			return err
		}
		known, _ := wal.ParsePrepared(content, wal.Version(plan.Backup.Major))
		plan.Prepared = append(plan.Prepared, Prepared{xid, known.GID})
	}
	slices.SortFunc(plan.Prepared, func(a, b Prepared) int { return cmp.Compare(a.XID, b.XID) })
	return nil
}

// twoPhaseDir is TWOPHASE_DIR of src/backend/access/transam/twophase.c.
const twoPhaseDir = "pg_twophase/"

// describeLead is how much WAL Describe reads at most to see what the transactions around the stop have done, and describeSpan how much
// behind the beginning of their commit records.
const (
	describeLead = 256 << 20
	describeSpan = 16 << 20
)

// Describe adds to a plan what the transactions around its stop have touched, what is prepared, and what will be missing afterwards. It reads more
// than a plan needs; a restore does not depend on it. What it could not find out is one of the plan's warnings.
func (plan *Plan) Describe(ctx context.Context, r *repo.Repo, parallel int) {
	warn := func(what string, err error) {
		if err != nil {
			plan.Warnings = append(plan.Warnings, fmt.Sprintf("it is not known %s: %v", what, err))
		}
	}
	warn("what the transactions around the target have done", plan.describeXacts(ctx, r, parallel))
	plan.warnOfDrops()
	var err error
	if plan.manifest, err = r.ReadManifest(ctx, plan.BackupID); err != nil {
		warn("what the backup holds", err)
		return
	}
	plan.describeOutside()
	warn("which prepared transactions the backup holds", plan.describePrepared(ctx, r))
	warn("which tables will be empty", plan.describeUnlogged(ctx, r))
}

// warnOfDrops tells of databases that are as good as gone: DROP DATABASE marks one as invalid and removes its files before it commits (dropdb of
// src/backend/commands/dbcommands.c), so that all of it is replayed before recovery stops at the commit.
func (plan *Plan) warnOfDrops() {
	next, last := plan.FirstExcluded, plan.LastIncluded
	if plan.StopAt || next == nil || next.Touched == nil || !next.Committed {
		return
	}
	for _, name := range next.Touched.DroppedDatabases {
		hint := "restore to an earlier instant"
		if last != nil {
			hint = fmt.Sprintf("--to lsn:%s stops before that, behind the same last transaction", last.LSN)
		}
		plan.Warnings = append(plan.Warnings, fmt.Sprintf("database %s cannot be used at this target: the first transaction that is not included drops it, and PostgreSQL removes a database's files before DROP DATABASE commits; %s", name, hint))
	}
}

func (plan *Plan) describeXacts(ctx context.Context, r *repo.Repo, parallel int) error {
	var wanted []*Xact
	for _, x := range []*Xact{plan.LastIncluded, plan.FirstExcluded} {
		if x != nil {
			wanted = append(wanted, x)
		}
	}
	// The two may lie far apart: each is read by itself.
	for _, x := range wanted {
		opt := journal.Options{Timeline: plan.tip, After: x.LSN - 1, Until: x.LSN + describeSpan, From: x.Time, To: x.Time, LeadMax: describeLead, Parallel: parallel}
		err := journal.Read(ctx, r, opt, func(e journal.Event) error {
			if e.Transaction == nil || e.Transaction.LSN != x.LSN {
				return nil
			}
			x.Touched = e.Transaction
			return journal.ErrStop
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// initSuffix ends the names of files of init forks, which only unlogged relations have: forkNames of src/common/relpath.c.
const initSuffix = "_init"

// describeUnlogged lists the unlogged tables of the backup; those that were made later are empty too, and nothing tells of them.
func (plan *Plan) describeUnlogged(ctx context.Context, r *repo.Repo) error {
	var files []wal.Relation
	for _, f := range plan.manifest.Entries {
		if path, found := strings.CutSuffix(f.Path, initSuffix); found && f.Type == repo.TypeFile {
			if locator, ok := locatorOf(path); ok {
				files = append(files, locator)
			}
		}
	}
	if len(files) == 0 {
		return nil
	}
	name, err := journal.Tables(ctx, r, plan.tip, plan.Backup.StopTime)
	if err != nil {
		return err
	}
	for _, locator := range files {
		if text, isTable := name(locator); isTable {
			plan.Unlogged = append(plan.Unlogged, text)
		}
	}
	slices.Sort(plan.Unlogged)
	return nil
}

// defaultTablespace is DEFAULTTABLESPACE_OID of src/include/catalog/pg_tablespace.dat.
const defaultTablespace = 1663

// locatorOf reads the name of a relation's file: base/<database>/<file>, or pg_tblspc/<tablespace>/PG_…/<database>/<file>, as GetRelationPath of
// src/common/relpath.c makes it.
func locatorOf(path string) (wal.Relation, bool) {
	parts := strings.Split(path, "/")
	tablespace, file := uint64(defaultTablespace), parts
	var err error
	switch {
	case len(parts) == 3 && parts[0] == "base":
		file = parts[1:]
	case len(parts) == 5 && parts[0] == "pg_tblspc":
		tablespace, err = strconv.ParseUint(parts[1], 10, 32)
		file = parts[3:]
	default:
		return wal.Relation{}, false
	}
	database, err1 := strconv.ParseUint(file[0], 10, 32)
	number, err2 := strconv.ParseUint(file[1], 10, 32)
	ok := err == nil && err1 == nil && err2 == nil
	return wal.Relation{Tablespace: uint32(tablespace), Database: uint32(database), Number: uint32(number)}, ok
}
