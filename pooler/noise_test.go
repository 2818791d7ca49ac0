package pooler

import (
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pitr/pooler/protocoltest"
)

// noise is what other clients do while scripts are played: each piece is a few lines of a script. They use the names and texts of the
// scripts, and leave behind whatever can be left, for the next client of their server.
var noise = parseNoise(`
Q "select 1" | until Z
Q "begin" | Q "select pg_sleep(0.002)" | Q "rollback" | until Z 3
Q "begin; select 1/0" | until Z | Q "rollback" | until Z
Q "selec" | until Z
P s1 "select 'noise'" | S | B "" s1 | E "" | S | until Z 2 | C S s1 | S | until Z
P s1 "select 1" | S | until Z | C S s1 | S | until Z
P s1 "select $1::int * 2" | B "" s1 21 | E "" | C S s1 | S | until Z
P s2 "select 'same'" | P s3 "select 'x'" | S | until Z | C S s2 | C S s3 | S | until Z
P "" "select 'noise'" | S | until Z
P "" "select 'noise'" | B p1 "" | S | until Z
P "" "select generate_series(1, 50)" | B "" "" | E "" 3 | H | until sE | S | until Z
P "" "select 1/0" | B "" "" | E "" | S | S | S | until Z 3
P "" "begin" | B "" "" | E "" | S | until Z | Q "select 1" | Q "commit" | until Z 2
Q "set timezone = 'Europe/Paris'" | until Z | Q "show timezone" | until Z
Q "set work_mem = '66MB'; set datestyle = 'SQL, DMY'" | until Z
Q "set search_path = noise" | until Z | Q "create table if not exists three (noise int)" | until Z
Q "set role pg_monitor" | until Z | Q "select current_user" | until Z
Q "set my.mark = 'noise'" | until Z
Q "set client_encoding = 'LATIN1'" | until Z
Q "set default_transaction_read_only = on" | until Z
Q "set statement_timeout = '500ms'" | until Z | Q "select pg_sleep(1)" | until Z
Q "begin; set local timezone = 'Asia/Kabul'" | until Z | Q "select now()" | until Z | Q "commit" | until Z
Q "select set_config('work_mem', '55MB', false), set_config('my.mark', 'noise', false)" | until Z
Q "create temp table three (noise text); insert into three values ('noise')" | until Z
Q "create temp table mine (x int); create temp table empty (noise text)" | until Z
Q "prepare s1 as select 'noise'" | until Z
Q "declare c cursor with hold for select 'noise'" | until Z
Q "select pg_advisory_lock_shared(4711)" | until Z
Q "listen channel_of_mine" | until Z
Q "notify channel_of_mine, 'noise'" | until Z
Q "discard all" | until Z
Q "deallocate all" | until Z
Q "reset all" | until Z
Q "copy (select repeat('noise', 100) from generate_series(1, 100)) to stdout" | until Z
Q "create table if not exists noise.heap (x text)" | until Z | Q "copy noise.heap from stdin" | until GE | d "noise\n" | c | until Z
Q "create table if not exists noise.heap (x text)" | until Z | Q "copy noise.heap from stdin" | until GE | d "noise\n" | f "no" | until Z
Q "create table if not exists noise.heap (x text)" | until Z | Q "copy noise.heap from stdin" | until GE | d "noise\n" | vanish
Q "select repeat('noise', 30000) from generate_series(1, 20)" | until Z
Q "select repeat('noise', 30000) from generate_series(1, 200)" | until DE | vanish
Q "do $$ begin raise notice 'noise'; perform pg_sleep(10); end $$" | until NE | cancel | until Z
Q "begin" | until Z | Q "select 'noise'" | until Z | vanish
Q "begin" | until Z | X
P "" "select 'noise'" | B "" "" | vanish
F 177 1 2 | until Z
times 50 Q "select 'noise'" | until Z 50
Q "select pg_terminate_backend(pg_backend_pid())" | until E | vanish
raw "B" "noise" | S | until E | vanish
`)

func parseNoise(text string) [][]protocoltest.Step {
	var all [][]protocoltest.Step
	for line := range strings.Lines(strings.TrimSpace(text)) {
		var steps []protocoltest.Step
		for one := range strings.SplitSeq(strings.TrimSpace(line), " | ") {
			steps = append(steps, protocoltest.Must("%s", one))
		}
		all = append(all, steps)
	}
	return all
}

// noisy is how many clients make noise in each pooler.
const noisy = 2

// noisePause keeps noise from taking all of the machine.
const noisePause = 100 * time.Millisecond

// disturb lets clients run wild in each pooler until the function that it returns is called.
func (c *conformance) disturb(t *testing.T, seed uint64) (stop func()) {
	var over atomic.Bool
	var wait sync.WaitGroup
	var played atomic.Int64
	for i := range c.poolers {
		for n := range noisy {
			wait.Go(func() {
				random := rand.New(rand.NewPCG(seed, uint64(1000+100*i+n)))
				pace := time.NewTicker(noisePause)
				defer pace.Stop()
				for ; !over.Load(); <-pace.C {
					script := &protocoltest.Script{Login: map[string]string{}}
					if random.IntN(3) == 0 {
						script.Login["TimeZone"] = "Asia/Kathmandu"
					}
					for range 1 + random.IntN(8) {
						script.Steps = append(script.Steps, noise[random.IntN(len(noise))]...)
					}
					if _, err := protocoltest.Play(c.poolers[i].target, script, random); err != nil {
						t.Errorf("noise in %s mode: %v\n%s", c.poolers[i].mode, err, script)
						return
					}
					played.Add(1)
				}
			})
		}
	}
	return func() {
		over.Store(true)
		wait.Wait()
		t.Logf("%d scripts of noise beside it", played.Load())
	}
}
