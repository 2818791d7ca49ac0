package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"pitr/config"
	"pitr/internal/pg"
	"pitr/restore"
	"pitr/restore/journal"
)

// logFlags are the flags of `pitr log`.
type logFlags struct {
	from, to, around string
	within           time.Duration
	relation         string
	xid              uint32
	destructive      bool
	lost             bool
	mass             int
	timeline         uint32
	asJSON           bool
}

// withinDefault is how far around --around looks either way.
const withinDefault = 5 * time.Minute

func logCommand(app *app) *cobra.Command {
	var f logFlags
	cmd := &cobra.Command{
		Use:   "log",
		Short: "Tell what happened, transaction by transaction",
		Long: `Prints the transactions in the archive in the order of the log: when each ended, its id, its position, the WAL that it wrote, and how many rows of
which relation it has inserted, updated and deleted. What is gone for good is marked: DROP, TRUNCATE, and deletions of many rows.

Times need a zone, as in restore --to, unless restore.time_zone names one. Rows that cascades and triggers have changed count like any other. Temporary and
unlogged tables leave no rows in the WAL. With --json each line is an object.

The log follows the path to the newest timeline. What a failover or a restore has left behind stays in the archive: --lost tells what was
committed there and nowhere else, branch by branch, up to where the archive of the branch ends.

` + exitHelp,
		Example: `  pitr log --around "2026-11-20 14:03+01:00"
  pitr log --destructive --from "2026-11-20 00:00+01:00"
  pitr log --rel public.orders --to "2026-11-20 14:03:21+01:00" --json
  pitr log --lost`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runLog(cmd, app, f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.from, "from", "", "only what ended at or after this `TIME`")
	flags.StringVar(&f.to, "to", "", "only what ended at or before this `TIME`")
	flags.StringVar(&f.around, "around", "", "only what ended near this `TIME`")
	flags.DurationVar(&f.within, "within", withinDefault, "how near --around means, either way")
	flags.StringVar(&f.relation, "rel", "", "only what has changed this `RELATION`: schema.table, database.schema.table or tablespace/database/file")
	flags.Uint32Var(&f.xid, "xid", 0, "only this transaction, or the one that this subtransaction belongs to")
	flags.BoolVar(&f.destructive, "destructive", false, "only what has dropped, truncated or deleted much")
	flags.BoolVar(&f.lost, "lost", false, "only what was committed on branches that the timeline does not descend from")
	flags.IntVar(&f.mass, "mass", journal.DefaultMassRows, "how many deleted rows of a relation are much")
	flags.Uint32Var(&f.timeline, "timeline", 0, "on the way to this timeline; default: the newest")
	flags.BoolVar(&f.asJSON, "json", false, "print a line of JSON for each")
	return cmd
}

func runLog(cmd *cobra.Command, app *app, f logFlags) error {
	cfg, log, err := app.load()
	if err != nil {
		return err
	}
	opt, err := f.options(cfg, cmd.Flags().Changed("within"))
	if err != nil {
		return err
	}
	r, err := app.repository(cfg, log)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(cmd.OutOrStdout())
	show := func(e journal.Event) error { return printEvent(out, e) }
	if f.asJSON {
		encoder := json.NewEncoder(out)
		show = func(e journal.Event) error { return encoder.Encode(e) }
	}
	told := 0
	err = journal.Read(cmd.Context(), r, opt, func(e journal.Event) error {
		told++
		return show(e)
	})
	if f.lost && !f.asJSON && told == 0 && err == nil {
		_, err = fmt.Fprintln(out, "nothing is lost: the archive has no WAL beside the path to the timeline")
	}
	return errors.Join(err, out.Flush())
}

// options checks the flags. Times follow the rule of restore --to.
func (f logFlags) options(cfg *config.Config, withinGiven bool) (journal.Options, error) {
	opt := journal.Options{Timeline: pg.Timeline(f.timeline), XID: f.xid, Relation: f.relation, Destructive: f.destructive, Lost: f.lost, MassRows: f.mass, Parallel: cfg.Restore.Parallel}
	switch {
	case f.around != "" && (f.from != "" || f.to != ""):
		return opt, &usageError{errors.New("log: --around excludes --from and --to")}
	case f.around == "" && withinGiven:
		return opt, &usageError{errors.New("log: --within says how near --around means, which is missing")}
	case f.within < 0:
		return opt, &usageError{fmt.Errorf("log: --within %s is negative", f.within)}
	case f.mass < 1:
		return opt, &usageError{fmt.Errorf("log: --mass %d is out of range: 1 or more", f.mass)}
	}
	zone, err := timeZone(cfg)
	if err != nil {
		return opt, err
	}
	var around time.Time
	for _, flag := range []struct {
		name, text string
		at         *time.Time
	}{{"--from", f.from, &opt.From}, {"--to", f.to, &opt.To}, {"--around", f.around, &around}} {
		if flag.text == "" {
			continue
		}
		if *flag.at, err = restore.ParseTime(flag.text, zone); err != nil {
			return opt, &usageError{fmt.Errorf("log %s: %w", flag.name, err)}
		}
	}
	if f.around != "" {
		opt.From, opt.To = around.Add(-f.within), around.Add(f.within)
	}
	if !opt.From.IsZero() && !opt.To.IsZero() && opt.To.Before(opt.From) {
		return opt, &usageError{fmt.Errorf("log: --to %s lies before --from %s", f.to, f.from)}
	}
	return opt, nil
}

// logTime is how instants are printed: those of transactions have microseconds.
const logTime = "2006-01-02 15:04:05.000000Z07:00"

func printEvent(w io.Writer, e journal.Event) error {
	var err error
	switch {
	case e.Branch != nil:
		b := e.Branch
		_, err = fmt.Fprintf(w, "timeline %d from %s to %s is a dead branch; committed only there:\n", b.Timeline, b.Start, b.End)
	case e.Transaction != nil:
		err = printTransaction(w, e.Transaction)
	case e.RestorePoint != nil:
		_, err = fmt.Fprintf(w, "%s  restore point %q at %s\n", e.RestorePoint.Time.UTC().Format(logTime), e.RestorePoint.Name, e.RestorePoint.At)
	case e.Parameters != nil:
		p := e.Parameters
		_, err = fmt.Fprintf(w, "settings at %s: max_connections %d, max_worker_processes %d, max_wal_senders %d, max_prepared_transactions %d, max_locks_per_transaction %d, wal_level %s\n",
			p.LSN, p.MaxConnections, p.MaxWorkerProcesses, p.MaxWALSenders, p.MaxPreparedTransactions, p.MaxLocksPerTransaction, p.WALLevel)
	case e.Gap != nil:
		_, err = fmt.Fprintf(w, "GAP: the archive has no WAL from %s to %s; nobody knows what happened there\n", e.Gap.Start, e.Gap.End)
	}
	return err
}

func printTransaction(w io.Writer, t *journal.Transaction) error {
	kind := "commit"
	if !t.Committed {
		kind = "abort"
	}
	_, err := fmt.Fprintf(w, "%s  xid %d  %s  %s  %s  %s\n", t.Time.UTC().Format(logTime), t.XID, t.LSN, kind, bytesText(int64(t.Bytes)), workText(t))
	return err
}

// workText tells what a transaction has done.
func workText(t *journal.Transaction) string {
	parts := append(marks(t), rowsText(t)...)
	if t.Partial {
		parts = append(parts, "may have begun before the WAL that was read")
	}
	if t.Incomplete {
		parts = append(parts, "too large to be counted wholly")
	}
	return strings.Join(parts, "; ")
}

// marks are what is gone for good, and rewrites.
func marks(t *journal.Transaction) []string {
	var parts []string
	for _, m := range []struct {
		word  string
		names []string
	}{{"DROP DATABASE", t.DroppedDatabases}, {"DROP", t.Dropped}, {"TRUNCATE", t.Truncated}, {"MASS DELETE", t.MassDeletes}, {"rewrite", t.Rewritten}} {
		if len(m.names) > 0 {
			for i, name := range m.names {
				m.names[i] = printable(name)
			}
			parts = append(parts, m.word+" "+strings.Join(m.names, ", "))
		}
	}
	return parts
}

// printable is a name as it is, or quoted when a terminal would not show it as it is: whoever may create a table may call it anything.
func printable(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return r == utf8.RuneError || !strconv.IsPrint(r) }) {
		return strconv.Quote(name)
	}
	return name
}

// rowsText counts rows by relation. Those of TOAST tables are left out, those of catalogues are summed up.
func rowsText(t *journal.Transaction) []string {
	var parts []string
	system := 0
	for _, r := range t.Relations {
		switch {
		case r.System:
			system += r.Inserted + r.Updated + r.Deleted
		case r.Kind != "t":
			parts = append(parts, printable(r.Name)+": "+countsText(r))
		}
	}
	if system > 0 {
		parts = append(parts, fmt.Sprintf("catalogues: %d rows", system))
	}
	return parts
}

func countsText(r journal.Relation) string {
	var parts []string
	for _, c := range []struct {
		n    int
		word string
	}{{r.Inserted, "inserted"}, {r.Updated, "updated"}, {r.Deleted, "deleted"}} {
		if c.n != 0 {
			parts = append(parts, fmt.Sprintf("%d %s", c.n, c.word))
		}
	}
	if len(parts) == 0 {
		return "nothing in the end"
	}
	return strings.Join(parts, ", ")
}
