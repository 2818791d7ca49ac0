package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// poolOptions are the flags of `bench pool`.
type poolOptions struct {
	only        []string
	contestants []string
	rounds      int
	seconds     int
	warmup      int
	scale       int
	copyGB      float64
	idleClients int
	idleSettle  time.Duration
	pgBin       string
	results     string
	binaries    binaries
}

func poolCommand() *cobra.Command {
	var opt poolOptions
	cmd := &cobra.Command{
		Use:   "pool",
		Short: "Run the poolers against each other and print a table",
		Long: "Runs each workload with Postgres alone, pitr, PgBouncer and Odyssey in turn, round by round, and prints medians with their spread.\n" +
			"A pooler that is not there is a row that says so; a run that fails is a row that says so, and the exit code is 1.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runPool(cmd.Context(), opt, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&opt.only, "only", nil, "workloads to run (copy and tls stand for all that begin so); default: all")
	flags.StringSliceVar(&opt.contestants, "contestants", nil, "who takes part; default: all")
	flags.IntVar(&opt.rounds, "rounds", 7, "rounds; a median wants 7 or more")
	flags.IntVar(&opt.seconds, "seconds", 5, "length of a run of pgbench")
	flags.IntVar(&opt.warmup, "warmup", 1, "seconds of the same load before it, not counted; zero: none")
	flags.IntVar(&opt.scale, "scale", 10, "pgbench's scale factor")
	flags.Float64Var(&opt.copyGB, "copy-gb", 10, "GB that each contestant carries over all rounds of the three copy workloads")
	flags.IntVar(&opt.idleClients, "idle-clients", 10_000, "clients of the workload idle")
	flags.DurationVar(&opt.idleSettle, "idle-settle", 5*time.Second, "time between the last login of idle and the look at the memory")
	flags.StringVar(&opt.pgBin, "pg-bin", os.Getenv("PITR_PG_BIN"), "directory of Postgres's programs; default: the newest that scripts/pg.sh provides")
	flags.StringVar(&opt.results, "results", "", "directory of the result files; default: bench/results of the checkout")
	flags.StringVar(&opt.binaries.pitr, "pitr", "", "pitr's program; default: that which make build builds")
	flags.StringVar(&opt.binaries.pitrOther, "pitr-old", "", "another pitr to compare with, as a contestant of its own")
	flags.StringVar(&opt.binaries.pgbouncer, "pgbouncer", "", "PgBouncer's program; default: that of scripts/peers.sh")
	flags.StringVar(&opt.binaries.odyssey, "odyssey", "", "Odyssey's program; default: that of scripts/peers.sh")
	return cmd
}

func runPool(ctx context.Context, opt poolOptions, out, progress io.Writer) error {
	chosen, err := choose(opt.only)
	if err != nil {
		return err
	}
	if opt.rounds < 1 || opt.seconds < 1 {
		return errors.New("--rounds and --seconds begin at 1")
	}
	root, err := checkout()
	if err != nil {
		return err
	}
	if _, err := raiseOpenFiles(); err != nil {
		return err
	}
	e := &environment{progress: func(format string, args ...any) { fmt.Fprintf(progress, "bench: "+format+"\n", args...) }}
	if e.bin, err = findPostgres(root, opt.pgBin); err != nil {
		return err
	}
	if err := e.open(ctx, opt.scale); err != nil {
		return err
	}
	defer e.close()
	all, err := pick(e.contestants(ctx, root, opt.binaries), opt.contestants)
	if err != nil {
		return err
	}
	r := &race{environment: e, options: opt, contestants: all, workloads: chosen}
	r.results.circumstances = r.observe(ctx, root)
	if opt.results == "" {
		opt.results = filepath.Join(root, "bench", "results")
	}
	if r.journal, err = openJournal(opt.results, r.results.circumstances); err != nil {
		return err
	}
	err = r.run(ctx)
	if len(r.results.outcomes) > 0 {
		fmt.Fprint(out, renderTable(&r.results))
	}
	if err != nil {
		return fmt.Errorf("%w; what there is of results is in %s", err, r.journal.file.Name())
	}
	name, err := r.journal.publish()
	if err != nil {
		return err
	}
	e.progress("results are in %s", name)
	return r.failures()
}

// checkout is the directory of go.mod, from here upwards.
func checkout() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("run bench inside the checkout")
		}
		dir = filepath.Dir(dir)
	}
}

// pick keeps the contestants that are named; nothing keeps all.
func pick(all []*contestant, names []string) ([]*contestant, error) {
	if len(names) == 0 {
		return all, nil
	}
	var picked []*contestant
	for _, name := range names {
		before := len(picked)
		for _, c := range all {
			if c.name == name {
				picked = append(picked, c)
			}
		}
		if len(picked) == before {
			return nil, fmt.Errorf("there is no contestant %q", name)
		}
	}
	return picked, nil
}

// race is one invocation: all workloads with all contestants, round by round.
type race struct {
	*environment
	options     poolOptions
	contestants []*contestant
	workloads   []workload
	journal     *journal
	results     results
}

