package restore

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"pitr/internal/postmaster"
)

// What a recovery gets that a server without a configuration would not have: replay is one process that should neither write a page out to read it again, nor wait for
// restartpoints. They last until the server is restarted.
const (
	recoveryBuffersMax = 1 << 30 // shared_buffers at most, and at most an eighth of the memory that is free
	recoveryWALMax     = 4 << 30 // max_wal_size, where so many times as much is free on the disk
	recoveryWALSpare   = 4

	recoverySyncfsSince = 14 // recovery_init_sync_method came with it
)

// recoverySettings raises settings of a directory that is about to recover; what its own configuration has higher stays.
func recoverySettings(ctx context.Context, install *postmaster.Install, dir string) []string {
	var settings []string
	raise := func(name string, unit, to int64) {
		have, err := configured(ctx, install, dir, name)
		if err == nil && to > have*unit {
			settings = append(settings, fmt.Sprintf("%s=%dMB", name, to>>20))
		}
	}
	if free, err := memoryFree(); err == nil {
		raise("shared_buffers", 8<<10, min(free/8, recoveryBuffersMax)) // in blocks
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err == nil && int64(st.Bavail)*st.Bsize > recoveryWALSpare*recoveryWALMax {
		raise("max_wal_size", 1<<20, recoveryWALMax)
	}
	if install.Major >= recoverySyncfsSince && syncfsTells() {
		settings = append(settings, "recovery_init_sync_method=syncfs") // instead of opening and syncing each file, all of which CarryOut has synced
	}
	return settings
}

// syncfsTells reports whether syncfs says that something could not be written: since Linux 5.8 (recovery_init_sync_method in the PostgreSQL manual). The setting
// stays in force until the server is restarted, for a crash meanwhile, too.
func syncfsTells() bool {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	var major, minor int
	if _, scanErr := fmt.Sscanf(string(release), "%d.%d", &major, &minor); err != nil || scanErr != nil {
		return false
	}
	return major > 5 || major == 5 && minor >= 8
}

// configured is the value of a setting in its own unit, as the configuration of a directory has it. Whatever is wrong with that, the start of the server tells better.
func configured(ctx context.Context, install *postmaster.Install, dir, name string) (int64, error) {
	out, err := install.Command(ctx, "postgres", "-C", name, "-D", dir).Output()
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
}

// containerLimit is what the control group may use (memory.max of version 2); without a limit more than any machine has.
func containerLimit() int64 {
	text, err := os.ReadFile("/sys/fs/cgroup/memory.max")
	limit, parseErr := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64) // "max" is no number
	if err != nil || parseErr != nil {
		return 1 << 60
	}
	return limit
}

// memoryFree is MemAvailable of proc_meminfo(5), or what the container may use if that is less.
func memoryFree() (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		if rest, found := bytes.CutPrefix(line, []byte("MemAvailable:")); found {
			kilobytes, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(string(rest)), " kB"), 10, 64)
			return min(kilobytes<<10, containerLimit()), err
		}
	}
	return 0, fmt.Errorf("/proc/meminfo has no MemAvailable")
}
