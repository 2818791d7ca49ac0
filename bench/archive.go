package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// archiveOptions are the flags of `bench archive`.
type archiveOptions struct {
	latencies []time.Duration
	clients   []int
	rounds    int
	seconds   int
	pgBin     string
	results   string
	pitr      string
}

func archiveCommand() *cobra.Command {
	var opt archiveOptions
	cmd := &cobra.Command{
		Use:   "archive",
		Short: "Measure how long commits wait for the archive, and what the archiver costs the primary",
		Long: "Commits of single inserts wait until an S3 server has their WAL, whose puts are delayed: with several puts in flight, and with one.\n" +
			"Then pgbench's TPC-B-like transactions without an archiver and with one that nobody waits for. In turn, round by round.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runArchive(cmd.Context(), opt, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.DurationSliceVar(&opt.latencies, "latency", []time.Duration{5 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond}, "what a put takes longer than the server itself takes")
	flags.IntSliceVar(&opt.clients, "clients", []int{1, 8, 64}, "clients that commit")
	flags.IntVar(&opt.rounds, "rounds", 5, "rounds")
	flags.IntVar(&opt.seconds, "seconds", 3, "length of a run of pgbench")
	flags.StringVar(&opt.pgBin, "pg-bin", os.Getenv("PITR_PG_BIN"), "directory of Postgres's programs; default: the newest that scripts/pg.sh provides")
	flags.StringVar(&opt.results, "results", "", "directory of the result files; default: bench/results of the checkout")
	flags.StringVar(&opt.pitr, "pitr", "", "pitr's program; default: that which make build builds")
	return cmd
}

// The contestants of `bench archive`.
const (
	severalPuts = "several puts in flight"
	onePut      = "one put in flight"
	noArchiver  = "no archiver"
	archiving   = "archiver"
)

// Metrics of `bench archive` that other workloads do not have.
const (
	putMean     metric = "put_mean_ms"
	perPut      metric = "commit_per_put"  // mean latency of a commit over the mean time of a put
	putsPerSec  metric = "puts_per_s"      //
	archiverCPU metric = "archiver_cpu_ms" // for a second of the load
)

// archiveRace is one invocation.
type archiveRace struct {
	*environment
	opt     archiveOptions
	store   *slowStore
	program string
	runs    int
	journal *journal
	results results
}

func runArchive(ctx context.Context, opt archiveOptions, out, progress io.Writer) (err error) {
	if opt.rounds < 1 || opt.seconds < 1 {
		return errors.New("--rounds and --seconds begin at 1")
	}
	root, err := checkout()
	if err != nil {
		return err
	}
	e := &environment{progress: func(format string, args ...any) { fmt.Fprintf(progress, "bench: "+format+"\n", args...) }}
	if e.bin, err = findPostgres(root, opt.pgBin); err != nil {
		return err
	}
	e.durable = true
	if err := e.open(ctx, archiveScale); err != nil {
		return err
	}
	defer e.close()
	r := &archiveRace{environment: e, opt: opt, program: filepath.Join(e.dir, "pitr")}
	if opt.pitr == "" {
		opt.pitr = filepath.Join(root, "bin", "pitr")
	}
	if err := copyProgram(opt.pitr, r.program); err != nil {
		return err
	}
	if r.store, err = e.startStore(ctx, root); err != nil {
		return err
	}
	defer r.store.stop()
	r.results.circumstances = observe(root)
	r.results.circumstances.Rounds, r.results.circumstances.Seconds, r.results.circumstances.Scale = opt.rounds, opt.seconds, archiveScale
	if opt.results == "" {
		opt.results = filepath.Join(root, "bench", "results")
	}
	if r.journal, err = openJournal(opt.results, r.results.circumstances); err != nil {
		return err
	}
	if err := r.run(ctx); err != nil {
		return fmt.Errorf("%w; what there is of results is in %s", err, r.journal.file.Name())
	}
	if err := r.print(out); err != nil {
		return err
	}
	name, err := r.journal.publish()
	if err == nil {
		e.progress("results are in %s", name)
	}
	return err
}

const archiveScale = 10

// run goes through the rounds; who begins changes with each.
func (r *archiveRace) run(ctx context.Context) error {
	script := filepath.Join(r.dir, "insert.sql")
	if err := os.WriteFile(script, []byte("insert into commits values (:client_id)\n"), 0o644); err != nil {
		return err
	}
	if err := r.prepare(ctx, "create table commits (client int)"); err != nil {
		return err
	}
	for round := 1; round <= r.opt.rounds; round++ {
		for _, latency := range r.opt.latencies {
			for i := range 2 {
				if err := r.waits(ctx, round, latency, []string{severalPuts, onePut}[(round+i)%2], script); err != nil {
					return err
				}
			}
		}
		for i := range 2 {
			if err := r.costs(ctx, round, []string{noArchiver, archiving}[(round+i)%2]); err != nil {
				return err
			}
		}
	}
	return nil
}

// archiver runs one with a repository of its own for as long as do takes.
func (r *archiveRace) archiver(ctx context.Context, puts string, do func(p *process) error) error {
	r.runs++
	name := fmt.Sprintf("archiver-%d.yaml", r.runs)
	port, err := freePort()
	if err != nil {
		return err
	}
	text := fmt.Sprintf("cluster: run%d\npostgres: {dsn: \"postgres://%s:%s@%s:%d/%s?sslmode=disable\"}\nhttp: {archiver: \"%s:%d\"}\n"+
		"archive:\n  store: \"s3://%s/repo?endpoint=http://%s:%d&region=us-east-1&path_style=true\"\n%s",
		r.runs, benchUser, benchPassword, r.server.host, r.server.port, benchDatabase, loopback, port, storeBucket, loopback, r.store.port, puts)
	if err := r.write(name, text); err != nil {
		return err
	}
	p, err := start(launch{name: "pitr archiver", args: []string{r.program, "archiver", "-c", filepath.Join(r.dir, name)}, dir: r.dir, as: r.as,
		env: []string{"AWS_ACCESS_KEY_ID=" + storeUser, "AWS_SECRET_ACCESS_KEY=" + storeSecret}})
	if err != nil {
		return err
	}
	err = do(p)
	p.stop(syscall.SIGTERM)
	return errors.Join(err, r.settled(ctx))
}

// settled drops the slot once its archiver has gone, so that the next one begins where the log ends.
func (r *archiveRace) settled(ctx context.Context) error {
	return r.until(ctx, poolerStart, r.postgres, func() error {
		return r.prepare(ctx, "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = 'pitr'", "checkpoint")
	})
}

// eagerAfter is how long an archiver may take to find out that commits wait for it.
const eagerAfter = 6 * time.Second

// waits measures commits that return once the store has them.
func (r *archiveRace) waits(ctx context.Context, round int, latency time.Duration, contestant, script string) error {
	puts := "  puts_in_flight: 1\n"
	if contestant == severalPuts {
		puts = ""
	}
	r.store.set(latency)
	return r.archiver(ctx, puts, func(p *process) error {
		err := r.until(ctx, poolerStart, p, func() error {
			return r.prepare(ctx, "do $$ begin if not exists (select from pg_stat_replication where application_name = 'pitr' and state = 'streaming') then raise 'not yet'; end if; end $$")
		})
		if err == nil {
			err = r.prepare(ctx, "alter system set synchronous_standby_names = 'pitr'", "select pg_reload_conf()")
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(eagerAfter):
		}
		for _, clients := range r.opt.clients {
			r.store.set(latency)
			report, err := r.pgbench(ctx, r.server, load{clients: clients, threads: min(2, clients), args: []string{"-f", script}, seconds: r.opt.seconds, sampling: 1})
			if err != nil {
				return err
			}
			n, mean := r.store.counted()
			millis := float64(mean) / float64(time.Millisecond)
			if err := r.note(round, fmt.Sprintf("sync, put +%s, %d clients", latency, clients), contestant, map[metric]float64{
				tps: report.tps, average: report.average, p99: float64(percentile(report.latencies, 99)) / 1000,
				putMean: millis, perPut: report.average / millis, putsPerSec: float64(n) / float64(r.opt.seconds)}); err != nil {
				return err
			}
		}
		return r.prepare(ctx, "set synchronous_commit = local", "alter system reset synchronous_standby_names", "select pg_reload_conf()")
	})
}

// costs measures what archiving costs the primary when nobody waits for it.
func (r *archiveRace) costs(ctx context.Context, round int, contestant string) error {
	load := load{clients: 8, threads: 2, seconds: 2 * r.opt.seconds, sampling: 1}
	measure := func(p *process) error {
		if err := r.prepare(ctx, "truncate pgbench_history", "vacuum pgbench_branches, pgbench_tellers, pgbench_accounts", "checkpoint"); err != nil {
			return err
		}
		values := map[metric]float64{}
		used := watch(nil)
		if p != nil {
			used = watch([]int{p.cmd.Process.Pid})
		}
		report, err := r.pgbench(ctx, r.server, load)
		usage := used()
		if err != nil {
			return err
		}
		values[tps], values[average], values[p99] = report.tps, report.average, float64(percentile(report.latencies, 99))/1000
		if p != nil {
			cpu, err := usage.cpuBetween(report.begin, report.end)
			if err != nil {
				return err
			}
			values[archiverCPU] = float64(cpu.Milliseconds()) / report.end.Sub(report.begin).Seconds()
		}
		return r.note(round, "pgbench TPC-B-like, 8 clients, nobody waits", contestant, values)
	}
	if contestant == noArchiver {
		return measure(nil)
	}
	r.store.set(20 * time.Millisecond)
	return r.archiver(ctx, "", measure)
}

func (r *archiveRace) note(round int, workload, contestant string, values map[metric]float64) error {
	o := outcome{Kind: "run", Workload: workload, Contestant: contestant, Round: round, Values: values}
	r.results.outcomes = append(r.results.outcomes, o)
	r.progress("round %d  %s, %s: %.0f txn/s, %.2f ms", round, workload, contestant, values[tps], values[average])
	return r.journal.add(o)
}

// print shows medians with their spread, and how much better several puts are than one, or an archiver than none.
func (r *archiveRace) print(out io.Writer) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "workload\t\ttxn/s\tratio\tavg ms\tp99 ms\tput ms\tcommit / put\tputs/s\tarchiver CPU ms/s")
	for _, workload := range r.results.workloads() {
		base := noArchiver
		if strings.HasPrefix(workload, "sync") {
			base = onePut
		}
		for _, contestant := range []string{severalPuts, onePut, archiving, noArchiver} {
			if len(r.results.values(workload, contestant, tps)) > 0 {
				fmt.Fprintln(t, r.row(workload, contestant, base))
			}
		}
	}
	return t.Flush()
}

func (r *archiveRace) row(workload, contestant, base string) string {
	cells := []string{workload, contestant}
	for _, m := range []metric{tps, average, p99, putMean, perPut, putsPerSec, archiverCPU} {
		values := r.results.values(workload, contestant, m)
		s := summarize(slices.Collect(maps.Values(values)))
		if s.n == 0 {
			cells = append(cells, "")
			continue
		}
		cells = append(cells, fmt.Sprintf("%.4g (%.4g to %.4g)", s.median, s.min, s.max))
		if m == tps {
			ratio := ""
			if contestant != base {
				ratio = fmt.Sprintf("×%.3f", summarize(ratios(values, r.results.values(workload, base, m))).median)
			}
			cells = append(cells, ratio)
		}
	}
	return strings.Join(cells, "\t")
}
