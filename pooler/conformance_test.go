package pooler

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"pitr/config"
	"pitr/pooler/protocoltest"
)

// conformance is a set of places where scripts are played: Postgres itself, and poolers of each mode, each with a database of its
// own, so that what a script makes is there or not there for the same reason everywhere.
type conformance struct {
	direct  place
	poolers []place
}

type place struct {
	mode   string
	names  []string // as the exceptions of scripts have it: the mode, "shared" where servers are, "every"
	target protocoltest.Target
	owner  *postgresAdmin
}

// postgresAdmin cleans a database between two scripts.
type postgresAdmin struct {
	run func(sql string) error
}

// kinds are the poolers that are compared. "eager" is transaction mode with every limit close at hand.
var kinds = []struct {
	mode   string
	change func(*config.Config)
}{
	{"session", func(cfg *config.Config) { cfg.Pooler.PoolMode = "session"; cfg.Pooler.DefaultPoolSize = 6 }},
	{"transaction", func(cfg *config.Config) { cfg.Pooler.LazyBegin = "on"; cfg.Pooler.DefaultPoolSize = 3 }},
	{"eager", func(cfg *config.Config) {
		cfg.Pooler.DefaultPoolSize, cfg.Pooler.MaxPreparedStatements, cfg.Pooler.MaxPipelineMessages, cfg.Pooler.PktBuf = 2, 2, 100, 1<<10
		cfg.Pooler.Workers = 1
	}},
	{"statement", func(cfg *config.Config) { cfg.Pooler.PoolMode = "statement"; cfg.Pooler.DefaultPoolSize = 3 }},
}

func newConformance(t *testing.T) *conformance {
	t.Helper()
	pg := server(t)
	admin := connect(t, pg.dsn(""))
	at := func(mode string, port int) place {
		name := "conformance_" + mode
		mustQuery(t, admin, "drop database if exists "+name+" with (force)")
		mustQuery(t, admin, "create database "+name)
		owner := connect(t, fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=%s sslmode=disable", pg.port, name))
		mustQuery(t, owner, "create schema noise; set client_min_messages = 'error'")
		names := []string{mode, "every"}
		if mode != "session" {
			names = append(names, "shared")
		}
		return place{mode, names, protocoltest.Target{
			Address: "127.0.0.1:" + strconv.Itoa(port), User: "postgres", Database: name, Timeout: 30 * time.Second,
		}, &postgresAdmin{func(sql string) error { _, err := query(owner, sql); return err }}}
	}
	c := &conformance{direct: at("direct", pg.port)}
	for _, kind := range kinds {
		c.poolers = append(c.poolers, at(kind.mode, start(t, pg, kind.change).port))
	}
	return c
}

// fixture is what scripts find: a table with three rows, an empty one, and a function that makes noise.
const fixture = `drop schema if exists public cascade; create schema public;
create table three (i int primary key, s text); insert into three values (1, 'one'), (2, 'two'), (3, null);
create table empty (i int primary key, s text)`

// play plays a script in one place.
func (p *place) play(script *protocoltest.Script, random *rand.Rand) ([]protocoltest.Message, error) {
	if err := p.owner.run(fixture); err != nil {
		return nil, fmt.Errorf("%s: fixture: %w", p.mode, err)
	}
	return protocoltest.Play(p.target, script, random)
}

// compare plays a script everywhere and returns what differs from Postgres and should not.
func (c *conformance) compare(script *protocoltest.Script, seed uint64) (problems []string) {
	want, err := c.direct.play(script, rand.New(rand.NewPCG(seed, 0)))
	if err != nil {
		return []string{fmt.Sprintf("directly: %v", err)}
	}
	found := make([]string, len(c.poolers))
	var wait sync.WaitGroup
	for i := range c.poolers {
		wait.Go(func() {
			place := &c.poolers[i]
			if script.Except("not", place.names) != nil {
				return
			}
			got, err := place.play(script, rand.New(rand.NewPCG(seed, uint64(i)+1)))
			difference := compareAnswers(script, place, want, got, err)
			known := script.Except("known", place.names)
			switch {
			case known == nil && difference != "":
				found[i] = fmt.Sprintf("%s mode, seed %d: %s\n  the script was:\n%s", place.mode, seed, difference, script)
			case known != nil && difference == "":
				found[i] = fmt.Sprintf("%s mode: this is as with Postgres now, and does not need to be excused: %s", place.mode, known.Reason)
			}
		})
	}
	wait.Wait()
	return slices.DeleteFunc(found, func(one string) bool { return one == "" })
}

func compareAnswers(script *protocoltest.Script, place *place, want, got []protocoltest.Message, err error) string {
	except := func(kind string) bool { return script.Except(kind, place.names) != nil }
	rules := protocoltest.Rules{Texts: except("texts"), Late: except("late"), Codes: except("codes")}
	wanted := protocoltest.Normal(want, rules)
	if place.mode == "statement" {
		wanted = protocoltest.Statement(wanted, rules)
	}
	difference := protocoltest.Difference(wanted, protocoltest.Normal(got, rules))
	if err != nil {
		difference += "\n  it ended with: " + err.Error()
	}
	return difference
}

// corpus reads the scripts of testdata/protocol.
func corpus(t *testing.T) []*protocoltest.Script {
	t.Helper()
	files, err := filepath.Glob("testdata/protocol/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []*protocoltest.Script
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		scripts, err := protocoltest.Parse(string(text))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, script := range scripts {
			script.Name = strings.TrimSuffix(filepath.Base(file), ".txt") + "/" + script.Name
		}
		all = append(all, scripts...)
	}
	return all
}

// seedOf returns PITR_SEED, or a new seed.
func seedOf(t *testing.T) uint64 {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("PITR_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d (PITR_SEED=%d brings it back)", seed, seed)
	return seed
}

func TestScriptsGetTheAnswersOfPostgresInEveryMode(t *testing.T) {
	scripts := corpus(t)
	c := newConformance(t)
	seed := seedOf(t)
	defer c.disturb(t, seed)()
	excused := 0
	for i, script := range scripts {
		excused += len(script.Exceptions)
		t.Run(script.Name, func(t *testing.T) {
			for _, problem := range c.compare(script, seed+uint64(i)) {
				t.Error(problem)
			}
		})
	}
	t.Logf("%d scripts in %d modes, %d exceptions", len(scripts), len(c.poolers), excused)
}
