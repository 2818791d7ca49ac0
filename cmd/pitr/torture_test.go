package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pitr/internal/pg"
	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
	"pitr/internal/repo"
)

// TestTorture lets 16 clients write while everything around them fails, restores to random instants and after disasters, and compares all
// tables with a ledger that pg_waldump makes from WAL that did not pass through pitr. `make torture ROUNDS=60` runs more and longer rounds.
func TestTorture(t *testing.T) {
	rounds := envInt(t, "PITR_TORTURE_ROUNDS", len(shortRounds))
	seed := envInt(t, "PITR_TORTURE_SEED", int(time.Now().UnixNano()%1_000_000_000))
	first := envInt(t, "PITR_TORTURE_FIRST", 1)
	byHand := os.Getenv("PITR_TORTURE_ROUNDS") != ""
	t.Logf("seed %d: PITR_TORTURE_SEED=%d repeats it", seed, seed)
	total := result{faults: map[string]int{}}
	for round := first; round < first+rounds; round++ {
		rng := rand.New(rand.NewPCG(uint64(seed), uint64(round)))
		plan := shortRounds[(round-1)%len(shortRounds)]
		if byHand {
			plan = randomRound(rng, round)
		}
		t.Run(fmt.Sprintf("round %d %s", round, plan), func(t *testing.T) {
			total.add(tortureRound(t, rng, plan))
		})
	}
	t.Logf("%d rounds with seed %d: %s", rounds, seed, &total)
	if p99 := percentile(total.losses, 0.99); rounds >= judgedRounds && p99 > lossBound {
		t.Errorf("the loss at the 99th percentile is %s, more than %s", p99, lossBound)
	}
}

// judgedRounds is how many rounds it takes to judge time; `make test` runs fewer, and judges none.
const judgedRounds = 20

