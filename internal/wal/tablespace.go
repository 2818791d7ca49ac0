package wal

import "bytes"

// tablespaceCreate is XLOG_TBLSPC_CREATE of src/include/commands/tablespace.h.
const tablespaceCreate = 0x00

// Tablespace is one that CREATE TABLESPACE has made. Recovery makes it at the same place again.
type Tablespace struct {
	OID  uint32
	Path string // empty: below the data directory
}

// TablespaceMade reads the record of a CREATE TABLESPACE (xl_tblspc_create_rec of src/include/commands/tablespace.h); ok is false for any other. The
// record must have been decoded.
func (r *Record) TablespaceMade() (t Tablespace, ok bool, err error) {
	if r.Rmgr != RmgrTablespace || r.Info&infoMask != tablespaceCreate {
		return Tablespace{}, false, nil
	}
	d := recordReader{rest: r.Main}
	t.OID = d.u32()
	path, _, ended := bytes.Cut(d.rest, []byte{0})
	if d.short || !ended {
		return Tablespace{}, false, &CorruptError{r.Start, errShortRecord}
	}
	t.Path = string(path)
	return t, true, nil
}
