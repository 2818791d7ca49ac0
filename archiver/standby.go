package archiver

import (
	"context"
	"fmt"
	"time"

	"pitr/archiver/replication"
	"pitr/internal/pg"
)

// standbyInterval is how often the slots on other servers are advanced.
const standbyInterval = 10 * time.Second

// keepOtherSlots keeps a slot of ours on each server that the DSN names and that we do not stream from, and advances it with the archive: a
// standby that is promoted still has all WAL that the archive lacks, and so has the primary when the standby that we stream from is lost.
func (a *Archiver) keepOtherSlots(ctx context.Context) {
	hosts, err := replication.Hosts(a.opt.DSN)
	if err != nil || len(hosts) < 2 {
		return // whoever connects reports the error
	}
	trouble := map[replication.Host]string{} // that was told
	for wait := time.Second; ; {
		if st := a.Stats(); st.Stored > 0 {
			stored := position{st.Timeline, st.Stored}
			wait = standbyInterval
			for _, host := range hosts {
				err := a.keepOtherSlot(ctx, host, stored)
				if ctx.Err() != nil {
					return
				}
				if err == nil {
					delete(trouble, host)
				} else if trouble[host] != err.Error() {
					trouble[host] = err.Error()
					a.opt.Log.Warn("the slot on another server was not kept; to go on with that one could leave a gap", "host", host.Name, "port", host.Port, "error", err)
				}
			}
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

// keepOtherSlot makes the slot where it is missing and advances it to what is stored, or as far as the server has come, which a standby can do too:
// pg_replication_slot_advance in src/backend/replication/slotfuncs.c. A slot that is in use is advanced by its stream. That of a server on another
// timeline stays: below the same position lies other WAL there, which the archive may lack.
func (a *Archiver) keepOtherSlot(ctx context.Context, host replication.Host, stored position) error {
	ctx, cancel := context.WithTimeout(ctx, standbyInterval)
	defer cancel()
	conn, err := replication.Connect(ctx, replication.ConnectOptions{DSN: a.opt.DSN, ApplicationName: a.opt.Slot + " standby", Only: host})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // it held nothing that could be lost
	mine, err := a.follows(ctx, conn, stored.Timeline)
	if err != nil || !mine {
		return err
	}
	rows, err := conn.Query(ctx, fmt.Sprintf("SELECT active FROM pg_catalog.pg_replication_slots WHERE slot_name = '%s'", a.opt.Slot))
	if err != nil || len(rows) == 1 && rows[0][0] == "t" {
		return err // somebody streams from it
	}
	if len(rows) == 0 {
		if _, err := conn.Query(ctx, fmt.Sprintf("SELECT pg_catalog.pg_create_physical_replication_slot('%s', true)", a.opt.Slot)); err != nil {
			return err
		}
		a.opt.Log.Info("made a slot on another server", "host", host.Name, "port", host.Port, "slot", a.opt.Slot)
	}
	if tli, err := a.timelineOf(ctx, host); err != nil || tli != stored.Timeline {
		return err
	}
	_, err = conn.Query(ctx, fmt.Sprintf("SELECT pg_catalog.pg_replication_slot_advance(slot_name, upto) FROM (SELECT slot_name, restart_lsn, "+
		"least('%s'::pg_lsn, CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_flush_lsn() END) AS upto FROM pg_catalog.pg_replication_slots WHERE slot_name = '%s') s WHERE restart_lsn < upto",
		stored.LSN, a.opt.Slot))
	return err
}

// follows reports whether a server is a standby, or the primary of the standby that we stream from. What else is no standby may be an old
// primary, whose WAL nobody has archived: its slot stays as it is.
func (a *Archiver) follows(ctx context.Context, conn *replication.Conn, ours pg.Timeline) (bool, error) {
	rows, err := conn.Query(ctx, "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN '' ELSE substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8) END")
	if err != nil {
		return false, err
	}
	timeline := rows[0][0]
	isStandby := timeline == ""
	return isStandby || a.opt.StreamFrom != replication.AnyRole && a.opt.StreamFrom != replication.Primary && timeline == ours.Hex(), nil
}

// timelineOf is the timeline that a server writes or replays. No function of SQL tells a standby's before its next restartpoint.
func (a *Archiver) timelineOf(ctx context.Context, host replication.Host) (pg.Timeline, error) {
	conn, err := replication.Connect(ctx, replication.ConnectOptions{DSN: a.opt.DSN, ApplicationName: a.opt.Slot + " standby", Only: host, Replication: true})
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close(ctx) }() // it held nothing that could be lost
	system, err := conn.IdentifySystem(ctx)
	return system.Timeline, err
}
