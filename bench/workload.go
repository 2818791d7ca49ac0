package main

import (
	"fmt"
	"slices"
	"strings"
)

// metric is one of the numbers of a run; its text is its key in the results.
type metric string

// The metrics. What a workload does not measure is absent from its runs.
const (
	tps       metric = "tps"            // transactions a second
	logins    metric = "logins_per_s"   // of clients that stay, each with one query
	mbPerSec  metric = "mb_per_s"       // 10^6 bytes of the protocol's stream a second
	average   metric = "latency_avg_ms" // of a transaction, as pgbench reports it
	p99       metric = "latency_p99_ms" // nearest rank, from pgbench's log
	cpuPerTxn metric = "cpu_us_per_txn" // of the pooler, user and system
	cpuPerGB  metric = "cpu_ms_per_gb"  // of the pooler for 10^9 bytes
	rss       metric = "rss_mib"        // of the pooler: the peak of a run; for idle what is held at the end
	pss       metric = "pss_mib"
)

// metrics is their order in tables.
var metrics = []metric{tps, logins, mbPerSec, average, p99, cpuPerTxn, cpuPerGB, rss, pss}

// title is a metric's head in a table.
func (m metric) title() string {
	switch m {
	case tps:
		return "txn/s"
	case logins:
		return "logins/s"
	case mbPerSec:
		return "MB/s"
	case average:
		return "avg ms"
	case p99:
		return "p99 ms"
	case cpuPerTxn:
		return "CPU µs/txn"
	case cpuPerGB:
		return "CPU ms/GB"
	case rss:
		return "RSS MiB"
	case pss:
		return "PSS MiB"
	}
	panic("bench: no title for metric " + string(m))
}

// moreIsBetter tells in which direction a metric improves.
func (m metric) moreIsBetter() bool { return m == tps || m == logins || m == mbPerSec }

// goal is what pitr wants to reach, as a ratio to PgBouncer.
type goal struct {
	metric metric
	bound  float64
}

func (g goal) reached(ratio float64) bool {
	if g.metric.moreIsBetter() {
		return ratio >= g.bound
	}
	return ratio <= g.bound
}

func (g goal) String() string {
	if g.metric.moreIsBetter() {
		return fmt.Sprintf(">= %.2f", g.bound)
	}
	return fmt.Sprintf("<= %.2f", g.bound)
}

// workload is one way to use a pooler.
type workload struct {
	name  string
	about string
	kind  kind
	load  load // for kindPgbench; seconds come from the command line
	tls   bool
	pitr  string // more settings of pitr's pooler, as YAML
	// noDirect is why Postgres without a pooler is left out.
	noDirect string
	// before is run on the server before each run.
	before []string
	goals  []goal
}

// kind is what drives a workload.
type kind int

const (
	kindPgbench kind = iota
	kindCopyOut
	kindCopySelect
	kindCopyIn
	kindIdle
)

const tooMany = "Postgres has 200 connections"

