package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// outageOptions are the flags of `bench outage`.
type outageOptions struct {
	rigOptions
	megabytes int
	memory    string
}

func outageCommand() *cobra.Command {
	var opt outageOptions
	cmd := &cobra.Command{
		Use:   "outage",
		Short: "Kill the S3 server while a server writes gigabytes, and see how the archiver rides it out",
		Long: "The archiver runs with GOMEMLIMIT. Transactions of pgbench and large inserts are written while the store is dead; when it is back the archiver catches up, and pitr verify\n" +
			"looks whether anything is missing. Peak memory, CPU and the time to catch up are printed.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runOutage(cmd.Context(), opt, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	opt.flags(flags)
	flags.IntVar(&opt.megabytes, "megabytes", 4096, "WAL that is written while the store is dead")
	flags.StringVar(&opt.memory, "memory", "128MiB", "GOMEMLIMIT of the archiver")
	return cmd
}

func runOutage(ctx context.Context, opt outageOptions, out, progress io.Writer) error {
	e, err := openRig(ctx, opt.rigOptions, progress)
	if err != nil {
		return err
	}
	defer e.close()
	program := e.program
	store, err := e.startStore(ctx, e.root)
	if err != nil {
		return err
	}
	defer store.stop()
	text := fmt.Sprintf("cluster: outage\npostgres: {dsn: \"postgres://%s:%s@%s:%d/%s?sslmode=disable\"}\nhttp: {archiver: \"\"}\nbackup: {schedule: \"\"}\n"+
		"archive: {store: \"s3://%s/repo?endpoint=http://%s:%d&region=us-east-1&path_style=true\", store_retries: 1}\n",
		benchUser, benchPassword, e.server.host, e.server.port, benchDatabase, storeBucket, loopback, store.port)
	if err := e.write("outage.yaml", text); err != nil {
		return err
	}
	secrets := []string{"AWS_ACCESS_KEY_ID=" + storeUser, "AWS_SECRET_ACCESS_KEY=" + storeSecret}
	began := time.Now()
	p, err := start(launch{name: "pitr archiver", args: []string{program, "archiver", "-c", filepath.Join(e.dir, "outage.yaml")}, dir: e.dir, as: e.as,
		env: append(secrets, "GOMEMLIMIT="+opt.memory)})
	if err != nil {
		return err
	}
	defer p.stop(syscall.SIGKILL)
	written, took, err := e.outage(ctx, store, p, opt.megabytes)
	if err != nil {
		return err
	}
	p.stop(syscall.SIGTERM)
	used, err := spentBy(p, began)
	if err != nil {
		return err
	}
	said, err := run(ctx, launch{name: "pitr verify", args: []string{program, "verify", "-c", filepath.Join(e.dir, "outage.yaml"), "--level", "checksum"}, dir: e.dir, as: e.as, env: secrets})
	fmt.Fprintf(out, "%d MB of WAL written while the store was dead; caught up %s after it was back; GOMEMLIMIT %s, peak RSS %d MB; %.1f CPU-s in all\n%s",
		written, took.Round(100*time.Millisecond), opt.memory, used.rss>>20, used.cpu.Seconds(), said)
	return err
}

// outage kills the store, writes, starts it again, and waits until everything is in it.
func (e *environment) outage(ctx context.Context, store *slowStore, archiver *process, megabytes int) (written int, took time.Duration, err error) {
	streams := "do $$ begin if not exists (select from pg_stat_replication where application_name = 'pitr' and flush_lsn >= '%s') then raise 'not yet'; end if; end $$"
	if err := e.until(ctx, poolerStart, archiver, func() error { return e.prepare(ctx, fmt.Sprintf(streams, "0/1")) }); err != nil {
		return 0, 0, err
	}
	if err := e.prepare(ctx, "create table bulk (x text)"); err != nil {
		return 0, 0, err
	}
	begin, err := e.position(ctx)
	if err != nil {
		return 0, 0, err
	}
	store.gateway.stop(syscall.SIGKILL)
	e.progress("the store is dead; writing %d MB of WAL", megabytes)
	for written < megabytes {
		if err := e.prepare(ctx, "truncate bulk", "insert into bulk select repeat(md5(i::text || random()::text), 20) from generate_series(1, 100000) i"); err != nil {
			return 0, 0, err
		}
		if _, err := e.pgbench(ctx, e.server, load{clients: 8, threads: 2, seconds: 1, sampling: 1}); err != nil {
			return 0, 0, err
		}
		at, err := e.position(ctx)
		if err != nil {
			return 0, 0, err
		}
		written = int((at - begin) >> 20)
		if gone := archiver.ended(); gone != nil {
			return 0, 0, gone
		}
	}
	end, err := e.position(ctx)
	if err != nil {
		return 0, 0, err
	}
	back := time.Now()
	if err := store.restart(ctx, e); err != nil {
		return 0, 0, err
	}
	e.progress("%d MB are written, and the store is back", written)
	err = e.until(ctx, 10*time.Minute, archiver, func() error {
		return e.prepare(ctx, fmt.Sprintf(streams, fmt.Sprintf("%X/%X", end>>32, uint32(end))))
	})
	return written, time.Since(back), err
}

// position is how far the server has written its log, in bytes.
func (e *environment) position(ctx context.Context) (uint64, error) {
	out, err := run(ctx, launch{name: "psql", dir: e.dir, env: e.server.env(), args: []string{e.program("psql"), "-XAqt", "-v", "ON_ERROR_STOP=1",
		"-h", e.server.host, "-p", strconv.Itoa(e.server.port), "-U", benchUser, "-d", benchDatabase, "-c", "select (pg_current_wal_flush_lsn() - '0/0')::bigint"}})
	if err != nil {
		return 0, err
	}
	var n uint64
	_, err = fmt.Sscan(out, &n)
	return n, err
}

// restart runs the S3 server again, where it was.
func (s *slowStore) restart(ctx context.Context, e *environment) error {
	cmd := s.gateway.cmd
	var err error
	if s.gateway, err = start(launch{name: "versitygw", args: cmd.Args, dir: e.dir, as: e.as}); err != nil {
		return err
	}
	at := cmd.Args[2]
	if _, _, err := net.SplitHostPort(at); err != nil {
		return errors.New("the S3 server's second argument is its address")
	}
	return e.until(ctx, poolerStart, s.gateway, func() error {
		conn, err := net.Dial("tcp", at)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
}
