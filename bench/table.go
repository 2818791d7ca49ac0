package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

func tableCommand() *cobra.Command {
	var markdown bool
	cmd := &cobra.Command{
		Use:   "table FILE",
		Short: "Print the table of a result file",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := readResults(args[0])
			if err != nil {
				return err
			}
			text := renderTable(r)
			if markdown {
				text = renderMarkdown(r, args[0])
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), text)
			return err
		},
	}
	cmd.Flags().BoolVar(&markdown, "markdown", false, "a short table for the README, with the commit and a link to the file as it is named here")
	return cmd
}

// renderTable shows, for each workload, every contestant's median (min to max) of every metric, and below each but PgBouncer's the
// ratio to PgBouncer's, with the goal behind pitr's.
func renderTable(r *results) string {
	var b strings.Builder
	c := r.circumstances
	fmt.Fprintf(&b, "commit %s, %s; %d cores of %s, Linux %s, load average before %s\n", c.Commit, c.Time.Format("2006-01-02 15:04:05Z"), c.Cores, c.CPU, c.Kernel, c.Load)
	fmt.Fprintf(&b, "%d rounds of %d s, pool %d, pgbench scale %d, copy %g GB, idle %d clients\n", c.Rounds, c.Seconds, c.PoolSize, c.Scale, c.CopyGB, c.Idle)
	b.WriteString("median (min to max); below it the ratio to PgBouncer, taken round by round, and pitr's goal for it\n")
	fmt.Fprintf(&b, "%s\n", versionsLine(c.Versions))
	for _, name := range r.workloads() {
		b.WriteString("\n" + workloadTable(r, workloadNamed(name)))
	}
	return b.String()
}

func versionsLine(versions map[string]string) string {
	var parts []string
	for _, name := range []string{"postgres", pitr, pitrOther, pgbouncer, odyssey} {
		if version := versions[name]; version != "" {
			parts = append(parts, name+" "+version)
		}
	}
	return strings.Join(parts, ", ")
}

func workloadTable(r *results, w workload) string {
	var shown []metric
	contestants := r.contestants(w.name)
	for _, m := range metrics {
		for _, c := range contestants {
			if len(r.values(w.name, c, m)) > 0 {
				shown = append(shown, m)
				break
			}
		}
	}
	head := []string{w.name}
	for _, m := range shown {
		head = append(head, m.title())
	}
	rows := [][]string{head}
	notes := map[int]string{} // what stands behind a row's name instead of numbers
	for _, c := range contestants {
		if trouble := r.trouble(w.name, c); trouble != "" {
			notes[len(rows)] = trouble
			rows = append(rows, []string{c})
		}
		values, compared := []string{c}, []string{""}
		any := false
		for _, m := range shown {
			s := summarize(mapValues(r.values(w.name, c, m)))
			values = append(values, s.String())
			compared = append(compared, ratioCell(r, w, c, m))
			any = any || s.n > 0
		}
		if any {
			rows = append(rows, values)
		}
		if any && strings.Join(compared, "") != "" {
			rows = append(rows, compared)
		}
	}
	title := w.about
	if w.noDirect != "" {
		title += " (no direct: " + w.noDirect + ")"
	}
	return title + "\n" + align(rows, notes)
}

// ratioCell is a contestant's ratio to PgBouncer; behind pitr's stands the goal, and whether it is reached.
func ratioCell(r *results, w workload, contestant string, m metric) string {
	if contestant == pgbouncer {
		return ""
	}
	s := r.ratio(w.name, contestant, m)
	if s.n == 0 {
		return ""
	}
	cell := fmt.Sprintf("×%.2f", s.median)
	if contestant != pitr && contestant != pitrOther {
		return cell
	}
	if s.n > 1 {
		cell += fmt.Sprintf(" (%.2f to %.2f)", s.min, s.max)
	}
	g, wanted := w.goal(m)
	switch {
	case !wanted:
		return cell
	case g.reached(s.median):
		return cell + fmt.Sprintf(" %s reached", g)
	}
	return cell + fmt.Sprintf(" %s MISSED", g)
}

// String is the median with what the rounds were.
func (s spread) String() string {
	switch s.n {
	case 0:
		return "-"
	case 1:
		return number(s.median)
	}
	return fmt.Sprintf("%s (%s to %s)", number(s.median), number(s.min), number(s.max))
}

// number has three significant digits, or all before the point.
func number(v float64) string {
	if v == 0 || math.IsNaN(v) {
		return "0"
	}
	digits := 2 - int(math.Floor(math.Log10(math.Abs(v))))
	return strconv.FormatFloat(v, 'f', max(digits, 0), 64)
}

func mapValues(values map[int]float64) []float64 {
	var list []float64
	for _, v := range values {
		list = append(list, v)
	}
	return list
}

// align sets rows in columns, a note behind the first cell of its row.
func align(rows [][]string, notes map[int]string) string {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for number, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString("  " + cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)))
		}
		line.WriteString("  " + notes[number])
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}
