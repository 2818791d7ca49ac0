package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// backupOptions are the flags of `bench backup`.
type backupOptions struct {
	rigOptions
	megabytes int // of WAL to be replayed
}

func backupCommand() *cobra.Command {
	var opt backupOptions
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Measure backups and restores of pitr, pgBackRest, and pg_basebackup with zstd",
		Long: "A Postgres with pgbench's tables is backed up as a whole; again after one row in a hundred was updated at random; and is restored to an instant with WAL to be replayed.\n" +
			"Each contestant has a repository in a directory of its own; all compress with zstd at level 1, on all cores; pgBackRest bundles files and keeps incremental blocks.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runBackups(cmd.Context(), opt, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	opt.resultFlags(flags)
	flags.IntVar(&opt.scale, "scale", 200, "scale of pgbench's tables")
	flags.StringVar(&opt.source, "source", "files", "backup.source of pitr: files reads the data directory, as pgBackRest does here; server has Postgres send it")
	flags.IntVar(&opt.megabytes, "megabytes", 2048, "WAL that a restore replays")
	return cmd
}

// The contestants of `bench backup`.
const (
	withPitr       = "pitr"
	withPgBackRest = "pgBackRest"
	withBaseBackup = "pg_basebackup, zstd -1"
)

// What is measured.
const (
	fullBackup    = "full backup"
	secondBackup  = "second backup, 1 % updated"
	wholeRestore  = "restore to a time"
	segmentFetch  = "WAL fetched for a restore"
	seconds       = metric("seconds")
	cpuSeconds    = metric("cpu_s")
	machineTime   = metric("machine_cpu_s") // of everything on the machine, the server among it
	perSecond     = metric("segments_per_s")
	accountsScale = 100_000 // rows of pgbench_accounts for each unit of scale: naccounts in src/bin/pgbench/pgbench.c
)

// backupRace is one invocation.
type backupRace struct {
	*rig
	opt        backupOptions
	cores      int
	pgbackrest []string // the program and its options; nil: it could not be had
	absent     string   // why
	archiver   *process
	target     string   // time that is restored to
	segments   []string // that a restore needs
	command    string   // restore_command of what pitr has restored
}

func runBackups(ctx context.Context, opt backupOptions, out, progress io.Writer) error {
	if opt.source != "files" && opt.source != "server" {
		return fmt.Errorf("--source is files or server, not %q", opt.source)
	}
	if opt.rounds < 1 || opt.megabytes < 32 || opt.scale < 1 {
		return errors.New("--rounds and --scale begin at 1, --megabytes at 32")
	}
	opt.sockets, opt.durable = true, true
	root, err := checkout()
	if err != nil {
		return err
	}
	r := &backupRace{cores: runtime.NumCPU()}
	if program, err := script(root, "scripts/peers.sh", "pgbackrest"); err != nil {
		r.absent = err.Error()
	} else {
		r.pgbackrest = []string{program}
	}
	opt.settings = []string{"archive_mode=on"}
	if r.rig, err = openRig(ctx, opt.rigOptions, progress); err != nil {
		return err
	}
	defer r.close()
	r.opt = opt
	defer func() {
		if r.archiver != nil {
			r.archiver.stop(syscall.SIGTERM)
		}
	}()
	return r.record(opt.rigOptions, func() error { return r.run(ctx) }, func() error { return r.print(out) })
}

func (r *backupRace) run(ctx context.Context) error {
	if err := r.setUp(ctx); err != nil {
		return err
	}
	for round := 1; round <= r.opt.rounds; round++ {
		if err := r.each(ctx, round, fullBackup, []string{withPitr, withPgBackRest, withBaseBackup}); err != nil {
			return err
		}
		// One row in a hundred, anywhere.
		rows := r.opt.scale * accountsScale
		r.progress("round %d  updating %d rows of %d", round, rows/100, rows)
		if err := r.prepare(ctx, fmt.Sprintf("update pgbench_accounts set abalance = abalance + 1 where aid in (select 1 + floor(random() * %d)::int from generate_series(1, %d))", rows, rows/100), "checkpoint"); err != nil {
			return err
		}
		if err := r.each(ctx, round, secondBackup, []string{withPitr, withPgBackRest}); err != nil {
			return err
		}
	}
	if err := r.writeWAL(ctx); err != nil {
		return err
	}
	for round := 1; round <= r.opt.rounds; round++ {
		if err := r.each(ctx, round, wholeRestore, []string{withPitr, withPgBackRest}); err != nil {
			return err
		}
		if err := r.each(ctx, round, segmentFetch, []string{withPitr, withPgBackRest}); err != nil {
			return err
		}
	}
	return nil
}