func envInt(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// roundPlan is what is fixed about a round before it begins.
type roundPlan struct {
	s3          bool
	synchronous bool
	standby     bool
	clock       bool // the server's can be stepped
	segmentMB   int
	faults      []string // that strike in any case
	others      int      // that are chosen at random, in each storm
	storms      int      // each is followed by a disaster in the midst of it
	calm        int      // disasters when nothing else was wrong
	instants    int
	timed       bool // time is judged, too: not in `make test`
}

func (p roundPlan) String() string {
	words := []string{"on files"}
	if p.s3 {
		words[0] = "on s3"
	}
	for _, w := range []struct {
		is   bool
		word string
	}{{p.synchronous, "synchronous"}, {!p.synchronous, "asynchronous"}, {p.standby, "standby"}, {p.clock, "clock"}} {
		if w.is {
			words = append(words, w.word)
		}
	}
	return strings.Join(words, " ") + fmt.Sprintf(" %dMB", p.segmentMB)
}

// shortRounds are those of `make test`.
var shortRounds = []roundPlan{
	{segmentMB: 1, faults: []string{"kill archiver", "kill Postgres", "slot dropped, WAL gone"}, others: 1, storms: 1, instants: 4},
	{segmentMB: 16, s3: true, synchronous: true, clock: true, faults: []string{"clock step", "kill store", "store answer lost", "kill archiver"}, others: 1, storms: 1, instants: 3},
	{segmentMB: 1, s3: true, standby: true, faults: []string{"failover", "store 503", "kill pooler"}, others: 1, storms: 1, instants: 3},
}

// randomRound makes the plan of a round that is run by hand: stores and modes alternate, so that each is met.
func randomRound(rng *rand.Rand, round int) roundPlan {
	p := roundPlan{s3: round%2 == 0, synchronous: round/2%2 == 0, segmentMB: []int{1, 1, 16}[rng.IntN(3)], others: 6, storms: 2, instants: 10, timed: true}
	p.standby, p.clock = rng.IntN(3) == 0, rng.IntN(4) == 0
	if !p.synchronous {
		p.calm = 2
	}
	for name, chance := range map[string]bool{"failover": p.standby, "clock step": p.clock, "slot dropped, WAL gone": rng.IntN(4) == 0} {
		if chance {
			p.faults = append(p.faults, name)
		}
	}
	slices.Sort(p.faults)
	return p
}

// torture is a round.
type torture struct {
	*harness
	rng         *rand.Rand
	synchronous bool
	timed       bool
	primary     *node
	standby     *node // nil: there is none, or none any more
	old         *node // the primary before a failover
	left        pg.LSN
	work        *tortureLoad
	asides      sync.WaitGroup

	store         *faultyStore // nil: the store is a directory
	repository    string       // that directory
	repositoryURL string
	sick          bool // something is wrong with the store
	lastFault     time.Time
	struck        []string

	gaps      []gap
	forgiven  map[transactionID]bool // lost by a failover, not by the archive
	disasters []disaster
	result    result
}

// result is what rounds have shown.
type result struct {
	acknowledged, restores, refused int
	difference                      difference
	missing                         int // acknowledged transactions that the server itself does not have
	disasters                       int
	lostAcknowledged                int // in synchronous mode
	losses                          []time.Duration
	lostTold                        int // commits that `pitr log --lost` told
	faults                          map[string]int
}

func (r *result) add(other result) {
	r.acknowledged += other.acknowledged
	r.restores += other.restores
	r.refused += other.refused
	r.difference.add(other.difference)
	r.missing += other.missing
	r.disasters += other.disasters
	r.lostTold += other.lostTold
	r.lostAcknowledged += other.lostAcknowledged
	r.losses = append(r.losses, other.losses...)
	for name, n := range other.faults {
		r.faults[name] += n
	}
}

func (r *result) String() string {
	var kinds []string
	for _, name := range slices.Sorted(maps.Keys(r.faults)) {
		kinds = append(kinds, fmt.Sprintf("%s ×%d", name, r.faults[name]))
	}
	return fmt.Sprintf("%d transactions acknowledged, %d restores (%d refused as they had to be): %d rows missing, %d extra, %d wrong; %d disasters: %d acknowledged commits lost in synchronous mode, %s; %d commits told of dead branches; faults: %s",
		r.acknowledged, r.restores, r.refused, r.difference.missing, r.difference.extra, r.difference.wrong, r.disasters, r.lostAcknowledged, lossText(r.losses), r.lostTold, strings.Join(kinds, ", "))
}

const tortureConfig = `cluster: test
postgres: {dsn: "postgres://postgres@%s/postgres?sslmode=disable"}
pooler:
  listen: [127.0.0.1:%d]
  default_pool_size: 8
  server_login_retry: 200ms
  auth: {type: trust}
archive: {store: "%s", store_timeout: 3s}
backup: {schedule: ""}
http: {pooler: 127.0.0.1:%d, archiver: 127.0.0.1:%d}
`

// newTorture starts servers and services, makes the tables, and takes the first backup.
func newTorture(ctx context.Context, t *testing.T, rng *rand.Rand, plan roundPlan) *torture {
	t.Helper()
	bin, err := buildBinaries()
	if err != nil {
		t.Fatal(err)
	}
	if plan.timed && !plan.synchronous {
		bin.raced = bin.plain // where loss is measured, what people run is measured
	}
	h := &harness{t: t, bin: bin, install: postmastertest.Find(t), procs: map[string]*exec.Cmd{}, pooler: postmastertest.FreePort(t), own: map[string]string{}}
	h.metrics = map[string]int{"pooler": postmastertest.FreePort(t), "archiver": postmastertest.FreePort(t)}
	h.dir = postmastertest.TempDir(t, h.install)
	h.config, h.own["pooler"] = filepath.Join(h.dir, "pitr.yaml"), filepath.Join(h.dir, "pooler.yaml")
	tt := &torture{harness: h, rng: rng, synchronous: plan.synchronous, timed: plan.timed, forgiven: map[transactionID]bool{}, result: result{faults: map[string]int{}}}
	if plan.s3 {
		tt.store = startFaultyStore(t, rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64())))
		tt.repositoryURL = tt.store.url()
	} else {
		tt.repository = filepath.Join(h.dir, "repository")
		tt.repositoryURL = "file://" + tt.repository
		if err := errors.Join(os.Mkdir(tt.repository, 0o755), h.install.Own(tt.repository)); err != nil {
			t.Fatal(err)
		}
	}
	tt.primary = newNode(t, h.install, plan.clock)
	if err := h.install.InitDB(ctx, postmaster.InitOptions{Dir: tt.primary.options.Dir, Superuser: "postgres", SegmentSizeMB: plan.segmentMB}); err != nil {
		t.Fatal(err)
	}
	tt.startPrimary(ctx)
	tt.primary.alter(ctx, "wal_keep_size", tortureKeep)
	tt.primary.query(ctx, tortureSchema)
	if plan.standby {
		tt.standby = tt.primary.standby(ctx)
	}
	t.Cleanup(h.killAll)
	tt.configure()
	h.start(ctx, "archiver")
	h.start(ctx, "pooler")
	h.mustPitr(ctx, "backup")
	tt.makeSynchronous(ctx)
	return tt
}

// makeSynchronous lets commits wait for the archive, and for the standby where there will be a failover.
func (t *torture) makeSynchronous(ctx context.Context) {
	t.t.Helper()
	if t.standby != nil {
		t.eventually(ctx, "the archiver has a slot on the standby", func() bool {
			return t.standby.query(ctx, "select count(*) from pg_replication_slots where slot_name = 'pitr' and restart_lsn is not null") == "1"
		})
	}
	switch {
	case t.synchronous && t.standby != nil:
		t.primary.alter(ctx, "synchronous_standby_names", "FIRST 2 (pitr, standby)")
	case t.synchronous:
		t.primary.alter(ctx, "synchronous_standby_names", "pitr")
	default:
		return
	}
	t.eventually(ctx, "commits wait", func() bool {
		return t.primary.query(ctx, "select bool_and(sync_state = 'sync') from pg_stat_replication where application_name in ('pitr', 'standby')") == "t"
	})
}