func (r *race) observe(ctx context.Context, root string) circumstances {
	c := observe(root)
	c.Rounds, c.Seconds, c.Warmup, c.Scale = r.options.rounds, r.options.seconds, r.options.warmup, r.options.scale
	c.CopyGB, c.Idle = r.options.copyGB, r.options.idleClients
	c.Postgres = r.serverSettings()
	for i, setting := range c.Postgres {
		c.Postgres[i] = strings.ReplaceAll(setting, r.dir+"/", "")
	}
	for _, one := range r.contestants {
		if one.version != "" {
			c.Versions[one.name] = one.version
		}
	}
	if out, err := run(ctx, launch{name: "postgres --version", args: []string{r.program("postgres"), "--version"}, dir: r.dir}); err == nil {
		c.Versions["postgres"] = strings.TrimPrefix(strings.TrimSpace(out), "postgres (PostgreSQL) ")
	}
	return c
}

var errInterrupted = errors.New("interrupted")

// run goes through rounds, workloads and contestants. The order of contestants moves on with every workload and
// with every round, so that nobody is always the first.
func (r *race) run(ctx context.Context) error {
	for round := 1; round <= r.options.rounds; round++ {
		for number, w := range r.workloads {
			for i := range r.contestants {
				c := r.contestants[(round+number+i)%len(r.contestants)]
				if c.name == direct && w.noDirect != "" {
					continue
				}
				o := r.one(ctx, w, c, round)
				if ctx.Err() != nil {
					return errInterrupted
				}
				r.results.outcomes = append(r.results.outcomes, o)
				if err := r.journal.add(o); err != nil {
					return err
				}
				r.progress("%s", o.line())
			}
		}
	}
	return nil
}

// one is one run: the contestant is started for it alone, and ended.
func (r *race) one(ctx context.Context, w workload, c *contestant, round int) outcome {
	o := outcome{Kind: "run", Workload: w.name, Contestant: c.name, Round: round, Absent: c.absent}
	if c.absent != "" {
		return o
	}
	if len(w.before) > 0 {
		if err := r.prepare(ctx, w.before...); err != nil {
			o.Failed = r.message(err)
			return o
		}
	}
	s, err := c.start(ctx, r.environment, w)
	if err != nil {
		o.Absent = r.message(err)
		return o
	}
	defer s.stop()
	switch w.kind {
	case kindPgbench:
		o.Values, err = r.pgbenchRun(ctx, s, w.load)
	case kindIdle:
		o.Values, err = r.idleRun(ctx, s)
	default:
		o.Values, err = r.copyRun(ctx, s, w.kind)
	}
	if err == nil && s.process != nil {
		err = s.process.ended()
	}
	if err != nil {
		o.Failed, o.Values = r.message(err), nil
	}
	return o
}

// message is an error on one line, without the name of a directory that will be gone.
func (r *race) message(err error) string {
	return strings.ReplaceAll(strings.ReplaceAll(err.Error(), r.dir+"/", ""), "\n", "; ")
}

// pgbenchRun warms up and measures. What the pooler used is counted between the first transaction's begin and the last one's
// end, so that logins count only where they are the workload.
func (r *race) pgbenchRun(ctx context.Context, s *service, l load) (map[metric]float64, error) {
	var warmed *report
	if r.options.warmup > 0 {
		warm := l
		warm.seconds, warm.sampling = r.options.warmup, 0
		var err error
		if warmed, err = r.pgbench(ctx, s.at, warm.withTimeToConnect(nil)); err != nil {
			return nil, fmt.Errorf("warm-up: %w", err)
		}
	}
	l.seconds = r.options.seconds
	stop := watch(s.pids())
	rep, err := r.pgbench(ctx, s.at, l.withTimeToConnect(warmed))
	seen := stop()
	if err != nil {
		return nil, err
	}
	values := map[metric]float64{tps: rep.tps, average: rep.average, p99: float64(percentile(rep.latencies, 99)) / 1000}
	if s.process == nil {
		return values, nil
	}
	cpu, err := seen.cpuBetween(rep.begin, rep.end)
	if err != nil {
		return nil, err
	}
	values[cpuPerTxn] = float64(cpu.Nanoseconds()) / 1000 / float64(rep.transactions)
	values[rss] = float64(seen.rssPeak()) / (1 << 20)
	return values, nil
}

// line is an outcome as progress shows it.
func (o outcome) line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "round %d  %-12s %-12s", o.Round, o.Workload, o.Contestant)
	switch {
	case o.Absent != "":
		b.WriteString(" absent: " + o.Absent)
	case o.Failed != "":
		b.WriteString(" FAILED: " + o.Failed)
	}
	for _, m := range metrics {
		if value, ok := o.Values[m]; ok {
			fmt.Fprintf(&b, "  %s %s", number(value), m.title())
		}
	}
	return b.String()
}

// failures is an error when a run has failed; who is absent has not.
func (r *race) failures() error {
	count := 0
	for _, o := range r.results.outcomes {
		if o.Failed != "" {
			count++
		}
	}
	if count > 0 {
		return fmt.Errorf("%d of %d runs failed", count, len(r.results.outcomes))
	}
	return nil
}
