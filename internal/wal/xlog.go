package wal

import (
	"bytes"
	"time"

	"pitr/internal/pg"
)

// Records of the XLOG resource manager: src/include/catalog/pg_control.h.
const (
	xlogSwitch              = 0x40
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
