package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// writeWAL writes what a restore has to replay, and waits until both have archived it.
func (r *backupRace) writeWAL(ctx context.Context) error {
	r.progress("writing %d MB of WAL", r.opt.megabytes)
	begin, err := r.position(ctx)
	if err != nil {
		return err
	}
	for at := begin; int(at-begin)>>20 < r.opt.megabytes; {
		if _, err := r.pgbench(ctx, r.server, load{clients: 8, threads: 2, seconds: 5, sampling: 1}); err != nil {
			return err
		}
		if at, err = r.position(ctx); err != nil {
			return err
		}
	}
	if r.target, err = r.ask(ctx, "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'"); err != nil {
		return err
	}
	names, err := r.ask(ctx, fmt.Sprintf("select string_agg(pg_walfile_name('0/0'::pg_lsn + %d + n * 16777216), ' ' order by n) from generate_series(1, %d) n", begin, r.opt.megabytes/16-1))
	if err != nil {
		return err
	}
	r.segments = strings.Fields(names)
	if err := r.prepare(ctx, "create table behind (i int)", "select pg_switch_wal()", "checkpoint"); err != nil {
		return err
	}
	end, err := r.position(ctx)
	if err != nil {
		return err
	}
	return r.until(ctx, 10*time.Minute, r.archiver, func() error {
		return r.prepare(ctx, fmt.Sprintf("do $$ begin if not exists (select from pg_stat_replication where application_name = 'pitr' and flush_lsn >= '0/0'::pg_lsn + %d) "+
			"or pg_walfile_name('0/0'::pg_lsn + %d) > (select last_archived_wal from pg_stat_archiver) then raise 'not yet'; end if; end $$", end, end-16<<20))
	})
}

// restore measures the time from the command to the first SELECT of a server that has recovered.
func (r *backupRace) restore(ctx context.Context, contestant string) (map[metric]float64, error) {
	dir := filepath.Join(r.dir, "restored")
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	defer func() {
		_, stopErr := run(context.WithoutCancel(ctx), launch{name: "pg_ctl stop", dir: r.dir, as: r.as, args: []string{r.environment.program("pg_ctl"), "stop", "-w", "-m", "immediate", "-D", dir}})
		if stopErr != nil && err == nil {
			r.progress("%v", stopErr)
		}
	}()
	began := time.Now()
	var used spent
	if contestant == withPitr {
		used, err = r.measured(ctx, launch{name: "pitr restore", env: []string{"PITR_PG_BIN=" + r.bin}, args: []string{r.program, "restore", "-c", filepath.Join(r.dir, "backup.yaml"),
			"--to", r.target, "--into", dir, "--start", "--port", strconv.Itoa(port)}})
		if err == nil {
			r.command, err = restoreCommand(dir)
		}
	} else {
		used, err = r.measured(ctx, launch{name: "pgbackrest restore", args: append(slices.Clone(r.pgbackrest), "restore", "--type=time", "--target="+r.target, "--target-action=promote", "--pg1-path="+dir)})
		if err == nil {
			settings := fmt.Sprintf("-p %d -c listen_addresses=%s -c unix_socket_directories=%s -c archive_mode=off -c max_connections=%d", port, loopback, dir, serverConnectionsMax)
			_, err = run(ctx, launch{name: "pg_ctl start", dir: r.dir, as: r.as, args: []string{r.environment.program("pg_ctl"), "start", "-W", "-s", "-D", dir, "-l", filepath.Join(r.dir, "restored.log"), "-o", settings}})
		}
	}
	if err != nil {
		return nil, err
	}
	values := map[metric]float64{"restore_s": used.wall.Seconds(), cpuSeconds: used.cpu.Seconds(), rssMax: float64(used.rss) / (1 << 20)}
	err = r.until(ctx, 10*time.Minute, r.postgres, func() error {
		out, err := run(ctx, launch{name: "psql", dir: r.dir, env: r.server.env(), args: []string{r.environment.program("psql"), "-XAqt", "-h", loopback, "-p", strconv.Itoa(port), "-U", benchUser, "-d", benchDatabase,
			"-c", "select pg_is_in_recovery()"}})
		if err == nil && strings.TrimSpace(out) != "f" {
			err = errors.New("it recovers")
		}
		return err
	})
	values[seconds] = time.Since(began).Seconds()
	return values, err
}

// fetch asks for segments one after the other, as a recovery does that takes no time for each.
func (r *backupRace) fetch(ctx context.Context, contestant string) (map[metric]float64, error) {
	dir := filepath.Join(r.dir, "fetching")
	defer os.RemoveAll(dir)
	for _, name := range []string{"", "pg_wal", "global"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, name), 0o700), r.own(filepath.Join(dir, name), 0o700)); err != nil {
			return nil, err
		}
	}
	control, err := os.ReadFile(filepath.Join(r.dir, "data", "global", "pg_control")) // pgBackRest looks for the system identifier in it
	if err == nil {
		err = r.write(filepath.Join(filepath.Base(dir), "global", "pg_control"), string(control))
	}
	if err != nil {
		return nil, err
	}
	command := strings.Join(r.pgbackrest, " ") + " --pg1-path=" + dir + " archive-get %f %p"
	if contestant == withPitr {
		command = r.command
	}
	// Both look whether a recovery is under way: a postmaster that lives, which is the shell here, and the signal. Postgres gives each command to a shell of its own.
	script := "cd \"$1\"; printf '%s\\n' $$ > postmaster.pid; : > recovery.signal\n"
	for _, segment := range r.segments {
		one := strings.NewReplacer("%f", segment, "%p", "pg_wal/RECOVERYXLOG", "%%", "%").Replace(command)
		script += "sh -c " + shellQuoted(one) + "; [ -s pg_wal/RECOVERYXLOG ]; rm pg_wal/RECOVERYXLOG\n"
	}
	used, machine, err := r.watched(ctx, launch{name: "fetch", args: []string{"sh", "-ec", script, "sh", dir}})
	return map[metric]float64{perSecond: float64(len(r.segments)) / used.wall.Seconds(), machineTime: machine.Seconds()}, err
}

// restoreCommand is what a restored directory has for restore_command.
func restoreCommand(dir string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "postgresql.auto.conf"))
	if err != nil {
		return "", err
	}
	command := ""
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, "restore_command = '"); found {
			command = strings.ReplaceAll(strings.TrimSuffix(strings.TrimSpace(value), "'"), "''", "'") // the last one counts
		}
	}
	if command == "" {
		return "", fmt.Errorf("%s has no restore_command", dir)
	}
	return command, nil
}

func shellQuoted(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }
