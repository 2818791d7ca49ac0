package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

const reportOfPgbench = `pgbench (18.6 (Debian 18.6-3))
transaction type: <builtin: select only>
scaling factor: 10
query mode: simple
number of clients: 64
number of threads: 2
maximum number of tries: 1
duration: 5 s
number of transactions actually processed: 107641
number of failed transactions: 0 (0.000%)
latency average = 2.972 ms
initial connection time = 131.407 ms
tps = 21529.250100 (without initial connection time)
`

func TestReportOfPgbench(t *testing.T) {
	r, err := parseReport(reportOfPgbench)
	if err != nil {
		t.Fatal(err)
	}
	if r.transactions != 107641 || r.tps != 21529.2501 || r.average != 2.972 || r.connecting != 131.407 {
		t.Errorf("%+v", r)
	}
	reconnecting := strings.NewReplacer("initial connection time = 131.407 ms", "average connection time = 1.5 ms",
		"(without initial connection time)", "(including reconnection times)").Replace(reportOfPgbench)
	r, err = parseReport(reconnecting)
	if err != nil || r.tps != 21529.2501 || r.connecting != 0 {
		t.Errorf("with -C: %+v, %v", r, err)
	}
}

func TestTroubleOfPgbenchIsNeverSwallowed(t *testing.T) {
	expect := func(want, old, new string) {
		t.Helper()
		_, err := parseReport(strings.Replace(reportOfPgbench, old, new, 1))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
	expect("3 transactions failed", "transactions: 0 (0.000%)", "transactions: 3 (0.003%)")
	expect("not one transaction", "processed: 107641", "processed: 0")
	expect("client 7 aborted", "pgbench (18.6", "pgbench: error: client 7 aborted in command 1 (SQL) of script 0\npgbench (18.6")
	expect("Run was aborted", "tps = ", "Run was aborted; the above results are incomplete.\ntps = ")
	expect("not understood", "tps = ", "speed = ")
	expect("not understood", "latency average = 2.972 ms", "latency average = ?")
}

func TestLogOfPgbench(t *testing.T) {
	r := &report{}
	for _, thread := range []string{"0 1 1500 0 1700000000 500000\n1 1 2500 0 1700000000 600000\n0 2 1000 0 1700000001 0\n", "2 1 500 0 1700000000 498600\n"} {
		if err := r.readLog(strings.NewReader(thread), false); err != nil {
			t.Fatal(err)
		}
	}
	if want := []int64{1500, 2500, 1000, 500}; !slices.Equal(r.latencies, want) {
		t.Errorf("latencies %v, want %v", r.latencies, want)
	}
	begin, end := time.Unix(1_700_000_000, 498_100_000), time.Unix(1_700_000_001, 0)
	if !r.begin.Equal(begin) || !r.end.Equal(end) {
		t.Errorf("from %v to %v, want %v to %v", r.begin, r.end, begin, end)
	}
	for _, broken := range []string{"0 1 1500 0 1700000000\n", "0 1 failed 0 1700000000 500000\n", "0 1 skipped 0 1700000000 500000\n"} {
		if err := (&report{}).readLog(strings.NewReader(broken), false); err == nil {
			t.Errorf("%q has no error", broken)
		}
	}
}

func TestConnectingBelongsToTheLatencyOfAReconnectingClient(t *testing.T) {
	r := &report{}
	log := "0 1 100 0 1700000000 0\n1 1 100 0 1700000000 5000\n0 2 100 0 1700000000 20000\n1 2 100 0 1700000000 35000\n"
	if err := r.readLog(strings.NewReader(log), true); err != nil {
		t.Fatal(err)
	}
	if want := []int64{20000, 30000}; !slices.Equal(r.latencies, want) {
		t.Errorf("latencies %v, want %v", r.latencies, want)
	}
}

func TestTimeToConnectIsAddedToTheRun(t *testing.T) {
	l := load{clients: 500, seconds: 5}
	if got := l.withTimeToConnect(nil).seconds; got != 10 {
		t.Errorf("as guessed: %d s, want 10", got)
	}
	if got := (load{clients: 64, seconds: 1}).withTimeToConnect(nil).seconds; got != 2 {
		t.Errorf("as guessed for few: %d s, want 2", got)
	}
	if got := l.withTimeToConnect(&report{connecting: 1500}).seconds; got != 8 {
		t.Errorf("as known: %d s, want 8", got)
	}
}
