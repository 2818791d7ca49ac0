package main

import (
	"encoding/xml"
	"fmt"
	"math"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

func chartCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "chart FILE",
		Short: "Draw the chart of a result file, as SVG",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := readResults(args[0])
			if err != nil {
				return err
			}
			if out == "" {
				_, err := fmt.Fprint(cmd.OutOrStdout(), renderChart(r))
				return err
			}
			return os.WriteFile(out, []byte(renderChart(r)), 0o644)
		},
	}
	cmd.Flags().StringVarP(&out, "out", "o", "", "file to write; default: standard output")
	return cmd
}

// The chart's measures, in pixels.
const (
	chartWidth  = 860
	nameWidth   = 110
	panelWidth  = 330
	panelGap    = 40
	barHeight   = 11
	groupGap    = 10
	headHeight  = 74
	footHeight  = 24
	ratioMax    = 3.0 // longer bars are cut; their number is written all the same
	labelOffset = 4
)

// panel is one half of the chart: the first of its metrics that a workload has, as a ratio to PgBouncer.
type panel struct {
	title   string
	metrics []metric
}

var panels = []panel{
	{"throughput, more is better", []metric{tps, mbPerSec}},
	{"CPU per transaction or GB (idle: memory), less is better", []metric{cpuPerTxn, cpuPerGB, rss}},
}

var colours = map[string]string{pitr: "#2f6fde", pitrOther: "#9cbcf2", odyssey: "#a0a6ad"}

// renderChart draws, for each workload, a bar for each contestant's median ratio to PgBouncer with a line from the least to the
// greatest round; PgBouncer is the vertical line at 1.
func renderChart(r *results) string {
	contestants := charted(r)
	names := r.workloads()
	groupHeight := len(contestants)*barHeight + groupGap
	height := headHeight + len(names)*groupHeight + footHeight
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11" fill="#222">`+"\n",
		chartWidth, height, chartWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", chartWidth, height)
	text(&b, 10, 20, `font-size="14" font-weight="bold"`, "Ratio to PgBouncer, median of "+fmt.Sprint(r.circumstances.Rounds)+" rounds")
	x := 10
	for _, name := range contestants {
		fmt.Fprintf(&b, `<rect x="%d" y="31" width="10" height="10" fill="%s"/>`+"\n", x, colours[name])
		text(&b, x+14, 40, "", name)
		x += 30 + 7*len(name)
	}
	for i, p := range panels {
		left := nameWidth + i*(panelWidth+panelGap)
		text(&b, left, headHeight-14, `font-weight="bold"`, p.title)
		for row, workload := range names {
			top := headHeight + row*groupHeight
			if i == 0 {
				text(&b, 10, top+len(contestants)*barHeight/2+4, "", workload)
			}
			for n, contestant := range contestants {
				bar(&b, left, top+n*barHeight, colours[contestant], p.ratio(r, workload, contestant))
			}
		}
		one := left + int(panelWidth/ratioMax)
		fmt.Fprintf(&b, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="#222"/>`+"\n", one, headHeight-4, one, height-footHeight)
	}
	c := r.circumstances
	text(&b, 10, height-8, `fill="#666"`, fmt.Sprintf("commit %s, %s, %d cores, %s", c.Commit, c.Time.Format("2006-01-02"), c.Cores, versionsLine(c.Versions)))
	b.WriteString("</svg>\n")
	return b.String()
}

// charted lists the contestants that get bars.
func charted(r *results) []string {
	var found []string
	for _, name := range []string{pitr, pitrOther, odyssey} {
		for _, o := range r.outcomes {
			if o.Contestant == name && len(o.Values) > 0 {
				found = append(found, name)
				break
			}
		}
	}
	return found
}

func (p panel) ratio(r *results, workload, contestant string) spread {
	for _, m := range p.metrics {
		if s := r.ratio(workload, contestant, m); s.n > 0 {
			return s
		}
	}
	return spread{}
}

func bar(b *strings.Builder, x, y int, colour string, s spread) {
	if s.n == 0 {
		return
	}
	scale := func(ratio float64) float64 { return math.Min(ratio, ratioMax) * panelWidth / ratioMax }
	fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", x, y, scale(s.median), barHeight-2, colour)
	middle := float64(y) + float64(barHeight-2)/2
	fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#222" stroke-opacity="0.5"/>`+"\n",
		float64(x)+scale(s.min), middle, float64(x)+scale(s.max), middle)
	text(b, x+int(scale(math.Max(s.median, s.max)))+labelOffset, y+barHeight-3, `font-size="9"`, fmt.Sprintf("%.2f", s.median))
}

func text(b *strings.Builder, x, y int, attributes, content string) {
	fmt.Fprintf(b, `<text x="%d" y="%d" %s>`, x, y, attributes)
	_ = xml.EscapeText(b, []byte(content)) // a Builder takes everything
	b.WriteString("</text>\n")
}
