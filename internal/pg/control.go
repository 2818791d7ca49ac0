package pg

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// Control is what this program reads of a cluster's global/pg_control: ControlFileData of src/include/catalog/pg_control.h, whose first fields are the
// same from version 13 to 18.
type Control struct {
	SystemID SystemID
	State    uint32   // DBState: ControlInProduction, ControlInRecovery and others
	Catalog  uint32   // catalog_version_no: part of the names of directories in tablespaces
	Redo     LSN      // checkPointCopy.redo: where recovery would begin
	Timeline Timeline // checkPointCopy.ThisTimeLineID
}

// ControlFileSize is PG_CONTROL_FILE_SIZE of src/include/catalog/pg_control.h.
const ControlFileSize = 8192

// controlSafeSize is PG_CONTROL_MAX_SAFE_SIZE of src/include/catalog/pg_control.h: the struct lies in so many bytes.
const controlSafeSize = 512

// DBState of src/include/catalog/pg_control.h.
const (
	ControlInRecovery   = 5 // DB_IN_ARCHIVE_RECOVERY
	ControlInProduction = 6 // DB_IN_PRODUCTION
)

// Offsets in ControlFileData.
const (
	controlStateAt    = 16
	controlCatalogAt  = 12
	controlRedoAt     = 40
	controlTimelineAt = 48
)

// ErrControl says that the bytes are no control file: it may have been read while it was written.
var ErrControl = errors.New("pg_control has no valid checksum")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ParseControl reads a control file. Its last field is the CRC-32C of all before it; how many these are differs from version to version, so that every
// place where it can be is tried.
func ParseControl(content []byte) (Control, error) {
	if len(content) != ControlFileSize {
		return Control{}, ErrControl
	}
	word := binary.LittleEndian.Uint32
	at := controlTimelineAt + 4
	sum := crc32.Checksum(content[:at], castagnoli)
	for ; word(content[at:]) != sum; at += 4 {
		if at+8 > controlSafeSize {
			return Control{}, ErrControl
		}
		sum = crc32.Update(sum, castagnoli, content[at:at+4])
	}
	long := binary.LittleEndian.Uint64
	return Control{SystemID: SystemID(long(content)), State: word(content[controlStateAt:]), Catalog: word(content[controlCatalogAt:]), Redo: LSN(long(content[controlRedoAt:])),
		Timeline: Timeline(word(content[controlTimelineAt:]))}, nil
}
