package pg

import "time"

// Epoch is the zero of Postgres's clock, 2000-01-01 UTC: POSTGRES_EPOCH_JDATE in src/include/datatype/timestamp.h.
var Epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// epochUnixMicros is Epoch in microseconds since 1970.
const epochUnixMicros = 946_684_800_000_000

// Time converts a TimestampTz, microseconds since Epoch, to UTC.
func Time(micros int64) time.Time { return time.UnixMicro(micros + epochUnixMicros).UTC() }

// Micros is the TimestampTz of t; what lies under a microsecond is cut off.
func Micros(t time.Time) int64 { return t.UnixMicro() - epochUnixMicros }
