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
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// archiveOptions are the flags of `bench archive`.
type archiveOptions struct {
	rigOptions
	latencies []time.Duration
	clients   []int
	costsOnly bool
}

func archiveCommand() *cobra.Command {
	var opt archiveOptions
	cmd := &cobra.Command{
		Use:   "archive",
		Short: "Measure how long commits wait for the archive, and what the archiver costs the primary",
		Long: "Commits of single inserts wait until an S3 server has their WAL, whose puts are delayed: with several puts in flight, and with one.\n" +
			"Then pgbench's TPC-B-like transactions without an archiver and with one that nobody waits for, and beside pg_receivewal.\n" +
			"In turn, round by round.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runArchive(cmd.Context(), opt, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	opt.resultFlags(flags)
	flags.DurationSliceVar(&opt.latencies, "latency", []time.Duration{5 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond}, "what a put takes longer than the server itself takes")
	flags.IntSliceVar(&opt.clients, "clients", []int{1, 8, 64}, "clients that commit")
	flags.BoolVar(&opt.costsOnly, "costs-only", false, "leave out the commits that wait")
	flags.IntVar(&opt.seconds, "seconds", 3, "length of a run of pgbench")
	return cmd
}

// The contestants of `bench archive`.
const (
	severalPuts = "several puts in flight"
	onePut      = "one put in flight"
	noArchiver  = "no archiver"
	archiving   = "archiver, S3 server on this machine"
	intoFiles   = "archiver, into a directory"
	receiving   = "pg_receivewal, into a directory"
)

// costly are those whose cost to the primary is compared.
var costly = []string{noArchiver, archiving, intoFiles, receiving}

// Metrics of `bench archive` that other workloads do not have.
const (
	putMean     metric = "put_mean_ms"
	perPut      metric = "commit_per_put"  // mean latency of a commit over the mean time of a put
	putsPerSec  metric = "puts_per_s"      //
	archiverCPU metric = "archiver_cpu_ms" // for a second of the load
)

// archiveRace is one invocation.
type archiveRace struct {
	*rig
	opt   archiveOptions
	store *slowStore
	runs  int
}

func runArchive(ctx context.Context, opt archiveOptions, out, progress io.Writer) error {
	if opt.rounds < 1 || opt.seconds < 1 {
		return errors.New("--rounds and --seconds begin at 1")
	}
	opt.durable = true
	rig, err := openRig(ctx, opt.rigOptions, progress)
	if err != nil {
		return err
	}
	defer rig.close()
	r := &archiveRace{rig: rig, opt: opt}
	if r.store, err = r.startStore(ctx, r.root); err != nil {
		return err
	}
	defer r.store.stop()
	return r.record(opt.rigOptions, func() error { return r.run(ctx) }, func() error { return r.print(out) })
}

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
			if r.opt.costsOnly {
				break
			}
			for i := range 2 {
				if err := r.waits(ctx, round, latency, []string{severalPuts, onePut}[(round+i)%2], script); err != nil {
					return err
				}
			}
		}
		for i := range costly {
			if err := r.costs(ctx, round, costly[(round+i)%len(costly)]); err != nil {
				return err
			}
		}
	}
	return nil
}

// archiver runs one with a repository of its own for as long as do takes.
func (r *archiveRace) archiver(ctx context.Context, store, puts string, do func(p *process) error) error {
	r.runs++
	name := fmt.Sprintf("archiver-%d.yaml", r.runs)
	port, err := freePort()
	if err != nil {
		return err
	}
	text := fmt.Sprintf("cluster: run%d\npostgres: {dsn: \"postgres://%s:%s@%s:%d/%s?sslmode=disable\"}\nhttp: {archiver: \"%s:%d\"}\nbackup: {schedule: \"\"}\narchive:\n  store: \"%s\"\n%s",
		r.runs, benchUser, benchPassword, r.server.host, r.server.port, benchDatabase, loopback, port, store, puts)
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
	return r.archiver(ctx, r.bucket(), puts, func(p *process) error {
		err := r.streams(ctx, p, "pitr")
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
	streaming := func(p *process) error {
		if err := r.streams(ctx, p, "pitr"); err != nil {
			return err
		}
		return measure(p)
	}
	directory := filepath.Join(r.dir, "directory")
	switch contestant {
	case noArchiver:
		return measure(nil)
	case archiving:
		r.store.set(20 * time.Millisecond)
		return r.archiver(ctx, r.bucket(), "", streaming)
	}
	if err := errors.Join(os.RemoveAll(directory), os.Mkdir(directory, 0o755), r.own(directory, 0o755)); err != nil {
		return err
	}
	if contestant == intoFiles {
		return r.archiver(ctx, "file://"+directory, "", streaming)
	}
	if err := r.prepare(ctx, "select pg_create_physical_replication_slot('receive', true)"); err != nil {
		return err
	}
	p, err := start(launch{name: receiving, args: []string{r.environment.program("pg_receivewal"), "-h", r.server.host, "-p", strconv.Itoa(r.server.port), "-U", benchUser, "-D", directory, "-S", "receive", "--no-loop"},
		dir: r.dir, as: r.as, env: r.server.env()})
	if err != nil {
		return err
	}
	if err = r.streams(ctx, p, "pg_receivewal"); err == nil {
		err = measure(p)
	}
	if err == nil {
		err = p.ended() // what has gone has cost nothing
	}
	p.stop(syscall.SIGTERM)
	return errors.Join(err, r.until(ctx, poolerStart, r.postgres, func() error {
		return r.prepare(ctx, "select pg_drop_replication_slot('receive')")
	}))
}

// streams waits until an archiver has caught up.
func (r *archiveRace) streams(ctx context.Context, p *process, name string) error {
	return r.until(ctx, poolerStart, p, func() error {
		return r.prepare(ctx, "do $$ begin if not exists (select from pg_stat_replication where application_name = '"+name+"' and state = 'streaming') then raise 'not yet'; end if; end $$")
	})
}

// bucket is the S3 server's, behind the proxy.
func (r *archiveRace) bucket() string {
	return fmt.Sprintf("s3://%s/repo?endpoint=http://%s:%d&region=us-east-1&path_style=true", storeBucket, loopback, r.store.port)
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
		for _, contestant := range append([]string{severalPuts, onePut}, costly...) {
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