// each lets the contestants do one thing, in another order each round.
func (r *backupRace) each(ctx context.Context, round int, workload string, contestants []string) error {
	for i := range contestants {
		contestant := contestants[(round+i)%len(contestants)]
		o := outcome{Kind: "run", Workload: workload, Contestant: contestant, Round: round}
		if contestant == withPgBackRest && r.pgbackrest == nil {
			o.Absent = r.absent
		} else {
			values, err := r.one(ctx, workload, contestant)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", workload, contestant, err)
			}
			o.Values = values
			r.progress("round %d  %s: %s: %s", round, workload, contestant, valuesText(values))
		}
		r.results.outcomes = append(r.results.outcomes, o)
		if err := r.journal.add(o); err != nil {
			return err
		}
	}
	return nil
}

func valuesText(values map[metric]float64) string {
	var list []string
	for _, m := range slices.Sorted(maps.Keys(values)) {
		list = append(list, fmt.Sprintf("%s %.4g", m, values[m]))
	}
	return strings.Join(list, ", ")
}

func (r *backupRace) one(ctx context.Context, workload, contestant string) (map[metric]float64, error) {
	switch workload {
	case fullBackup, secondBackup:
		return r.backup(ctx, workload, contestant)
	case wholeRestore:
		return r.restore(ctx, contestant)
	default:
		return r.fetch(ctx, contestant)
	}
}

// setUp starts the archiver and lets the server push to pgBackRest as well.
func (r *backupRace) setUp(ctx context.Context) error {
	for _, name := range []string{"pitr-repo", "pgbackrest-repo", "spool"} {
		dir := filepath.Join(r.dir, name)
		if err := errors.Join(os.Mkdir(dir, 0o755), r.own(dir, 0o755)); err != nil {
			return err
		}
	}
	text := fmt.Sprintf("cluster: run\npostgres: {dsn: \"postgres://%s:%s@%s:%d/%s?sslmode=disable\", data_directory: %s}\nhttp: {archiver: \"\"}\n"+
		"backup: {schedule: \"\", source: %s}\nverify: {inventory_interval: 0, checksum_days: 0, restore_interval: 0}\narchive: {store: \"file://%s\"}\n",
		benchUser, benchPassword, r.server.host, r.server.port, benchDatabase, filepath.Join(r.dir, "data"), r.opt.source, filepath.Join(r.dir, "pitr-repo"))
	if err := r.write("backup.yaml", text); err != nil {
		return err
	}
	if version, err := r.ask(ctx, "show server_version_num"); err != nil || version >= "170000" {
		if err := errors.Join(err, r.prepare(ctx, "alter system set summarize_wal = on", "select pg_reload_conf()")); err != nil {
			return err
		}
	}
	var err error
	if r.archiver, err = start(launch{name: walArchiver, args: []string{r.program, "archiver", "-c", filepath.Join(r.dir, "backup.yaml")}, dir: r.dir, as: r.as}); err != nil {
		return err
	}
	if r.pgbackrest == nil {
		return r.prepare(ctx, "alter system set archive_command = '/bin/true'", "select pg_reload_conf()")
	}
	config := fmt.Sprintf("[global]\nrepo1-path=%s\nrepo1-bundle=y\nrepo1-block=y\nprocess-max=%d\ncompress-type=zst\ncompress-level=1\nstart-fast=y\narchive-async=y\nexpire-auto=n\n"+
		"log-level-console=error\nlog-level-file=off\nlock-path=%s\nspool-path=%s\n\n[bench]\npg1-path=%s\npg1-port=%d\npg1-socket-path=%s\npg1-user=%s\npg1-database=%s\n",
		filepath.Join(r.dir, "pgbackrest-repo"), r.cores, r.dir, filepath.Join(r.dir, "spool"), filepath.Join(r.dir, "data"), r.server.port, r.dir, benchUser, benchDatabase)
	if err := r.write("pgbackrest.conf", config); err != nil {
		return err
	}
	r.pgbackrest = append(r.pgbackrest, "--config="+filepath.Join(r.dir, "pgbackrest.conf"), "--stanza=bench")
	if _, err := r.measured(ctx, launch{name: "pgbackrest stanza-create", args: append(slices.Clone(r.pgbackrest), "stanza-create")}); err != nil {
		return err
	}
	return r.prepare(ctx, "alter system set archive_command = '"+strings.Join(r.pgbackrest, " ")+" archive-push %p'", "select pg_reload_conf()")
}