// configure writes the configurations: the archiver knows all servers, the pooler the primary.
func (t *torture) configure() {
	t.t.Helper()
	hosts := fmt.Sprintf("127.0.0.1:%d", t.primary.options.Port)
	pooler := hosts
	if t.standby != nil {
		hosts = fmt.Sprintf("127.0.0.1:%d,%s", t.standby.options.Port, hosts)
	}
	t.writeConfig(t.config, hosts)
	t.writeConfig(t.own["pooler"], pooler)
}

func (t *torture) writeConfig(name, hosts string) {
	t.t.Helper()
	text := fmt.Sprintf(tortureConfig, hosts, t.pooler, t.repositoryURL, t.metrics["pooler"], t.metrics["archiver"])
	if err := errors.Join(os.WriteFile(name, []byte(text), 0o644), t.install.Own(name)); err != nil {
		t.t.Fatal(err)
	}
}

func tortureRound(t *testing.T, rng *rand.Rand, plan roundPlan) result {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	tt := newTorture(ctx, t, rng, plan)
	tt.work = startWorkload(ctx, rng, func(ctx context.Context) (*pgx.Conn, error) { return tt.connect(ctx, tt.pooler) })
	wanted := plan.faults
	for range plan.storms {
		tt.storm(ctx, wanted, plan.others)
		tt.pause(ctx, 0, 500)
		tt.strikeDisaster(ctx)
		wanted = nil
	}
	for range plan.calm {
		tt.pause(ctx, int(calmSpan/time.Millisecond)+500, int(calmSpan/time.Millisecond)+1500)
		tt.strikeDisaster(ctx)
	}
	tt.quiet(ctx)
	l := tt.ledger(ctx)
	tt.checkAcknowledged(l)
	tt.checkDisasters(l)
	tt.checkLost(ctx, l)
	tt.restoreToInstants(ctx, l, plan.instants)
	tt.result.acknowledged, tt.result.disasters = len(tt.work.acked), len(tt.disasters)
	for _, name := range tt.struck {
		tt.result.faults[name]++
	}
	t.Logf("%s: %s", plan, &tt.result)
	if len(tt.work.acked) < 50 {
		t.Errorf("only %d transactions were acknowledged: the round shows nothing", len(tt.work.acked))
	}
	return tt.result
}

// quiet ends faults and workload, and waits until everything is archived, and a backup lies behind each gap.
func (t *torture) quiet(ctx context.Context) {
	t.t.Helper()
	t.heal(ctx)
	waitFor(ctx, 1500*time.Millisecond)
	t.work.end()
	t.asides.Wait()
	t.waitReady(ctx, "archiver")
	t.archived(ctx)
	for _, g := range t.gaps {
		t.eventually(ctx, "a backup lies behind the gap", func() bool {
			return slices.ContainsFunc(t.backups(ctx), func(b repo.Backup) bool { return b.Start >= g.from && b.Stop >= g.to })
		})
	}
}

// ledger reads what pg_waldump says of the whole round.
func (t *torture) ledger(ctx context.Context) *ledger {
	t.t.Helper()
	begin := t.backups(ctx)[0].Start
	end := t.primary.lsn(ctx, "pg_current_wal_flush_lsn()")
	if t.old == nil {
		return readLedger(ctx, t.harness, []stretchOfWAL{{node: t.primary, timeline: 1, from: begin, to: end, path: true}})
	}
	return readLedger(ctx, t.harness, []stretchOfWAL{
		{node: t.old, timeline: 1, from: begin, to: t.left, path: true},
		{node: t.old, timeline: 1, from: t.left},
		{node: t.primary, timeline: 2, from: t.left, to: end, path: true},
	})
}

// checkAcknowledged compares what clients were told with what the servers have committed.
func (t *torture) checkAcknowledged(l *ledger) {
	t.t.Helper()
	onPath, dead := committed(l.ends), committed(l.dead)
	lost, different := 0, 0
	for id, a := range t.work.acked {
		entries, found := onPath[id]
		if !found && t.forgiven[id] {
			entries, found = dead[id]
		}
		if !found {
			lost++
			continue
		}
		parts := []int{}
		for _, e := range entries {
			parts = append(parts, e.Part)
		}
		if slices.Sort(parts); !slices.Equal(parts, a.parts) {
			different++
		}
	}
	t.result.missing += lost
	if lost+different > 0 {
		t.t.Errorf("of %d acknowledged transactions the ledger lacks %d, and has %d otherwise than the client wrote them", len(t.work.acked), lost, different)
	}
}
