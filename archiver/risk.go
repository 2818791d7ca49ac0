package archiver

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"pitr/internal/pg"
)

// Slot is what pg_replication_slots says of ours, and what follows from it.
type Slot struct {
	Status   string // wal_status: reserved, extended, unreserved or lost; empty: nothing is known
	Retained int64  // bytes of WAL that the server keeps for us
	Safe     int64  // bytes that it may still write before it gives ours up; negative: it never does, whatever becomes of its disk
	Rate     float64
	Risk     Risk
}

// Left is how long it takes at the present rate until the server gives WAL up that we do not have. ok is false when it never does, or
// writes nothing.
func (s Slot) Left() (left time.Duration, ok bool) {
	if s.Safe < 0 || s.Rate <= 0 {
		return 0, false
	}
	return time.Duration(min(float64(s.Safe)/s.Rate, float64(leftMax/time.Second)) * float64(time.Second)), true
}

const leftMax = 100 * 365 * 24 * time.Hour

// Risk is how near the loss of WAL is.
type Risk int

// The levels of risk.
const (
	RiskNone     Risk = iota
	RiskWarning       // less than an hour at the present rate, or past max_wal_size in WAL kept for us
	RiskCritical      // less than ten minutes, or the next checkpoint may do it
	RiskLost          // WAL that was not archived is gone
)

func (r Risk) String() string { return [...]string{"none", "warning", "critical", "lost"}[r] }

const (
	warningLeft  = time.Hour
	criticalLeft = 10 * time.Minute
	// backlogMin is how much has to wait for us before anything is said: a busy server is always some segments ahead.
	backlogMin = 256 << 20
)

// assess says how near the loss of WAL is. wal_status is explained in "pg_replication_slots" of PostgreSQL's manual.
func (s Slot) assess() Risk {
	left, counts := s.Left()
	switch {
	case s.Status == "lost":
		return RiskLost
	case s.Status == "unreserved":
		return RiskCritical
	case s.Retained < backlogMin && s.Status == "reserved":
		return RiskNone // what counts down is WAL that we have
	case counts && left < criticalLeft:
		return RiskCritical
	case counts && left < warningLeft, s.Status == "extended":
		return RiskWarning
	}
	return RiskNone
}

// rateSmoothing is the weight of the newest reading in the rate of WAL.
const rateSmoothing = 0.2

// pace measures how fast the server writes WAL.
type pace struct {
	at   pg.LSN
	when time.Time
	rate float64 // bytes per second
}

func (p *pace) note(at pg.LSN, when time.Time) float64 {
	if took := when.Sub(p.when).Seconds(); !p.when.IsZero() && took > 0 && at >= p.at {
		now := float64(at-p.at) / took
		if p.rate == 0 {
			p.rate = now
		}
		p.rate += rateSmoothing * (now - p.rate)
	}
	p.at, p.when = at, when
	return p.rate
}

// slotQuery asks for a line of parseSlot.
func slotQuery(slot string) string {
	return "SELECT coalesce(wal_status, ''), coalesce(pg_catalog.pg_wal_lsn_diff(" + flushedLSN + ", restart_lsn), 0), coalesce(safe_wal_size, -1)" +
		" FROM pg_catalog.pg_replication_slots WHERE slot_name = '" + slot + "'"
}

func parseSlot(rows [][]string) (Slot, error) {
	if len(rows) != 1 || len(rows[0]) != 3 {
		return Slot{}, fmt.Errorf("pg_replication_slots has %d rows for our slot", len(rows))
	}
	retained, err := strconv.ParseInt(rows[0][1], 10, 64)
	if err != nil {
		return Slot{}, err
	}
	safe, err := strconv.ParseInt(rows[0][2], 10, 64)
	return Slot{Status: rows[0][0], Retained: retained, Safe: safe}, err
}

// commitQuery asks how commits wait: for us at all, and whether any setting makes them wait until their WAL is applied.
func commitQuery(slot string) string {
	return "SELECT coalesce(max(sync_state) FILTER (WHERE application_name = '" + slot + "'), ''), count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')), " +
		"pg_catalog.current_setting('synchronous_standby_names'), " +
		"pg_catalog.current_setting('synchronous_commit') = 'remote_apply' OR EXISTS (SELECT FROM pg_catalog.pg_db_role_setting WHERE 'synchronous_commit=remote_apply' = ANY (setconfig)) " +
		"FROM pg_catalog.pg_stat_replication"
}

// commitWait says how commits wait.
type commitWait struct {
	ForUs bool // commits wait until we have their WAL
	Stuck bool // some commits wait until we have applied it, which never happens
}

func parseCommitWait(rows [][]string) (commitWait, error) {
	if len(rows) != 1 || len(rows[0]) != 4 {
		return commitWait{}, fmt.Errorf("pg_stat_replication gave %d rows", len(rows))
	}
	state, names, apply := rows[0][0], rows[0][2], rows[0][3] == "t"
	candidates, err := strconv.Atoi(rows[0][1])
	if err != nil {
		return commitWait{}, err
	}
	w := commitWait{ForUs: state == "sync" || state == "quorum"}
	// With a quorum of n any n of the candidates suffice, and n of the others apply.
	w.Stuck = apply && (state == "sync" || state == "quorum" && candidates-1 < quorumOf(names))
	return w, nil
}

// quorumOf reads n of "ANY n (…)" in synchronous_standby_names.
func quorumOf(names string) int {
	fields := strings.Fields(strings.ReplaceAll(names, "(", " ( "))
	if len(fields) > 1 && strings.EqualFold(fields[0], "any") {
		if n, err := strconv.Atoi(fields[1]); err == nil {
			return n
		}
	}
	return 1
}
