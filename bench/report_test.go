package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

// resultFile is two rounds: pitr is fast, Odyssey is missing, PgBouncer has failed once; TLS is not there yet.
const resultFile = `{"kind":"circumstances","time":"2026-11-20T20:56:54Z","commit":"abc1234","versions":{"pitr":"abc1234","pgbouncer":"1.26.1","postgres":"18.6"},"cpu":"Some CPU","cores":2,"kernel":"6.1","load_average":"0.1 0.2 0.3","rounds":2,"seconds":5,"warmup":1,"scale":10,"pool_size":20,"copy_gb":10,"idle_clients":10000}
{"kind":"run","workload":"simple","contestant":"direct","round":1,"values":{"tps":30000}}
{"kind":"run","workload":"simple","contestant":"pitr","round":1,"values":{"tps":24000,"cpu_us_per_txn":10}}
{"kind":"run","workload":"simple","contestant":"pgbouncer","round":1,"values":{"tps":20000,"cpu_us_per_txn":20}}
{"kind":"run","workload":"simple","contestant":"odyssey","round":1,"absent":"scripts/peers.sh: exit status 1: no <archive>"}
{"kind":"run","workload":"simple","contestant":"pgbouncer","round":2,"failed":"pgbench: 3 transactions failed, 7 did not"}
{"kind":"run","workload":"simple","contestant":"odyssey","round":2,"absent":"scripts/peers.sh: exit status 1: no <archive>"}
{"kind":"run","workload":"simple","contestant":"direct","round":2,"values":{"tps":32000}}
{"kind":"run","workload":"simple","contestant":"pitr","round":2,"values":{"tps":26000,"cpu_us_per_txn":12}}
{"kind":"run","workload":"tls","contestant":"pgbouncer","round":1,"values":{"tps":18000,"cpu_us_per_txn":25}}
{"kind":"run","workload":"tls","contestant":"pitr","round":1,"absent":"pitr: unknown key"}
{"kind":"run","workload":"tls","contestant":"pgbouncer","round":2,"values":{"tps":19000,"cpu_us_per_txn":24}}
{"kind":"run","workload":"tls","contestant":"pitr","round":2,"absent":"pitr: unknown key"}
`

func parsed(t *testing.T) *results {
	t.Helper()
	r, err := parseResults(strings.NewReader(resultFile))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestTable(t *testing.T) {
	want := `commit abc1234, 2026-11-20 20:56:54Z; 2 cores of Some CPU, Linux 6.1, load average before 0.1 0.2 0.3
2 rounds of 5 s, pool 20, pgbench scale 10, copy 10 GB, idle 10000 clients
median (min to max); below it the ratio to PgBouncer, taken round by round, and pitr's goal for it
postgres 18.6, pitr abc1234, pgbouncer 1.26.1

pgbench -S -M simple, 64 clients
  simple     txn/s                   CPU µs/txn
  direct     31000 (30000 to 32000)  -
             ×1.50
  pitr       25000 (24000 to 26000)  11.0 (10.0 to 12.0)
             ×1.20 >= 1.15 reached   ×0.50 <= 0.78 reached
  pgbouncer  FAILED in 1 of 2 rounds: pgbench: 3 transactions failed, 7 did not
  pgbouncer  20000                   20.0
  odyssey    absent: scripts/peers.sh: exit status 1: no <archive>

pgbench -S -M simple over TLS 1.3, 64 clients
  tls        txn/s                   CPU µs/txn
  pitr       absent: pitr: unknown key
  pgbouncer  18500 (18000 to 19000)  24.5 (24.0 to 25.0)
`
	if got := renderTable(parsed(t)); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestMarkdownNamesTheCommitAndLinksTheFile(t *testing.T) {
	want := `| workload | metric | pitr | PgBouncer | Odyssey | pitr / PgBouncer | goal |
|---|---|---|---|---|---|---|
| pgbench -S -M simple, 64 clients | txn/s | 25000 (24000 to 26000) | FAILED in 1 of 2 rounds | absent | 1.20 (1.20 to 1.20) | ≥ 1.15 |
| pgbench -S -M simple, 64 clients | CPU µs/txn | 11.0 (10.0 to 12.0) | FAILED in 1 of 2 rounds | absent | 0.50 (0.50 to 0.50) | ≤ 0.78 |
| pgbench -S -M simple over TLS 1.3, 64 clients | txn/s | absent | 18500 (18000 to 19000) | - | - | ≥ 1.30 |
| pgbench -S -M simple over TLS 1.3, 64 clients | CPU µs/txn | absent | 24.5 (24.0 to 25.0) | - | - | ≤ 0.65 |

Median (min to max) of 2 rounds; the ratio is taken round by round. Commit abc1234, 2026-11-20, 2 cores of Some CPU, postgres 18.6, pitr abc1234, pgbouncer 1.26.1; [every run](bench/results/x.jsonl).
`
	if got := renderMarkdown(parsed(t), "bench/results/x.jsonl"); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestChartIsWellFormedAndHasItsBars(t *testing.T) {
	svg := renderChart(parsed(t))
	decoder := xml.NewDecoder(strings.NewReader(svg))
	for {
		_, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in:\n%s", err, svg)
		}
	}
	// 330 pixels are a ratio of 3.
	for _, want := range []string{`width="132.0"`, ">1.20<", `width="55.0"`, ">0.50<", ">simple<", ">tls<", "commit abc1234"} {
		if !strings.Contains(svg, want) {
			t.Errorf("no %s in:\n%s", want, svg)
		}
	}
	if strings.Contains(svg, ">odyssey<") {
		t.Error("who never ran has a place in the legend")
	}
}

func TestResultFilesAreRefusedThatAreNone(t *testing.T) {
	for _, broken := range []string{"", "{}\n", resultFile + "{\n"} {
		if _, err := parseResults(strings.NewReader(broken)); err == nil {
			t.Errorf("%.20q… has no error", broken)
		}
	}
}

func TestResultsHaveTheirNameOnlyWhenTheyAreComplete(t *testing.T) {
	dir := t.TempDir()
	c := parsed(t).circumstances
	j, err := openJournal(dir, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.add(outcome{Kind: "run", Workload: "simple", Contestant: pitr, Round: 1, Values: map[metric]float64{tps: 1}}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(j.name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("before it is complete: %v", err)
	}
	name, err := j.publish()
	if err != nil {
		t.Fatal(err)
	}
	r, err := readResults(name)
	if err != nil || len(r.outcomes) != 1 || r.circumstances.Commit != c.Commit {
		t.Errorf("%+v, %v", r, err)
	}
}
