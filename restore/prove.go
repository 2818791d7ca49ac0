package restore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"pitr/internal/postmaster"
	"pitr/internal/repo"
)

// ProveOptions says how a restore is proven.
type ProveOptions struct {
	Target      *Target // nil: a random instant of what can be reached
	Seed        uint64  // of that instant
	Dir         string  // scratch directory; it is made, and removed when the proof ends
	Install     *postmaster.Install
	FetchWAL    string // as in Options
	User        string // a role of the cluster; pg_amcheck runs as its bootstrap superuser
	Database    string // in which the queries run
	Queries     []string
	OpenTimeout time.Duration
	Parallel    int
	Version     string // of this program
	Log         *slog.Logger
	Progress    func(text string) // may be nil
}

// ErrNoRoom says that a test restore would take more than half of what is free: the scratch directory may lie beside a server's data.
var ErrNoRoom = errors.New("a test restore would take more than half of the free space")

// scratchSettings keep a copy that is looked at and thrown away from hurting anybody: it answers on a socket in its own directory alone, is small, runs
// no jobs of its origin, and need not survive a crash.
var scratchSettings = []string{"listen_addresses=", "shared_buffers=32MB", "fsync=off", "full_page_writes=off", "synchronous_commit=off", "autovacuum=off",
	"archive_mode=off", "max_wal_size=1GB", "ssl=off", "huge_pages=off", "logging_collector=off", "cron.launch_active_jobs=off", "timescaledb.max_background_workers=0",
	"max_logical_replication_workers=0"}

// prover is one proof that is being made.
type prover struct {
	opt    ProveOptions
	repo   *repo.Repo
	dir    *scratch
	plan   *Plan
	proof  repo.Proof
	server *postmaster.Server
}

// Prove restores into a scratch directory, recovers to an instant, and looks at what has come back. What it has shown is in the proof, which is
// not OK when the data did not come back; an error means that it could not be tried.
func Prove(ctx context.Context, r *repo.Repo, opt ProveOptions) (proof repo.Proof, err error) {
	p := &prover{opt: opt, repo: r}
	if err := p.choose(ctx); err != nil {
		return repo.Proof{}, fmt.Errorf("prove a restore: %w", err)
	}
	if p.dir, err = claimScratch(ctx, opt.Install, opt.Dir); err != nil {
		return repo.Proof{}, fmt.Errorf("prove a restore: %w", err)
	}
	err = p.run(ctx)
	if err = errors.Join(err, p.dir.release(ctx)); err != nil {
		return repo.Proof{}, fmt.Errorf("prove a restore: %w", err)
	}
	p.proof.OK = true
	for _, check := range p.proof.Checks {
		p.proof.OK = p.proof.OK && check.Outcome != repo.Failed
	}
	p.proof.Time = time.Now().UTC()
	return p.proof, nil
}

// choose makes the plan.
func (p *prover) choose(ctx context.Context) error {
	options := PlanOptions{Now: time.Now(), Parallel: p.opt.Parallel}
	target := p.opt.Target
	if target == nil {
		windows, err := Reachable(ctx, p.repo, options)
		if err != nil {
			return err
		}
		chosen := randomTarget(windows, p.opt.Seed)
		target = &chosen
	}
	var err error
	if p.plan, err = NewPlan(ctx, p.repo, *target, options); err != nil {
		return err
	}
	if major := p.plan.Backup.Major; major != p.opt.Install.Major {
		return fmt.Errorf("the backup is of PostgreSQL %d, and %s is %d; set %s to the binaries of %d", major, p.opt.Install.Bin, p.opt.Install.Major, postmaster.BinEnv, major)
	}
	p.proof = repo.Proof{Backup: p.plan.BackupID, Target: target.Text, Timeline: p.plan.Timeline, StopLSN: p.plan.StopLSN, BackupBytes: p.plan.BackupBytes,
		FetchBytes: p.plan.FetchBytes, WALBytes: p.plan.WALBytes, Version: p.opt.Version}
	return halfFree(filepath.Dir(p.opt.Dir), p.plan.BackupBytes+p.plan.WALBytes)
}

