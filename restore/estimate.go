package restore

import (
	"slices"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// Rates say how fast a restore goes, in bytes per second.
type Rates struct {
	Fetch    int64     // stored bytes of a backup
	Replay   int64     // WAL
	Measured time.Time // when a restore has shown it; zero: never, these are assumptions
}

// Rates that are assumed until a restore was measured. Replay is one process on one core, which manages 50 to 150 MB/s; a fetch is limited by
// the store, the network or the disk, and by two cores that decompress.
const (
	assumedFetchRate  = 100 << 20
	assumedReplayRate = 64 << 20
)

// measuredMin is how much a test restore must have fetched, and how much WAL replayed, to tell rates: of less, what takes its time whatever the size is most.
const measuredMin = 64 << 20

// ratesOf are those of the newest test restore that was large enough; zero when there is none.
func ratesOf(proofs []repo.Proof) Rates {
	for _, p := range slices.Backward(proofs) {
		if p.OK && p.FetchBytes >= measuredMin && p.WALBytes >= measuredMin && p.FetchSeconds > 0 && p.RecoverySeconds > 0 {
			return Rates{Fetch: int64(float64(p.FetchBytes) / p.FetchSeconds), Replay: int64(float64(p.WALBytes) / p.RecoverySeconds), Measured: p.Time}
		}
	}
	return Rates{}
}

// Estimate is how long a restore is expected to take.
type Estimate struct {
	Fetch      time.Duration `json:"fetch_ns"`
	Replay     time.Duration `json:"replay_ns"`
	FetchRate  int64         `json:"fetch_bytes_per_second"`
	ReplayRate int64         `json:"replay_bytes_per_second"`
	Measured   *time.Time    `json:"measured,omitempty"` // absent: not measured yet, the rates are assumptions
}

// Total is the whole of it.
func (e Estimate) Total() time.Duration { return e.Fetch + e.Replay }

func (r Rates) estimate(b repo.Backup, lsn pg.LSN) Estimate {
	e := Estimate{FetchRate: assumedFetchRate, ReplayRate: assumedReplayRate}
	if r.Fetch > 0 && r.Replay > 0 {
		e.FetchRate, e.ReplayRate = r.Fetch, r.Replay
		if !r.Measured.IsZero() {
			e.Measured = &r.Measured
		}
	}
	e.Fetch = atRate(b.StoredBytes, e.FetchRate)
	e.Replay = atRate(int64(lsn-min(lsn, b.Start)), e.ReplayRate)
	return e
}

func atRate(bytes, rate int64) time.Duration {
	return time.Duration(float64(bytes) / float64(rate) * float64(time.Second))
}

// quickest is the backup from which a position is expected to be reached soonest, among those that are consistent there and from which the WAL
// is as whole as from the one that is given.
func (p *planner) quickest(given repo.Backup, lsn pg.LSN) repo.Backup {
	best := given
	for _, b := range p.backups {
		if b.Stop > lsn || b.Start > given.Start || p.frontier(b) != p.frontier(given) {
			continue
		}
		if p.opt.Rates.estimate(b, lsn).Total() < p.opt.Rates.estimate(best, lsn).Total() {
			best = b
		}
	}
	return best
}
