package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// circumstances is the first line of a result file.
type circumstances struct {
	Kind     string            `json:"kind"` // "circumstances"
	Time     time.Time         `json:"time"`
	Commit   string            `json:"commit"` // of the checkout, with -dirty when it had changes
	Versions map[string]string `json:"versions"`
	CPU      string            `json:"cpu"`
	Cores    int               `json:"cores"`
	Kernel   string            `json:"kernel"`
	Load     string            `json:"load_average"` // of the last 1, 5 and 15 minutes, before the first run
	Rounds   int               `json:"rounds"`
	Seconds  int               `json:"seconds"`
	Warmup   int               `json:"warmup"`
	Scale    int               `json:"scale"`
	Source   string            `json:"backup_source,omitempty"` // of pitr
	PoolSize int               `json:"pool_size"`
	CopyGB   float64           `json:"copy_gb"`
	Idle     int               `json:"idle_clients"`
	Postgres []string          `json:"postgres_settings"`
}

// outcome is every other line: one run of one contestant.
type outcome struct {
	Kind       string             `json:"kind"` // "run"
	Workload   string             `json:"workload"`
	Contestant string             `json:"contestant"`
	Round      int                `json:"round"`
	Absent     string             `json:"absent,omitempty"` // why it could not take part
	Failed     string             `json:"failed,omitempty"` // what went wrong although it took part
	Values     map[metric]float64 `json:"values,omitempty"`
}

// results is a file of them.
type results struct {
	circumstances circumstances
	outcomes      []outcome
}

// journal writes results as they come. It has its final name only when it is complete.
type journal struct {
	file *os.File
	name string
}

func openJournal(dir string, c circumstances) (*journal, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	name := filepath.Join(dir, c.Time.UTC().Format("20060102T150405Z")+"-"+c.Commit+".jsonl")
	file, err := os.Create(name + ".tmp")
	if err != nil {
		return nil, err
	}
	j := &journal{file: file, name: name}
	return j, j.add(c)
}

func (j *journal) add(line any) error { return json.NewEncoder(j.file).Encode(line) }

// publish completes the file and says its name.
func (j *journal) publish() (string, error) {
	if err := errors.Join(j.file.Sync(), j.file.Close()); err != nil {
		return "", err
	}
	return j.name, os.Rename(j.file.Name(), j.name)
}

func readResults(name string) (*results, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	r, err := parseResults(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}

func parseResults(in io.Reader) (*results, error) {
	r := &results{}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for number := 1; lines.Scan(); number++ {
		var err error
		if number == 1 {
			err = json.Unmarshal(lines.Bytes(), &r.circumstances)
		} else {
			var o outcome
			err = json.Unmarshal(lines.Bytes(), &o)
			r.outcomes = append(r.outcomes, o)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
	}
	if lines.Err() == nil && r.circumstances.Kind != "circumstances" {
		return nil, errors.New("it does not begin with the circumstances: is it a file of bench/results?")
	}
	return r, lines.Err()
}

// workloads lists those that occur, in the order in which they do.
func (r *results) workloads() []string {
	return distinct(r.outcomes, func(o outcome) (string, bool) { return o.Workload, true })
}

// contestants lists those of a workload, in the order of the first round.
func (r *results) contestants(workload string) []string {
	found := distinct(r.outcomes, func(o outcome) (string, bool) { return o.Contestant, o.Workload == workload })
	var ordered []string
	for _, name := range []string{direct, pitr, pitrOther, pgbouncer, odyssey} {
		for _, other := range found {
			if other == name {
				ordered = append(ordered, name)
			}
		}
	}
	return ordered
}

func distinct(outcomes []outcome, key func(outcome) (string, bool)) []string {
	seen := map[string]bool{}
	var found []string
	for _, o := range outcomes {
		if name, ok := key(o); ok && !seen[name] {
			seen[name] = true
			found = append(found, name)
		}
	}
	return found
}

// values are a contestant's values of one metric, by round.
func (r *results) values(workload, contestant string, m metric) map[int]float64 {
	values := map[int]float64{}
	for _, o := range r.outcomes {
		if value, ok := o.Values[m]; ok && o.Workload == workload && o.Contestant == contestant {
			values[o.Round] = value
		}
	}
	return values
}

// trouble is what kept a contestant from a number in some round.
func (r *results) trouble(workload, contestant string) string {
	var absent, failed string
	failures := 0
	for _, o := range r.outcomes {
		if o.Workload != workload || o.Contestant != contestant {
			continue
		}
		if o.Absent != "" {
			absent = "absent: " + o.Absent
		}
		if o.Failed != "" {
			failures++
			failed = o.Failed
		}
	}
	if failures > 0 {
		return fmt.Sprintf("FAILED in %d of %d rounds: %s", failures, r.circumstances.Rounds, failed)
	}
	return absent
}

// ratio compares a contestant with PgBouncer.
func (r *results) ratio(workload, contestant string, m metric) spread {
	return summarize(ratios(r.values(workload, contestant, m), r.values(workload, pgbouncer, m)))
}

// observe fills in what is known of the machine and of the checkout.
func observe(root string) circumstances {
	c := circumstances{Kind: "circumstances", Time: time.Now().UTC(), Commit: "unknown", Cores: runtime.NumCPU(), PoolSize: poolSize, Versions: map[string]string{}}
	if out, err := exec.Command("git", "-C", root, "describe", "--always", "--dirty", "--exclude=*").Output(); err == nil {
		c.Commit = strings.TrimSpace(string(out))
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		c.Load = strings.Join(strings.Fields(string(load))[:3], " ")
	}
	var uname syscall.Utsname
	if syscall.Uname(&uname) == nil {
		for _, char := range uname.Release {
			if char == 0 {
				break
			}
			c.Kernel += string(rune(char))
		}
	}
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				c.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	return c
}