// Reachable are the stretches of time that can be reached.
func Reachable(ctx context.Context, r *repo.Repo, opt PlanOptions) ([]Window, error) {
	p := &planner{repo: r, opt: opt, target: Target{Text: "any"}}
	if err := p.load(ctx); err != nil {
		return nil, err
	}
	var e *UnreachableError
	if err := p.unreachable(ctx, "window"); !errors.As(err, &e) {
		return nil, err
	}
	return e.Windows, nil
}

// randomTarget is any microsecond of the windows with the same likelihood; without a window, what there is.
func randomTarget(windows []Window, seed uint64) Target {
	total := time.Duration(0)
	for _, w := range windows {
		total += w.To.Sub(w.From)
	}
	if total <= 0 {
		return Target{Kind: Latest, Text: "latest"}
	}
	at := time.Duration(rand.New(rand.NewPCG(seed, 0)).Int64N(int64(total)))
	for _, w := range windows {
		if length := w.To.Sub(w.From); at >= length {
			at -= length
			continue
		}
		instant := w.From.Add(at).Truncate(time.Microsecond)
		if instant.Before(w.From) {
			instant = instant.Add(time.Microsecond)
		}
		return Target{Kind: AtTime, Time: instant, Text: instant.UTC().Format("2006-01-02 15:04:05.999999Z07:00")}
	}
	panic("restore: an instant behind all windows")
}

func halfFree(dir string, need int64) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return fmt.Errorf("free space of %s: %w", dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; need > free/2 {
		return fmt.Errorf("%w: %s has %d MiB free, the copy needs %d MiB", ErrNoRoom, dir, free>>20, need>>20)
	}
	return nil
}

func (p *prover) show(text string) {
	if p.opt.Progress != nil {
		p.opt.Progress(text)
	}
}

func (p *prover) check(name string, outcome repo.Outcome, detail string) {
	p.proof.Checks = append(p.proof.Checks, repo.Check{Name: name, Outcome: outcome, Detail: detail})
}

