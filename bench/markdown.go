package main

import (
	"fmt"
	"strings"
)

// markdownMetrics are those that the README shows, as far as a workload has them.
var markdownMetrics = []metric{tps, mbPerSec, average, p99, cpuPerTxn, cpuPerGB, rss}

// renderMarkdown is a line for each workload and metric that has a goal, and the commit with a link to the raw file.
func renderMarkdown(r *results, file string) string {
	contestants := []string{pitr, pgbouncer, odyssey}
	var b strings.Builder
	b.WriteString("| workload | metric | pitr | PgBouncer | Odyssey | pitr / PgBouncer | goal |\n|---|---|---|---|---|---|---|\n")
	for _, name := range r.workloads() {
		w := workloadNamed(name)
		for _, m := range markdownMetrics {
			g, wanted := w.goal(m)
			if !wanted {
				continue
			}
			fmt.Fprintf(&b, "| %s | %s |", w.about, m.title())
			for _, c := range contestants {
				cell := summarize(mapValues(r.values(name, c, m))).String()
				if trouble := r.trouble(name, c); trouble != "" {
					cell, _, _ = strings.Cut(trouble, ":") // FAILED in …, or absent; the file has the reason
				}
				fmt.Fprintf(&b, " %s |", cell)
			}
			ratio := "-"
			if s := r.ratio(name, pitr, m); s.n > 0 {
				ratio = fmt.Sprintf("%.2f (%.2f to %.2f)", s.median, s.min, s.max)
			}
			fmt.Fprintf(&b, " %s | %s |\n", ratio, strings.NewReplacer("<=", "≤", ">=", "≥").Replace(g.String()))
		}
	}
	c := r.circumstances
	fmt.Fprintf(&b, "\nMedian (min to max) of %d rounds; the ratio is taken round by round. Commit %s, %s, %d cores of %s, %s; [every run](%s).\n",
		c.Rounds, c.Commit, c.Time.Format("2006-01-02"), c.Cores, c.CPU, versionsLine(c.Versions), file)
	return b.String()
}

// goal is the workload's goal for a metric, if it has one.
func (w workload) goal(m metric) (goal, bool) {
	for _, g := range w.goals {
		if g.metric == m {
			return g, true
		}
	}
	return goal{}, false
}
