package restore

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"pitr/internal/pg"
)

// Replaying is how far the recovery in a directory is, to the segment: the startup process says in its title which one it replays
// ("startup recovering 0000…", StartupProcessMain and XLogFileRead of src/backend/access/transam). It is false where titles cannot be read.
func Replaying(dir string, plan *Plan) (pg.LSN, bool) {
	pid := postmasterPID(dir)
	if pid == 0 {
		return 0, false
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, false
	}
	for _, child := range strings.Fields(string(children)) {
		title, err := os.ReadFile(filepath.Join("/proc", child, "cmdline"))
		if err != nil {
			continue
		}
		_, name, found := strings.Cut(string(title), "startup recovering ")
		if !found {
			continue
		}
		segment, err := pg.ParseSegmentName(strings.TrimRight(name, "\x00 "), plan.Backup.SegmentSize)
		if err == nil {
			return segment.Start(plan.Backup.SegmentSize), true
		}
	}
	return 0, false
}
