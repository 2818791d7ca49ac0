package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

// rigOptions are the flags that the comparisons of archivers have in common.
type rigOptions struct {
	rounds  int
	seconds int
	pgBin   string
	results string
	pitr    string
	durable bool
	sockets bool
	scale   int    // of pgbench's tables; zero: archiveScale
	source  string // backup.source of pitr, where there are backups

	settings []string // of Postgres, besides those of every comparison
}

func (o *rigOptions) flags(flags *pflag.FlagSet) {
	flags.StringVar(&o.pgBin, "pg-bin", os.Getenv("PITR_PG_BIN"), "directory of Postgres's programs; default: the newest that scripts/pg.sh provides")
	flags.StringVar(&o.pitr, "pitr", "", "pitr's program; default: that which make build builds")
}

func (o *rigOptions) resultFlags(flags *pflag.FlagSet) {
	o.flags(flags)
	flags.IntVar(&o.rounds, "rounds", 5, "rounds")
	flags.StringVar(&o.results, "results", "", "directory of the result files; default: bench/results of the checkout")
}

// rig is a Postgres and a pitr to compare archivers with.
type rig struct {
	*environment
	root    string // of the checkout
	program string // pitr, where the user as whom servers run can execute it
	journal *journal
	results results
}

func openRig(ctx context.Context, opt rigOptions, progress io.Writer) (*rig, error) {
	root, err := checkout()
	if err != nil {
		return nil, err
	}
	if opt.scale == 0 {
		opt.scale = archiveScale
	}
	e := &environment{durable: opt.durable, sockets: opt.sockets, more: opt.settings,
		progress: func(format string, args ...any) { fmt.Fprintf(progress, "bench: "+format+"\n", args...) }}
	if e.bin, err = findPostgres(root, opt.pgBin); err != nil {
		return nil, err
	}
	if err := e.open(ctx, opt.scale); err != nil {
		return nil, err
	}
	r := &rig{environment: e, root: root, program: filepath.Join(e.dir, "pitr")}
	if opt.pitr == "" {
		opt.pitr = filepath.Join(root, "bin", "pitr")
	}
	if err := copyProgram(opt.pitr, r.program); err != nil {
		e.close()
		return nil, err
	}
	return r, nil
}

// record lets measure work with a journal, and publishes that when print has shown what is in it.
func (r *rig) record(opt rigOptions, measure func() error, print func() error) (err error) {
	r.results.circumstances = observe(r.root)
	c := &r.results.circumstances
	c.Rounds, c.Seconds, c.Scale = opt.rounds, opt.seconds, max(opt.scale, archiveScale)
	c.Source = opt.source
	if opt.results == "" {
		opt.results = filepath.Join(r.root, "bench", "results")
	}
	if r.journal, err = openJournal(opt.results, *c); err != nil {
		return err
	}
	if err := measure(); err != nil {
		return fmt.Errorf("%w; what there is of results is in %s", err, r.journal.file.Name())
	}
	if err := print(); err != nil {
		return err
	}
	name, err := r.journal.publish()
	if err == nil {
		r.progress("results are in %s", name)
	}
	return err
}

// archiveScale is the scale of pgbench's tables.
const archiveScale = 10

// ask returns one value.
func (r *rig) ask(ctx context.Context, sql string) (string, error) {
	out, err := run(ctx, launch{name: "psql", dir: r.dir, env: r.server.env(), args: []string{r.environment.program("psql"), "-XAqt", "-v", "ON_ERROR_STOP=1",
		"-h", r.server.host, "-p", strconv.Itoa(r.server.port), "-U", benchUser, "-d", benchDatabase, "-c", sql}})
	return strings.TrimSpace(out), err
}

// spent is what processes have used.
type spent struct {
	cpu, wall time.Duration
	rss       int64 // bytes, of the largest of them
}

// spentBy is what a process that has ended had used, with the children that it has waited for.
func spentBy(p *process, began time.Time) (spent, error) {
	state := p.cmd.ProcessState
	usage, ok := state.SysUsage().(*syscall.Rusage)
	if !ok {
		return spent{}, errors.New("the system does not tell what a process has used")
	}
	return spent{cpu: state.UserTime() + state.SystemTime(), wall: time.Since(began), rss: usage.Maxrss << 10}, nil
}

// measured runs a program to its end.
func (r *rig) measured(ctx context.Context, l launch) (spent, error) {
	l.dir, l.as, l.env = r.dir, r.as, append(l.env, r.server.env()...)
	began := time.Now()
	p, err := start(l)
	if err != nil {
		return spent{}, err
	}
	select {
	case <-ctx.Done():
		p.stop(syscall.SIGKILL)
		return spent{}, ctx.Err()
	case <-p.done:
	}
	if p.err != nil {
		return spent{}, p.ended()
	}
	return spentBy(p, began)
}

func sizeOf(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	return size, err
}
