package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
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
}

// report is what pgbench says about a run.
type report struct {
	transactions int64
	tps          float64
	average      float64 // milliseconds
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
		if err := r.readLogs(logs); err != nil {
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
	reportTPS          = regexp.MustCompile(`(?m)^tps = ([\d.]+) \((?:without initial connection time|including reconnection times)\)`)
	reportTrouble      = regexp.MustCompile(`(?m)^pgbench: (?:error|fatal|warning):.*|^.*(?:Run was aborted|client \d+ aborted).*`)
)

// parseReport reads what pgbench 14 and later print at the end.
func parseReport(out string) (*report, error) {
	if trouble := reportTrouble.FindString(out); trouble != "" {
		return nil, errors.New(trouble)
	}
	number := func(pattern *regexp.Regexp) (float64, error) {
		match := pattern.FindStringSubmatch(out)
		if match == nil {
			return 0, fmt.Errorf("pgbench: nothing like %q in its output: %s", pattern, lastMessage(out))
		}
		return strconv.ParseFloat(match[1], 64)
	}
	var errs [4]error
	var transactions, failed float64
	r := &report{}
	transactions, errs[0] = number(reportTransactions)
	failed, errs[1] = number(reportFailed)
	r.average, errs[2] = number(reportAverage)
	r.tps, errs[3] = number(reportTPS)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	if failed > 0 {
		return nil, fmt.Errorf("pgbench: %.0f of %.0f transactions failed", failed, transactions)
	}
	if transactions == 0 {
		return nil, errors.New("pgbench: not one transaction was processed")
	}
	r.transactions = int64(transactions)
	return r, nil
}

// readLogs reads the logs of all threads of a run.
func (r *report) readLogs(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "t.*"))
	if err != nil {
		return err
	}
	for _, name := range names {
		file, err := os.Open(name)
		if err != nil {
			return err
		}
		err = r.readLog(file)
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

// readLog reads lines of client, transaction, microseconds, script, and the second and microsecond at which it ended.
func (r *report) readLog(log io.Reader) error {
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 {
			return fmt.Errorf("a line of %d fields: %q", len(fields), lines.Text())
		}
		var numbers [3]int64
		for i, field := range []int{2, 4, 5} {
			var err error
			if numbers[i], err = strconv.ParseInt(fields[field], 10, 64); err != nil {
				return fmt.Errorf("%q: %w", lines.Text(), err)
			}
		}
		end := time.Unix(numbers[1], numbers[2]*1000)
		begin := end.Add(-time.Duration(numbers[0]) * time.Microsecond)
		if r.begin.IsZero() || begin.Before(r.begin) {
			r.begin = begin
		}
		if end.After(r.end) {
			r.end = end
		}
		r.latencies = append(r.latencies, numbers[0])
	}
	return lines.Err()
}