// backup takes one. What is stored is what a repository has grown by, WAL apart.
func (r *backupRace) backup(ctx context.Context, workload, contestant string) (map[metric]float64, error) {
	var l launch
	var stores []string
	switch {
	case contestant == withPitr:
		args := []string{r.program, "backup", "-c", filepath.Join(r.dir, "backup.yaml")}
		if workload == fullBackup {
			args = append(args, "--full")
		}
		l, stores = launch{name: withPitr, args: args}, []string{"pitr-repo/run/packs", "pitr-repo/run/backups"}
	case contestant == withPgBackRest:
		kind := "incr"
		if workload == fullBackup {
			kind = "full"
		}
		l, stores = launch{name: withPgBackRest, args: append(slices.Clone(r.pgbackrest), "backup", "--type="+kind)}, []string{"pgbackrest-repo/backup"}
	default:
		l = launch{name: withBaseBackup, args: []string{"sh", "-ec", `"$0" -h "$1" -p "$2" -U "$3" -D - -Ft -X none -c fast | zstd -q -1 -T"$4" -o "$5"`, r.environment.program("pg_basebackup"),
			r.server.host, strconv.Itoa(r.server.port), benchUser, strconv.Itoa(r.cores), filepath.Join(r.dir, "base.tar.zst")}}
		stores = []string{"base.tar.zst"}
		if err := os.Remove(filepath.Join(r.dir, "base.tar.zst")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	before, err := r.sizes(stores)
	if err != nil {
		return nil, err
	}
	used, machine, err := r.watched(ctx, l)
	if err != nil {
		return nil, err
	}
	after, err := r.sizes(stores)
	return map[metric]float64{seconds: used.wall.Seconds(), cpuSeconds: used.cpu.Seconds(), machineTime: machine.Seconds(), rssMax: float64(used.rss) / (1 << 20),
		stored: float64(after-before) / (1 << 20)}, err
}

func (r *backupRace) sizes(names []string) (sum int64, err error) {
	for _, name := range names {
		size, err := sizeOf(filepath.Join(r.dir, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		sum += size
	}
	return sum, nil
}

// watched measures what the whole machine did meanwhile, too.
func (r *backupRace) watched(ctx context.Context, l launch) (used spent, machine time.Duration, err error) {
	before, err := machineCPU()
	if err != nil {
		return used, 0, err
	}
	if used, err = r.measured(ctx, l); err != nil {
		return used, 0, err
	}
	after, err := machineCPU()
	return used, after - before, err
}

// machineCPU is the time that all cores together have not been idle: proc_stat(5), without idle and iowait, and without guest, which user contains.
func machineCPU() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	ticks := int64(0)
	for i, field := range fields[1:8] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		if i != 3 && i != 4 {
			ticks += n
		}
	}
	return time.Duration(ticks) * clockTick, nil
}

// print shows medians with their spread, and the ratio to pgBackRest taken round by round.
func (r *backupRace) print(out io.Writer) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, workload := range r.results.workloads() {
		fmt.Fprintf(t, "%s\n", workload)
		for _, contestant := range []string{withPitr, withPgBackRest, withBaseBackup} {
			cells := []string{"  " + contestant}
			for _, m := range []metric{seconds, cpuSeconds, machineTime, rssMax, stored, perSecond} {
				values := r.results.values(workload, contestant, m)
				s := summarize(slices.Collect(maps.Values(values)))
				if s.n == 0 {
					continue
				}
				cell := fmt.Sprintf("%s %.3g (%.3g to %.3g)", m, s.median, s.min, s.max)
				if contestant != withPgBackRest {
					cell += fmt.Sprintf(" ×%.2f", summarize(ratios(values, r.results.values(workload, withPgBackRest, m))).median)
				}
				cells = append(cells, cell)
			}
			if len(cells) > 1 {
				fmt.Fprintln(t, strings.Join(cells, "\t"))
			}
		}
	}
	return t.Flush()
}
