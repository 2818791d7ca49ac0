package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	sampleInterval = 20 * time.Millisecond

	// clockTick is 1/USER_HZ, the unit of utime and stime in /proc/PID/stat; it is 100 on every Linux that Go runs on. The
	// kernel scales both to the precise run time, so their sum is good to one tick.
	clockTick = 10 * time.Millisecond
)

// sample is what a process and its children had used at an instant.
type sample struct {
	at  time.Time
	cpu time.Duration // of all threads since they began
	rss int64         // bytes
}

// usage is a pooler's samples over the time of a run.
type usage []sample

// watch samples the processes until stop is called, which returns the samples. Without processes there is nothing to see.
func watch(pids []int) (stop func() usage) {
	if len(pids) == 0 {
		return func() usage { return nil }
	}
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan usage)
	go func() {
		var seen usage
		take := func() {
			if s, err := sampleOf(pids); err == nil {
				seen = append(seen, s)
			}
		}
		ticker := time.NewTicker(sampleInterval)
		defer ticker.Stop()
		for take(); ctx.Err() == nil; take() {
			select {
			case <-ctx.Done():
			case <-ticker.C:
			}
		}
		result <- seen
	}()
	return func() usage {
		cancel()
		return <-result
	}
}

// cpuBetween is the CPU time that was used between two instants; between samples it is interpolated.
func (u usage) cpuBetween(from, to time.Time) (time.Duration, error) {
	if len(u) < 2 || from.Before(u[0].at) || !to.After(from) {
		return 0, fmt.Errorf("CPU time: %d samples do not cover the run", len(u))
	}
	return u.cpuAt(to) - u.cpuAt(from), nil
}

func (u usage) cpuAt(at time.Time) time.Duration {
	for i := 1; i < len(u); i++ {
		a, b := u[i-1], u[i]
		if b.at.Before(at) {
			continue
		}
		share := float64(at.Sub(a.at)) / float64(b.at.Sub(a.at))
		return a.cpu + time.Duration(share*float64(b.cpu-a.cpu))
	}
	return u[len(u)-1].cpu
}

// rssPeak is the largest resident set that was seen.
func (u usage) rssPeak() int64 {
	var peak int64
	for _, s := range u {
		peak = max(peak, s.rss)
	}
	return peak
}

func sampleOf(pids []int) (sample, error) {
	s := sample{at: time.Now()}
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return sample{}, err
		}
		cpu, rss, err := parseStat(stat)
		if err != nil {
			return sample{}, err
		}
		s.cpu += cpu
		s.rss += rss
	}
	return s, nil
}

// parseStat reads utime, stime (fields 14 and 15) and rss (field 24, pages) of proc_pid_stat(5). The second field is the
// program's name in parentheses and may hold anything, so counting begins behind the last of them.
func parseStat(stat []byte) (cpu time.Duration, rss int64, err error) {
	end := bytes.LastIndexByte(stat, ')')
	fields := strings.Fields(string(stat[end+1:]))
	if end < 0 || len(fields) < 22 {
		return 0, 0, fmt.Errorf("parse /proc/PID/stat: %q", stat)
	}
	var numbers [3]int64
	for i, field := range []int{14, 15, 24} {
		if numbers[i], err = strconv.ParseInt(fields[field-3], 10, 64); err != nil {
			return 0, 0, fmt.Errorf("parse /proc/PID/stat: %w", err)
		}
	}
	return time.Duration(numbers[0]+numbers[1]) * clockTick, numbers[2] * int64(os.Getpagesize()), nil
}

// tree is a process and all its descendants.
func tree(pid int) []int {
	pids := []int{pid}
	for i := 0; i < len(pids); i++ {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pids[i]))
		if err != nil {
			continue // it has ended
		}
		for _, task := range tasks {
			children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pids[i], task.Name()))
			if err != nil {
				continue
			}
			for _, child := range strings.Fields(string(children)) {
				if number, err := strconv.Atoi(child); err == nil {
					pids = append(pids, number)
				}
			}
		}
	}
	return pids
}

// memory is what a process tree holds, in bytes.
type memory struct{ rss, pss int64 }

func memoryOf(pids []int) (memory, error) {
	var sum memory
	for _, pid := range pids {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return memory{}, err
		}
		rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return memory{}, err
		}
		rss, err := kilobytes(status, "VmRSS:")
		if err != nil {
			return memory{}, err
		}
		pss, err := kilobytes(rollup, "Pss:")
		if err != nil {
			return memory{}, err
		}
		sum.rss += rss
		sum.pss += pss
	}
	return sum, nil
}

// kilobytes finds a line such as "VmRSS:   1234 kB" and returns it in bytes.
func kilobytes(text []byte, key string) (int64, error) {
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("no line %s", key)
}
