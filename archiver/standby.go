package archiver

import (
	"context"
	"fmt"
	"time"

	"pitr/archiver/replication"
	"pitr/internal/pg"
)

// standbyInterval is how often the slots on standbys are advanced.
const standbyInterval = 10 * time.Second

// keepStandbySlots keeps a slot of ours on each standby that the DSN names, and advances it with the archive: a standby that is promoted
// still has all WAL that the archive lacks.
func (a *Archiver) keepStandbySlots(ctx context.Context) {
	hosts, err := replication.Hosts(a.opt.DSN)
	if err != nil || len(hosts) < 2 {
		return // whoever connects reports the error
	}
	trouble := map[replication.Host]string{} // that was told
	ticker := time.NewTicker(standbyInterval)
	defer ticker.Stop()
	for {
		if stored := a.Stats().Stored; stored > 0 {
			for _, host := range hosts {
				err := a.keepStandbySlot(ctx, host, stored)
				if ctx.Err() != nil {
					return
				}
				if err == nil {
					delete(trouble, host)
				} else if trouble[host] != err.Error() {
					trouble[host] = err.Error()
					a.opt.Log.Warn("the slot on a standby was not kept; its promotion could leave a gap", "host", host.Name, "port", host.Port, "error", err)
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// keepStandbySlot makes the slot where it is missing and advances it to what is stored, or as far as the standby has come. A slot can be
// advanced on a standby as pg_replication_slot_advance in src/backend/replication/slotfuncs.c says. A primary's slot is advanced by its stream.
func (a *Archiver) keepStandbySlot(ctx context.Context, host replication.Host, stored pg.LSN) error {
	ctx, cancel := context.WithTimeout(ctx, standbyInterval)
	defer cancel()
	conn, err := replication.Connect(ctx, replication.ConnectOptions{DSN: a.opt.DSN, ApplicationName: a.opt.Slot + " standby", Only: host})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // it held nothing that could be lost
	rows, err := conn.Query(ctx, "SELECT pg_catalog.pg_is_in_recovery()")
	if err != nil || rows[0][0] != "t" {
		return err
	}
	rows, err = conn.Query(ctx, fmt.Sprintf("SELECT active FROM pg_catalog.pg_replication_slots WHERE slot_name = '%s'", a.opt.Slot))
	if err != nil || len(rows) == 1 && rows[0][0] == "t" {
		return err // somebody streams from it
	}
	if len(rows) == 0 {
		if _, err := conn.Query(ctx, fmt.Sprintf("SELECT pg_catalog.pg_create_physical_replication_slot('%s', true)", a.opt.Slot)); err != nil {
			return err
		}
		a.opt.Log.Info("made a slot on a standby", "host", host.Name, "port", host.Port, "slot", a.opt.Slot)
	}
	_, err = conn.Query(ctx, fmt.Sprintf("SELECT pg_catalog.pg_replication_slot_advance(slot_name, upto) FROM (SELECT slot_name, restart_lsn, "+
		"least('%s'::pg_lsn, pg_catalog.pg_last_wal_replay_lsn()) AS upto FROM pg_catalog.pg_replication_slots WHERE slot_name = '%s') s WHERE restart_lsn < upto",
		stored, a.opt.Slot))
	return err
}