// run goes as far as it can. What is wrong with the data is a failed check.
func (p *prover) run(ctx context.Context) error {
	result, err := CarryOut(ctx, p.repo, p.plan, Options{Dir: p.dir.data(), FetchWAL: p.opt.FetchWAL, Isolated: true, Parallel: p.opt.Parallel, Own: p.opt.Install.Own, Log: p.opt.Log,
		Progress: func(done, total int64) { p.show(fmt.Sprintf("fetched %d of %d MiB", done>>20, total>>20)) }})
	if errors.Is(err, repo.ErrDamaged) || errors.Is(err, repo.ErrNotExist) {
		p.check("restore", repo.Failed, err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	p.proof.FetchSeconds = result.Took.Seconds()
	p.check("restore", repo.Passed, fmt.Sprintf("%d files, %d bytes", result.Files, result.Bytes))
	if err := p.open(ctx); err != nil || p.server == nil {
		return err
	}
	superuser, err := p.server.Query(ctx, p.opt.User, "template1", "SELECT rolname FROM pg_catalog.pg_roles WHERE oid = 10") // BOOTSTRAP_SUPERUSERID of src/include/catalog/pg_authid.dat
	if err != nil {
		p.check("login", repo.Failed, err.Error())
		return nil
	}
	p.queries(ctx, superuser)
	p.amcheck(ctx, superuser)
	p.checksums(ctx, superuser)
	return ctx.Err()
}

// open starts Postgres and waits until it has recovered; server is nil when it has not.
func (p *prover) open(ctx context.Context) error {
	hba := filepath.Join(p.dir.dir, "pg_hba.conf")
	if err := os.WriteFile(hba, []byte("local all all trust\n"), 0o600); err != nil { // the directory is the fence
		return err
	}
	if err := p.opt.Install.Own(hba); err != nil {
		return err
	}
	settings := append([]string{"hba_file=" + hba}, scratchSettings...)
	begin := time.Now()
	server, opened, err := Start(ctx, p.opt.Install, StartOptions{Dir: p.dir.data(), Port: 5432, Log: p.dir.log(), OpenTimeout: p.opt.OpenTimeout, Settings: settings,
		Progress: func(status string) { p.show("Postgres: " + status) }})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		p.check("recovery", repo.Failed, err.Error())
		return nil
	}
	if server.Host() != p.dir.data() {
		return fmt.Errorf("the name of the scratch directory %s is too long for a socket in it", p.dir.dir)
	}
	p.proof.RecoverySeconds = time.Since(begin).Seconds()
	if !strings.Contains(opened.Stopping, strconv.Quote(p.plan.StopLSN.String())) {
		p.check("recovery", repo.Failed, fmt.Sprintf("it was to stop at %s; the server says %q", p.plan.StopLSN, opened.Stopping))
		return nil
	}
	p.check("recovery", repo.Passed, opened.Stopping)
	p.server = server
	return nil
}

// queries runs what the operator wants to hold of every copy: a query that fails, whose first value is false, or that has none has failed. A
// comparison with the greatest row of a table that came back empty is null.
func (p *prover) queries(ctx context.Context, user string) {
	for i, query := range p.opt.Queries {
		name := fmt.Sprintf("query %d", i+1)
		p.show(name)
		answer, err := p.server.Query(ctx, user, p.opt.Database, query)
		first, _, _ := strings.Cut(answer, "\n")
		value, _, _ := strings.Cut(first, "|")
		switch {
		case err != nil:
			p.check(name, repo.Failed, err.Error())
		case value == "f":
			p.check(name, repo.Failed, fmt.Sprintf("%s: it is false", query))
		case value == "":
			p.check(name, repo.Failed, fmt.Sprintf("%s: it has no row, or null", query))
		default:
			p.check(name, repo.Passed, fmt.Sprintf("%s: %s", query, first))
		}
	}
}

// amcheckSince is the first major version that has pg_amcheck.
const amcheckSince = 14

// amcheck lets pg_amcheck look at every table and every B-tree index. Its extension is made in the copy where it is missing.
func (p *prover) amcheck(ctx context.Context, user string) {
	p.show("pg_amcheck")
	program := p.opt.Install.Path("pg_amcheck")
	if _, err := os.Stat(program); err != nil || p.opt.Install.Major < amcheckSince {
		p.check("pg_amcheck", repo.NotDone, "there is no "+program)
		return
	}
	available, err := p.server.Query(ctx, user, "template1", "SELECT count(*) FROM pg_catalog.pg_available_extensions WHERE name = 'amcheck'")
	if err != nil || available != "1" {
		p.check("pg_amcheck", repo.NotDone, errors.Join(errors.New("the extension amcheck is not installed on this machine"), err).Error())
		return
	}
	out, err := p.opt.Install.Command(ctx, "pg_amcheck", "--all", "--install-missing", "--jobs", strconv.Itoa(runtime.GOMAXPROCS(0)), "-h", p.server.Host(), "-p", strconv.Itoa(p.server.Port), "-U", user).CombinedOutput()
	if err != nil {
		p.check("pg_amcheck", repo.Failed, fmt.Sprintf("%v: %s", err, firstLines(out)))
		return
	}
	p.check("pg_amcheck", repo.Passed, "")
}

// checksums stops the copy and lets pg_checksums read every page.
func (p *prover) checksums(ctx context.Context, user string) {
	p.show("pg_checksums")
	on, err := p.server.Query(ctx, user, "template1", "SHOW data_checksums")
	if err != nil {
		p.check("pg_checksums", repo.Failed, err.Error())
		return
	}
	if on != "on" {
		p.check("pg_checksums", repo.NotDone, "the cluster has no data checksums")
		return
	}
	if err := p.server.Stop(ctx, postmaster.Fast); err != nil {
		p.check("pg_checksums", repo.Failed, err.Error())
		return
	}
	out, err := p.opt.Install.Command(ctx, "pg_checksums", "--check", "-D", p.dir.data()).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		p.check("pg_checksums", repo.NotDone, err.Error())
		return
	}
	if err != nil {
		p.check("pg_checksums", repo.Failed, fmt.Sprintf("%v: %s", err, firstLines(out)))
		return
	}
	p.check("pg_checksums", repo.Passed, "")
}

// outputMax bounds what is told of a program's output.
const outputMax = 2000

func firstLines(out []byte) string {
	text := strings.TrimSpace(string(out))
	return strings.ReplaceAll(text[:min(len(text), outputMax)], "\n", " / ")
}
