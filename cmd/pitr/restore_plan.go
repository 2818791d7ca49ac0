package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"pitr/restore"
	"pitr/restore/journal"
)

// planLine is a line of a plan: a name in the margin, and what it is.
func planLine(w io.Writer, name, format string, args ...any) {
	fmt.Fprintf(w, "%-16s %s\n", name, fmt.Sprintf(format, args...))
}

func printPlan(w io.Writer, plan *restore.Plan, into string) {
	planLine(w, "target", "%s", plan.Target)
	planLine(w, "backup", "%s, ended %s, PostgreSQL %d, %s in %d files", plan.BackupID, plan.Backup.StopTime.UTC().Format("2006-01-02 15:04:05Z07:00"),
		plan.Backup.Major, bytesText(plan.BackupBytes), plan.Backup.Files)
	word := "before"
	if plan.StopAt {
		word = "after"
	}
	planLine(w, "recovery", "stops %s the record at %s on the way to timeline %d", word, plan.StopLSN, plan.Timeline)
	if plan.LastIncluded != nil {
		planLine(w, "last included", "%s", plan.LastIncluded)
		printTouched(w, plan.LastIncluded.Touched)
	} else {
		planLine(w, "last included", "nothing behind the backup")
	}
	if plan.FirstExcluded != nil {
		planLine(w, "first excluded", "%s", plan.FirstExcluded)
		printTouched(w, plan.FirstExcluded.Touched)
	} else {
		planLine(w, "first excluded", "nothing: this is the end of the archive")
	}
	planLine(w, "left behind", "%d commits and aborts", plan.LeftBehind)
	printConsequences(w, plan)
	planLine(w, "to fetch", "%s of backup, %s of WAL in %d segments to replay", bytesText(plan.FetchBytes), bytesText(plan.WALBytes), plan.Segments)
	planLine(w, "expected", "%s", expectedText(plan.Expected))
	if into != "" {
		planLine(w, "into", "%s", into)
	}
	for _, warning := range plan.Warnings {
		planLine(w, "warning", "%s", warning)
	}
}

// printTouched tells what a transaction has done, as `pitr log` does.
func printTouched(w io.Writer, t *journal.Transaction) {
	if t != nil {
		planLine(w, "", "%s", workText(t))
	}
}

// printConsequences tells what will be otherwise than it was on the origin.
func printConsequences(w io.Writer, plan *restore.Plan) {
	for _, p := range plan.Prepared {
		planLine(w, "prepared", "'%s' (xid %d) is neither committed nor rolled back at the target, and holds its locks", printable(p.GID), p.XID)
	}
	if n := len(plan.Unlogged); n > 0 {
		shown := plan.Unlogged[:min(n, unloggedShown)]
		more := ""
		if n > len(shown) {
			more = fmt.Sprintf(" and %d more", n-len(shown))
		}
		planLine(w, "unlogged", "will be empty: %s%s", printable(strings.Join(shown, ", ")), more)
	}
	for _, r := range plan.Raised {
		planLine(w, "raised", "%s = %d, which the WAL requires; the backup has %d", r.Name, r.Needed, r.Backup)
	}
	for _, f := range plan.Outside {
		if f.Copy == "" {
			planLine(w, "configuration", "%s lay outside of the data directory, and the backup does not have it", printable(f.Path))
		} else {
			planLine(w, "configuration", "%s lay outside of the data directory: it is put beside as %s, and is not in effect; take over from it what the server needs", printable(f.Path), f.Copy)
		}
	}
	for _, c := range plan.Reordered {
		planLine(w, "collation", "%s", printable(c.String()))
	}
}

// unloggedShown is how many unlogged tables are named to a person; --json has all.
const unloggedShown = 10

func expectedText(e restore.Estimate) string {
	basis := fmt.Sprintf("not measured yet: assumes %s/s fetched, %s/s replayed", bytesText(e.FetchRate), bytesText(e.ReplayRate))
	if e.Measured != nil {
		basis = fmt.Sprintf("as measured %s: %s/s fetched, %s/s replayed", e.Measured.UTC().Format("2006-01-02"), bytesText(e.FetchRate), bytesText(e.ReplayRate))
	}
	total := e.Total()
	text := "less than a minute"
	if total >= time.Minute {
		text = fmt.Sprintf("%.0f minutes", (total + 30*time.Second).Minutes())
	}
	return text + "; " + basis
}
