package pg

import (
	"bufio"
	"bytes"
	"fmt"
	"strings"
)

// Timeline is a timeline ID; the first is 1, zero is invalid.
type Timeline uint32

// Hex prints the eight digits that Postgres uses in file names.
func (t Timeline) Hex() string { return fmt.Sprintf("%08X", uint32(t)) }

// ParseTimelineHex reads what Hex prints.
func ParseTimelineHex(text string) (Timeline, error) {
	v, err := parseHex(text, 8)
	if err != nil || len(text) != 8 || v == 0 {
		return 0, fmt.Errorf("parse timeline %q: not eight hexadecimal digits", text)
	}
	return Timeline(v), nil
}

// HistoryName is the name of the timeline's history file: TLHistoryFileName.
func (t Timeline) HistoryName() string { return t.Hex() + ".history" }

// ParseHistoryName reads what HistoryName prints.
func ParseHistoryName(name string) (Timeline, error) {
	digits, found := strings.CutSuffix(name, ".history")
	if !found {
		return 0, fmt.Errorf("parse history file name %q: no .history at its end", name)
	}
	return ParseTimelineHex(digits)
}

// Ancestor is a timeline that another one descends from, and the position at which it was left.
type Ancestor struct {
	Timeline Timeline
	Switch   LSN // the first position that is not the ancestor's any more
}

// History is the descent of one timeline, oldest ancestor first; the timeline itself is not listed. Timeline 1 has none.
type History []Ancestor

// ParseHistory reads a timeline history file as readTimeLineHistory in src/backend/access/transam/timeline.c does: one line for
// each ancestor (id, switch point, reason), blank lines and # comments passed over, ids increasing.
func ParseHistory(of Timeline, content []byte) (History, error) {
	var history History
	lines := bufio.NewScanner(bytes.NewReader(content))
	lines.Buffer(nil, 1<<20)
	for number := 1; lines.Scan(); number++ {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		entry, err := parseAncestor(fields)
		if err != nil {
			return nil, fmt.Errorf("parse %s line %d: %w", of.HistoryName(), number, err)
		}
		if len(history) > 0 && entry.Timeline <= history[len(history)-1].Timeline || entry.Timeline >= of {
			return nil, fmt.Errorf("parse %s line %d: timeline ids must increase and stay below %d", of.HistoryName(), number, of)
		}
		history = append(history, entry)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("parse %s: %w", of.HistoryName(), err)
	}
	return history, nil
}

func parseAncestor(fields []string) (Ancestor, error) {
	var id uint32
	if len(fields) < 2 {
		return Ancestor{}, fmt.Errorf("expected a timeline id and a switch point")
	}
	if _, err := fmt.Sscanf(fields[0], "%d", &id); err != nil || id == 0 {
		return Ancestor{}, fmt.Errorf("%q is no timeline id", fields[0])
	}
	at, err := ParseLSN(fields[1])
	return Ancestor{Timeline: Timeline(id), Switch: at}, err
}

// TimelineAt is the timeline that owns the byte at lsn on the way to timeline tip.
func (h History) TimelineAt(tip Timeline, lsn LSN) Timeline {
	for _, ancestor := range h {
		if lsn < ancestor.Switch {
			return ancestor.Timeline
		}
	}
	return tip
}

// SegmentAt is the WAL file that a server which recovers to tip reads for lsn. A segment in which the timeline changes is read
// from its newest timeline, whose file begins with a copy of its ancestor's bytes (XLogFileReadAnyTLI in
// src/backend/access/transam/xlogrecovery.c).
func (h History) SegmentAt(tip Timeline, lsn LSN, size SegmentSize) Segment {
	last := size.Start(lsn) + LSN(size) - 1
	return size.Segment(h.TimelineAt(tip, last), lsn)
}

// Begin is the switch point at which timeline tli starts on the way to tip; zero for the oldest.
func (h History) Begin(tip, tli Timeline) LSN {
	var begin LSN
	for _, ancestor := range h {
		if ancestor.Timeline == tli {
			return begin
		}
		begin = ancestor.Switch
	}
	if tli != tip {
		return 0
	}
	return begin
}
