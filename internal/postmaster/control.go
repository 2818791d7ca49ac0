package postmaster

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
)

// ControlTimeline asks pg_controldata for the timeline that a cluster is on: that of its latest checkpoint, or, for one that was stopped in
// recovery, the one that it has come to.
func (i *Install) ControlTimeline(ctx context.Context, dir string) (uint32, error) {
	cmd := i.Command(ctx, "pg_controldata", "-D", dir)
	cmd.Env = append(cmd.Env, "LC_ALL=C")
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("pg_controldata %s: %w", dir, err)
	}
	var timeline uint64
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if name == "Latest checkpoint's TimeLineID" || name == "Min recovery ending loc's timeline" {
			tli, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
			if err != nil {
				return 0, fmt.Errorf("pg_controldata %s: %q is no timeline", dir, lines.Text())
			}
			timeline = max(timeline, tli)
		}
	}
	if timeline == 0 {
		return 0, fmt.Errorf("pg_controldata %s: it names no timeline", dir)
	}
	return uint32(timeline), nil
}
