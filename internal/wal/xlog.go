package wal

import (
	"bytes"
	"time"

	"pitr/internal/pg"
)

// Records of the XLOG resource manager: src/include/catalog/pg_control.h.
const (
	xlogSwitch              = 0x40
	xlogParameterChange     = 0x60
	xlogRestorePoint        = 0x70
	xlogOverwriteContrecord = 0xD0

	// restorePointNameSize is MAXFNAMELEN of src/include/access/xlog_internal.h.
	restorePointNameSize = 64
)

// RestorePoint is what pg_create_restore_point has written.
type RestorePoint struct {
	Name string
	Time time.Time
}

// RestorePoint reads a restore point record; ok is false for any other. The record must have been decoded.
func (r *Record) RestorePoint() (point RestorePoint, ok bool, err error) {
	if r.Rmgr != RmgrXLOG || r.Info&infoMask != xlogRestorePoint {
		return RestorePoint{}, false, nil
	}
	d := recordReader{rest: r.Main}
	point.Time = pg.Time(d.i64())
	name, _, _ := bytes.Cut(d.bytes(restorePointNameSize), []byte{0})
	if d.short {
		return RestorePoint{}, false, &CorruptError{r.Start, errShortRecord}
	}
	point.Name = string(name)
	return point, true, nil
}

// Parameters is what the server says of settings that a standby and a restore depend on (xl_parameter_change of
// src/include/access/xlog_internal.h).
type Parameters struct {
	MaxConnections          int    `json:"max_connections"`
	MaxWorkerProcesses      int    `json:"max_worker_processes"`
	MaxWALSenders           int    `json:"max_wal_senders"`
	MaxPreparedTransactions int    `json:"max_prepared_transactions"`
	MaxLocksPerTransaction  int    `json:"max_locks_per_transaction"`
	WALLevel                string `json:"wal_level"`
	WALLogHints             bool   `json:"wal_log_hints"`
	TrackCommitTimestamp    bool   `json:"track_commit_timestamp"`
}

// Parameters reads a parameter change record; ok is false for any other. The record must have been decoded.
func (r *Record) Parameters() (p Parameters, ok bool, err error) {
	if r.Rmgr != RmgrXLOG || r.Info&infoMask != xlogParameterChange {
		return Parameters{}, false, nil
	}
	d := recordReader{rest: r.Main}
	p = Parameters{MaxConnections: int(d.u32()), MaxWorkerProcesses: int(d.u32()), MaxWALSenders: int(d.u32()),
		MaxPreparedTransactions: int(d.u32()), MaxLocksPerTransaction: int(d.u32())}
	// WalLevel of src/include/access/xlog.h.
	levels := [...]string{"minimal", "replica", "logical"}
	if level := d.u32(); int(level) < len(levels) {
		p.WALLevel = levels[level]
	}
	p.WALLogHints, p.TrackCommitTimestamp = d.u8() != 0, d.u8() != 0
	if d.short {
		return Parameters{}, false, &CorruptError{r.Start, errShortRecord}
	}
	return p, true, nil
}
