package wal

import "fmt"

// Rmgr is a resource manager: src/include/access/rmgrlist.h.
type Rmgr uint8

// The resource managers that this package reads itself.
const (
	RmgrXLOG       Rmgr = 0
	RmgrXact       Rmgr = 1
	RmgrStorage    Rmgr = 2
	RmgrDatabase   Rmgr = 4
	RmgrTablespace Rmgr = 5
	RmgrStandby    Rmgr = 8
	RmgrHeap2      Rmgr = 9
	RmgrHeap       Rmgr = 10
)

// rmgrCustomMin is RM_MIN_CUSTOM_ID of src/include/access/rmgr.h: extensions register theirs from here on.
const rmgrCustomMin = 128

var rmgrNames = [...]string{"XLOG", "Transaction", "Storage", "CLOG", "Database", "Tablespace", "MultiXact", "RelMap", "Standby",
	"Heap2", "Heap", "Btree", "Hash", "Gin", "Gist", "Sequence", "SPGist", "BRIN", "CommitTs", "ReplicationOrigin", "Generic",
	"LogicalMessage"}

// String is the name that pg_waldump prints.
func (r Rmgr) String() string {
	if int(r) < len(rmgrNames) {
		return rmgrNames[r]
	}
	if r >= rmgrCustomMin {
		return fmt.Sprintf("custom%03d", uint8(r))
	}
	return fmt.Sprintf("unknown%03d", uint8(r))
}
