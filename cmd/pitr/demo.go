package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"pitr/internal/postmaster"
)

// demoFlags are the flags of `pitr demo`.
type demoFlags struct {
	store   string
	clients int
	seconds int
	keep    bool
}

func demoCommand() *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the whole job on a throw-away Postgres: pool, archive, lose a table, bring it back",
		Long: `Starts a throw-away Postgres, an archiver and a pooler in a temporary directory, lets several hundred clients write through the
pool, drops their table, restores to just before, and compares what came back with what the clients know was acknowledged.

Exit codes: 0 only if every row that was committed before the instant came back and none after; 1 otherwise.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.store != "file" && f.store != "s3" {
				return &usageError{fmt.Errorf("demo: --store %q: file and s3 exist", f.store)}
			}
			return runDemo(cmd.Context(), cmd.OutOrStdout(), f)
		},
	}
	cmd.Flags().StringVar(&f.store, "store", "file", "file, or s3 for a real S3 server on loopback (versitygw)")
	cmd.Flags().IntVar(&f.clients, "clients", 300, "client connections")
	cmd.Flags().IntVar(&f.seconds, "seconds", 6, "how long they write")
	cmd.Flags().BoolVar(&f.keep, "keep", false, "keep the temporary directory")
	return cmd
}

// demo is one run. Everything that it starts is stopped by stop, in reverse order.
type demo struct {
	flags   demoFlags
	out     io.Writer
	dir     string
	bin     string // our own binary, where the user who runs Postgres can reach it
	config  string
	install *postmaster.Install
	server  *postmaster.Server
	ports   demoPorts
	env     []string
	stops   []func(context.Context) error
	began   time.Time
}

type demoPorts struct {
	postgres, pooler, archiverHTTP, poolerHTTP, s3, restored int
}

// Names and secrets of the throw-away cluster.
const (
	demoSuperuser = "postgres"
	demoPassword  = "throw-away"
	demoPoolSize  = 8
)

func runDemo(ctx context.Context, out io.Writer, f demoFlags) (err error) {
	d := &demo{flags: f, out: out, began: time.Now()}
	defer func() { err = errors.Join(err, d.stop(ctx)) }()
	if err := d.prepare(ctx); err != nil {
		return err
	}
	if err := d.startServices(ctx); err != nil {
		return err
	}
	w, err := d.write(ctx)
	if err != nil {
		return err
	}
	return d.recover(ctx, w)
}

// step prints one line: what was done, its numbers, and how long it took.
func (d *demo) step(begin time.Time, format string, args ...any) {
	fmt.Fprintf(d.out, "%7s  %-92s %8s\n", "+"+time.Since(d.began).Round(100*time.Millisecond).String(), fmt.Sprintf(format, args...), durationText(time.Since(begin)))
}

func (d *demo) prepare(ctx context.Context) error {
	begin := time.Now()
	var err error
	if d.install, err = postmaster.Find(ctx); err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp("", "pitr-demo-"); err != nil {
		return err
	}
	d.onStop(func(context.Context) error {
		if d.flags.keep {
			fmt.Fprintln(d.out, "         kept", d.dir)
			return nil
		}
		return os.RemoveAll(d.dir)
	})
	if err := d.copySelf(); err != nil {
		return err
	}
	for _, dir := range []string{"repository", "s3/bucket"} {
		if err := os.MkdirAll(filepath.Join(d.dir, dir), 0o755); err != nil {
			return err
		}
	}
	if err := d.choosePorts(); err != nil {
		return err
	}
	data := filepath.Join(d.dir, "data")
	if err := d.install.Own(d.dir); err != nil {
		return err
	}
	if err := d.install.InitDB(ctx, postmaster.InitOptions{Dir: data, Superuser: demoSuperuser, Password: demoPassword}); err != nil {
		return err
	}
	d.server, err = d.install.StartChild(ctx, postmaster.StartOptions{Dir: data, Port: d.ports.postgres, Log: data + ".log",
		Settings: []string{"max_connections=40", "track_commit_timestamp=on"}})
	if err != nil {
		return err
	}
	d.onStop(func(ctx context.Context) error {
		begin := time.Now()
		err := d.server.Stop(ctx, postmaster.Fast)
		d.step(begin, "stopped Postgres")
		return err
	})
	d.step(begin, "started a throw-away PostgreSQL %d on 127.0.0.1:%d with room for 40 connections", d.install.Major, d.ports.postgres)
	return nil
}

// copySelf puts our binary where the user who runs Postgres can execute it: the checkout may be closed to others.
func (d *demo) copySelf() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	d.bin = filepath.Join(d.dir, "pitr")
	from, err := os.Open(self)
	if err != nil {
		return err
	}
	to, err := os.OpenFile(d.bin, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return errors.Join(err, from.Close())
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close(), from.Close())
}

func (d *demo) onStop(stop func(context.Context) error) { d.stops = append(d.stops, stop) }

// stop ends what was started, last first, also after an interrupt.
func (d *demo) stop(ctx context.Context) error {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	var errs []error
	for i := len(d.stops) - 1; i >= 0; i-- {
		errs = append(errs, d.stops[i](ctx))
	}
	return errors.Join(errs...)
}
