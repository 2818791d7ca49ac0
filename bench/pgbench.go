package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// load is one run of pgbench against an address.
type load struct {
	clients, threads int
	args             []string // what makes the workload: -S, -M prepared, -C …
	seconds          int
	sampling         float64 // share of the transactions that are logged, for the percentiles; zero: none
	reconnect        bool    // each transaction connects anew, which belongs to its latency; wants a sampling of 1
}

// connectPerSecond is how many clients a slow machine connects in a second: libpq takes milliseconds of a core for the SCRAM of
// each. pgbench's clock runs meanwhile, so that time is added to its own.
const connectPerSecond = 100

// withTimeToConnect lengthens the load by what connecting takes: as known from a run before, else as guessed.
func (l load) withTimeToConnect(known *report) load {
	if known != nil {
		l.seconds += int(math.Ceil(known.connecting / 1000 * 1.5))
	} else {
		l.seconds += (l.clients + connectPerSecond - 1) / connectPerSecond
	}
	return l
}

// report is what pgbench says about a run.
type report struct {
	transactions int64
	tps          float64
	average      float64 // milliseconds
	connecting   float64 // milliseconds until all clients were there; zero where each transaction connects
	latencies    []int64 // microseconds, sorted; of the transactions that were logged
	begin, end   time.Time
}

// pgbench runs the load. A client that failed or a transaction that failed is an error, whatever the rest did.
func (e *environment) pgbench(ctx context.Context, at address, l load) (*report, error) {
	logs, err := os.MkdirTemp(e.dir, "log-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(logs)
	args := []string{e.program("pgbench"), "-n", "-h", at.host, "-p", strconv.Itoa(at.port), "-U", benchUser,
		"-c", strconv.Itoa(l.clients), "-j", strconv.Itoa(min(l.threads, l.clients)), "-T", strconv.Itoa(l.seconds)}
	if l.sampling > 0 {
		args = append(args, "-l", "--log-prefix="+filepath.Join(logs, "t"))
	}
	if l.sampling > 0 && l.sampling < 1 {
		args = append(args, fmt.Sprintf("--sampling-rate=%g", l.sampling))
	}
	args = append(append(args, l.args...), benchDatabase)

	deadline, cancel := context.WithTimeout(ctx, time.Duration(l.seconds)*time.Second+loadGrace)
	defer cancel()
	out, err := run(deadline, launch{name: "pgbench", args: args, dir: e.dir, env: at.env()})
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			err = fmt.Errorf("pgbench: no end %s after its time", loadGrace)
		}
		return nil, err
	}
	r, err := parseReport(out)
	if err != nil {
		return nil, err
	}
	if l.sampling > 0 {
		if err := r.readLogs(logs, l.reconnect); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// loadGrace is how long connecting, and the last transactions, may take beyond a run's time.
const loadGrace = 60 * time.Second

var (
	reportTransactions = regexp.MustCompile(`(?m)^number of transactions actually processed: (\d+)`)
	reportFailed       = regexp.MustCompile(`(?m)^number of failed transactions: (\d+)`)
	reportAverage      = regexp.MustCompile(`(?m)^latency average = ([\d.]+) ms`)
	reportConnecting   = regexp.MustCompile(`(?m)^initial connection time = ([\d.]+) ms`)
	reportTPS          = regexp.MustCompile(`(?m)^tps = ([\d.]+) \((?:without initial connection time|including reconnection times)\)`)
	reportTrouble      = regexp.MustCompile(`(?m)^pgbench: (?:error|fatal|warning):.*|^.*(?:Run was aborted|client \d+ aborted).*`)
)

// parseReport reads what pgbench 14 and later print at the end.
func parseReport(out string) (*report, error) {
	if trouble := reportTrouble.FindString(out); trouble != "" {
		return nil, errors.New(trouble)
	}
	number := func(pattern *regexp.Regexp) (value float64) {
		match := pattern.FindStringSubmatch(out)
		if match == nil {
			return math.NaN()
		}
		value, err := strconv.ParseFloat(match[1], 64)
		if err != nil {
			return math.NaN()
		}
		return value
	}
	transactions, failed := number(reportTransactions), number(reportFailed)
	r := &report{tps: number(reportTPS), average: number(reportAverage)}
	switch {
	case transactions == 0:
		return nil, errors.New("pgbench: not one transaction was processed")
	case math.IsNaN(transactions + failed + r.tps + r.average):
		return nil, fmt.Errorf("pgbench: its report is not understood: %s", lastMessage(out))
	case failed > 0:
		return nil, fmt.Errorf("pgbench: %.0f transactions failed, %.0f did not", failed, transactions)
	}
	r.transactions = int64(transactions)
	if connecting := number(reportConnecting); !math.IsNaN(connecting) {
		r.connecting = connecting
	}
	return r, nil
}

// readLogs reads the logs of all threads of a run.
func (r *report) readLogs(dir string, reconnect bool) error {
	names, err := filepath.Glob(filepath.Join(dir, "t.*"))
	if err != nil {
		return err
	}
	for _, name := range names {
		file, err := os.Open(name)
		if err != nil {
			return err
		}
		err = r.readLog(file, reconnect)
		if err := errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("log of pgbench: %w", err)
		}
	}
	if len(r.latencies) == 0 {
		return errors.New("log of pgbench: it is empty")
	}
	slices.Sort(r.latencies)
	return nil
}

// readLog reads lines of client, transaction, microseconds, script, and the second and microsecond at which it ended. pgbench does
// not count connecting as part of a transaction; with reconnect the latency is therefore the time since the client's last one ended.
func (r *report) readLog(log io.Reader, reconnect bool) error {
	last := map[int64]time.Time{} // by client, the end of its last transaction
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 {
			return fmt.Errorf("a line of %d fields: %q", len(fields), lines.Text())
		}
		var numbers [4]int64
		for i, field := range []int{0, 2, 4, 5} {
			var err error
			if numbers[i], err = strconv.ParseInt(fields[field], 10, 64); err != nil {
				return fmt.Errorf("%q: %w", lines.Text(), err)
			}
		}
		client, latency, end := numbers[0], numbers[1], time.Unix(numbers[2], numbers[3]*1000)
		begin := end.Add(-time.Duration(latency) * time.Microsecond)
		if r.begin.IsZero() || begin.Before(r.begin) {
			r.begin = begin
		}
		if end.After(r.end) {
			r.end = end
		}
		before, known := last[client]
		last[client] = end
		switch {
		case !reconnect:
			r.latencies = append(r.latencies, latency)
		case known:
			r.latencies = append(r.latencies, end.Sub(before).Microseconds())
		}
	}
	return lines.Err()
}