var workloads = []workload{
	{name: "simple", about: "pgbench -S -M simple, 64 clients", load: load{clients: 64, threads: 2, args: []string{"-S", "-M", "simple"}, sampling: 0.1},
		goals: []goal{{tps, 1.15}, {cpuPerTxn, 0.78}}},
	{name: "extended", about: "pgbench -S -M extended, 64 clients", load: load{clients: 64, threads: 2, args: []string{"-S", "-M", "extended"}, sampling: 0.1},
		goals: []goal{{tps, 1.20}, {cpuPerTxn, 0.78}}},
	{name: "extended_reuse", about: "the same, pitr with reuse_unnamed_statements on", pitr: "  reuse_unnamed_statements: \"on\"\n",
		load: load{clients: 64, threads: 2, args: []string{"-S", "-M", "extended"}, sampling: 0.1}},
	{name: "prepared", about: "pgbench -S -M prepared, 64 clients", load: load{clients: 64, threads: 2, args: []string{"-S", "-M", "prepared"}, sampling: 0.1},
		goals: []goal{{tps, 1.35}, {cpuPerTxn, 0.65}}},
	{name: "clients500", about: "pgbench -S -M simple, 500 clients", load: load{clients: 500, threads: 2, args: []string{"-S"}, sampling: 0.2}, noDirect: tooMany,
		goals: []goal{{tps, 1.2}, {cpuPerTxn, 0.75}, {p99, 0.9}}},
	{name: "clients1000", about: "pgbench -S -M simple, 1000 clients", load: load{clients: 1000, threads: 2, args: []string{"-S"}, sampling: 0.2}, noDirect: tooMany,
		goals: []goal{{tps, 1.2}, {cpuPerTxn, 0.75}, {p99, 0.9}}},
	{name: "single", about: "pgbench -S -M simple, 1 client", load: load{clients: 1, threads: 1, args: []string{"-S"}, sampling: 0.2},
		goals: []goal{{average, 1.0}}},
	{name: "tpcb", about: "pgbench, TPC-B-like, 32 clients", load: load{clients: 32, threads: 2, sampling: 1},
		before: []string{"truncate pgbench_history", "vacuum pgbench_branches, pgbench_tellers, pgbench_accounts"},
		goals:  []goal{{tps, 1.1}}},
	{name: "connect", about: "pgbench -C -S, SCRAM login for each query, 16 clients", load: load{clients: 16, threads: 16, args: []string{"-C", "-S"}, sampling: 1, reconnect: true},
		goals: []goal{{tps, 1.0}}},
	{name: "connect_tls", about: "the same over TLS 1.3", tls: true, load: load{clients: 16, threads: 16, args: []string{"-C", "-S"}, sampling: 1, reconnect: true},
		goals: []goal{{tps, 1.4}}},
	{name: "tls", about: "pgbench -S -M simple over TLS 1.3, 64 clients", tls: true, load: load{clients: 64, threads: 2, args: []string{"-S"}, sampling: 0.1},
		goals: []goal{{tps, 1.3}, {cpuPerTxn, 0.65}}},
	{name: "tls_prepared", about: "pgbench -S -M prepared over TLS 1.3, 64 clients", tls: true,
		load: load{clients: 64, threads: 2, args: []string{"-S", "-M", "prepared"}, sampling: 0.1}, goals: []goal{{tps, 1.3}, {cpuPerTxn, 0.65}}},
	{name: "copy_out", about: "COPY TO STDOUT, 2 clients", kind: kindCopyOut, goals: []goal{{mbPerSec, 1.0}, {cpuPerGB, 1.0}}},
	{name: "copy_select", about: "large SELECTs, 2 clients", kind: kindCopySelect, goals: []goal{{mbPerSec, 1.0}, {cpuPerGB, 1.0}}},
	{name: "copy_in", about: "COPY FROM STDIN, 2 clients", kind: kindCopyIn, goals: []goal{{mbPerSec, 1.0}, {cpuPerGB, 1.0}}},
	{name: "idle", about: "clients that ran one query each and stay", kind: kindIdle, noDirect: tooMany, goals: []goal{{rss, 0.8}}},
}

// choose picks workloads by name; "copy" and "tls" also stand for all whose names begin so. Nothing is all of them.
func choose(names []string) ([]workload, error) {
	if len(names) == 0 {
		return workloads, nil
	}
	for _, name := range names {
		if !slices.ContainsFunc(workloads, func(w workload) bool { return w.named(name) }) {
			var known []string
			for _, w := range workloads {
				known = append(known, w.name)
			}
			return nil, fmt.Errorf("there is no workload %q; there are %s", name, strings.Join(known, ", "))
		}
	}
	var chosen []workload
	for _, w := range workloads {
		if slices.ContainsFunc(names, w.named) {
			chosen = append(chosen, w)
		}
	}
	return chosen, nil
}

func (w workload) named(name string) bool {
	return w.name == name || (name == "copy" || name == "tls") && strings.HasPrefix(w.name, name+"_")
}

// workloadNamed finds the workload of a result; one that is not known any more has a name and no goals.
func workloadNamed(name string) workload {
	for _, w := range workloads {
		if w.name == name {
			return w
		}
	}
	return workload{name: name}
}
