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

// walOptions are the flags of `bench wal`.
type walOptions struct {
	rigOptions
	megabytes int
}

func walCommand() *cobra.Command {
	var opt walOptions
	cmd := &cobra.Command{
		Use:   "wal",
		Short: "Measure what archiving the same WAL costs pitr, pg_receivewal with zstd, and pgBackRest",
		Long: "pgbench fills the log of a Postgres; then each archives the same segments into a directory of its own, in turn, round by round: CPU seconds\n" +
			"for a gigabyte of WAL, of the archiving processes alone, and their largest resident set. All compress with zstd at level 1.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runWAL(cmd.Context(), opt, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	opt.resultFlags(flags)
	flags.IntVar(&opt.megabytes, "megabytes", 1024, "WAL to archive")
	return cmd
}

// The contestants of `bench wal`.
const (
	walArchiver   = "pitr archiver"
	walPush       = "pitr wal push"
	walReceive    = "pg_receivewal, zstd -1"
	walPgBackRest = "pgBackRest archive-push"
)

// Metrics of `bench wal`.
const (
	cpuPerWAL metric = "cpu_s_per_gb"
	rssMax    metric = "rss_max_mb"
	wallTime  metric = "seconds_per_gb"
	stored    metric = "stored_mb"
)

// walRace is one invocation.
type walRace struct {
	*rig
	opt        walOptions
	pgbackrest string // "": it could not be had
	absent     string // why
	start, end string // LSNs of segment starts
	segments   []string
}

func runWAL(ctx context.Context, opt walOptions, out, progress io.Writer) error {
	if opt.rounds < 1 || opt.megabytes < 32 {
		return errors.New("--rounds begins at 1, --megabytes at 32")
	}
	opt.sockets = true
	rig, err := openRig(ctx, opt.rigOptions, progress)
	if err != nil {
		return err
	}
	defer rig.close()
	r := &walRace{rig: rig, opt: opt}
	if r.pgbackrest, err = script(r.root, "scripts/peers.sh", "pgbackrest"); err != nil {
		r.absent = err.Error()
	}
	return r.record(opt.rigOptions, func() error { return r.run(ctx) }, func() error { return r.print(out) })
}

func (r *walRace) run(ctx context.Context) error {
	if err := r.fill(ctx); err != nil {
		return err
	}
	contestants := []string{walArchiver, walReceive, walPgBackRest, walPush}
	for round := 1; round <= r.opt.rounds; round++ {
		for i := range contestants {
			if err := r.archive(ctx, round, contestants[(round+i)%len(contestants)]); err != nil {
				return err
			}
		}
	}
	return nil
}

// fill makes the WAL. A slot that nobody uses keeps it.
func (r *walRace) fill(ctx context.Context) error {
	err := r.prepare(ctx, "select pg_switch_wal()", "checkpoint", "select pg_create_physical_replication_slot('mark', true)", "select pg_switch_wal()")
	if err != nil {
		return err
	}
	if r.start, err = r.ask(ctx, "select pg_lsn(pg_current_wal_insert_lsn() - (pg_current_wal_insert_lsn() - '0/0') % (16 * 1024 * 1024))"); err != nil {
		return err
	}
	r.progress("writing %d MB of WAL", r.opt.megabytes)
	for written := 0.0; written < float64(r.opt.megabytes); {
		if _, err := r.pgbench(ctx, r.server, load{clients: 8, threads: 2, seconds: 5, sampling: 1}); err != nil {
			return err
		}
		text, err := r.ask(ctx, "select (pg_current_wal_insert_lsn() - '"+r.start+"') / (1024 * 1024)")
		if err != nil {
			return err
		}
		if written, err = strconv.ParseFloat(text, 64); err != nil {
			return err
		}
	}
	if err := r.prepare(ctx, "select pg_switch_wal()"); err != nil {
		return err
	}
	if r.end, err = r.ask(ctx, "select pg_lsn(pg_current_wal_insert_lsn() - (pg_current_wal_insert_lsn() - '0/0') % (16 * 1024 * 1024))"); err != nil {
		return err
	}
	names, err := r.ask(ctx, fmt.Sprintf("select string_agg(pg_walfile_name('%s'::pg_lsn + (n * 16 * 1024 * 1024)::numeric + 1), ' ' order by n) "+
		"from generate_series(0, ('%s'::pg_lsn - '%s'::pg_lsn) / (16 * 1024 * 1024) - 1) n", r.start, r.end, r.start))
	if r.segments = strings.Fields(names); err == nil && len(r.segments) == 0 {
		err = errors.New("no WAL was written")
	}
	return err
}

// archive lets one contestant archive the segments into a directory of its own.
func (r *walRace) archive(ctx context.Context, round int, contestant string) error {
	o := outcome{Kind: "run", Workload: "WAL of pgbench, into a directory", Contestant: contestant, Round: round}
	dir := filepath.Join(r.dir, "archive")
	if err := errors.Join(os.MkdirAll(dir, 0o755), r.own(dir, 0o755)); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var used spent
	var err error
	switch {
	case contestant == walPgBackRest && r.pgbackrest == "":
		o.Absent = r.absent
	case contestant == walArchiver:
		used, err = r.byArchiver(ctx, dir)
	case contestant == walReceive:
		used, err = r.byReceiver(ctx, dir)
	case contestant == walPgBackRest:
		used, err = r.byPgBackRest(ctx, dir)
	case contestant == walPush:
		used, err = r.byPush(ctx, dir)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", contestant, err)
	}
	if o.Absent == "" {
		gigabytes := float64(len(r.segments)) * 16 / 1024
		size, err := sizeOf(dir)
		if err != nil {
			return err
		}
		o.Values = map[metric]float64{cpuPerWAL: used.cpu.Seconds() / gigabytes, rssMax: float64(used.rss) / (1 << 20), wallTime: used.wall.Seconds() / gigabytes,
			stored: float64(size) / (1 << 20)}
		r.progress("round %d  %s: %.2f CPU-s/GB, %.0f MB, %.1f s/GB, %.0f MB stored", round, contestant, o.Values[cpuPerWAL], o.Values[rssMax], o.Values[wallTime], o.Values[stored])
	}
	r.results.outcomes = append(r.results.outcomes, o)
	return r.journal.add(o)
}

func (r *walRace) config(dir string) (string, error) {
	text := fmt.Sprintf("cluster: run\npostgres: {dsn: \"postgres://%s:%s@%s:%d/%s?sslmode=disable\"}\nhttp: {archiver: \"\"}\nbackup: {schedule: \"\"}\n"+
		"archive: {store: \"file://%s\"}\n", benchUser, benchPassword, r.server.host, r.server.port, benchDatabase, dir)
	return filepath.Join(r.dir, "wal.yaml"), r.write("wal.yaml", text)
}

// byArchiver streams from a copy of the slot that keeps the WAL.
func (r *walRace) byArchiver(ctx context.Context, dir string) (used spent, err error) {
	config, err := r.config(dir)
	if err == nil {
		err = r.prepare(ctx, "select pg_copy_physical_replication_slot('mark', 'pitr')")
	}
	if err != nil {
		return used, err
	}
	began := time.Now()
	p, err := start(launch{name: walArchiver, args: []string{r.program, "archiver", "-c", config}, dir: r.dir, as: r.as})
	if err != nil {
		return used, err
	}
	err = r.until(ctx, 5*time.Minute, p, func() error {
		return r.prepare(ctx, "do $$ begin if not exists (select from pg_stat_replication where application_name = 'pitr' and flush_lsn >= '"+r.end+"') then raise 'not yet'; end if; end $$")
	})
	p.stop(syscall.SIGTERM)
	if err == nil {
		used, err = spentBy(p, began)
	}
	return used, errors.Join(err, r.until(ctx, poolerStart, r.postgres, func() error {
		return r.prepare(ctx, "select pg_drop_replication_slot('pitr')")
	}))
}

// byReceiver compresses each segment once it is whole, as a script beside pg_receivewal would.
func (r *walRace) byReceiver(ctx context.Context, dir string) (used spent, err error) {
	if err := r.prepare(ctx, "select pg_copy_physical_replication_slot('mark', 'receive')"); err != nil {
		return used, err
	}
	used, err = r.measured(ctx, launch{name: walReceive, args: []string{"sh", "-ec", `"$0" -h "$1" -p "$2" -U "$3" -D "$4" -S receive --endpos "$5" --no-loop
		for f in "$4"/*; do zstd -q -1 --rm "$f"; done`, r.environment.program("pg_receivewal"), r.server.host, strconv.Itoa(r.server.port), benchUser, dir, r.end}})
	return used, errors.Join(err, r.prepare(ctx, "select pg_drop_replication_slot('receive')"))
}

// eachSegment calls a program for each segment, as archive_command does.
func (r *walRace) eachSegment(ctx context.Context, name string, program ...string) (spent, error) {
	script := `wal=$1; n=$2; shift 2; i=0; set -- "$@"
		for s in $SEGMENTS; do "$@" "$wal/$s"; i=$((i + 1)); done; [ "$i" = "$n" ]`
	args := append([]string{"sh", "-ec", script, "sh", filepath.Join(r.dir, "data", "pg_wal"), strconv.Itoa(len(r.segments))}, program...)
	return r.measured(ctx, launch{name: name, args: args, env: []string{"SEGMENTS=" + strings.Join(r.segments, " ")}})
}

func (r *walRace) byPush(ctx context.Context, dir string) (spent, error) {
	config, err := r.config(dir)
	if err != nil {
		return spent{}, err
	}
	return r.eachSegment(ctx, walPush, r.program, "-c", config, "wal", "push")
}

func (r *walRace) byPgBackRest(ctx context.Context, dir string) (spent, error) {
	text := fmt.Sprintf("[global]\nrepo1-path=%s\ncompress-type=zst\ncompress-level=1\nlog-level-console=error\nlog-level-file=off\nlock-path=%s\nspool-path=%s\n\n"+
		"[bench]\npg1-path=%s\npg1-port=%d\npg1-socket-path=%s\npg1-user=%s\npg1-database=%s\n",
		dir, r.dir, r.dir, filepath.Join(r.dir, "data"), r.server.port, r.dir, benchUser, benchDatabase)
	if err := r.write("pgbackrest.conf", text); err != nil {
		return spent{}, err
	}
	common := []string{r.pgbackrest, "--config=" + filepath.Join(r.dir, "pgbackrest.conf"), "--stanza=bench"}
	if _, err := r.measured(ctx, launch{name: "pgbackrest stanza-create", args: append(slices.Clone(common), "stanza-create")}); err != nil {
		return spent{}, err
	}
	return r.eachSegment(ctx, walPgBackRest, append(common, "archive-push")...)
}

// print shows medians with their spread.
func (r *walRace) print(out io.Writer) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tCPU s/GB\tratio\tlargest process MB\ts/GB\tstored MB")
	for _, workload := range r.results.workloads() {
		base := r.results.values(workload, walPgBackRest, cpuPerWAL)
		for _, contestant := range []string{walArchiver, walReceive, walPgBackRest, walPush} {
			cells := []string{contestant}
			for _, m := range []metric{cpuPerWAL, rssMax, wallTime, stored} {
				values := r.results.values(workload, contestant, m)
				s := summarize(slices.Collect(maps.Values(values)))
				if s.n == 0 {
					cells = append(cells, "absent")
					continue
				}
				cells = append(cells, fmt.Sprintf("%.3g (%.3g to %.3g)", s.median, s.min, s.max))
				if m == cpuPerWAL {
					cells = append(cells, fmt.Sprintf("×%.2f", summarize(ratios(values, base)).median))
				}
			}
			fmt.Fprintln(t, strings.Join(cells, "\t"))
		}
	}
	return t.Flush()
}
