package restore

import (
	"testing"
	"time"

	"pitr/internal/repo"
)

func TestRatesAreThoseOfTheNewestTestRestoreThatWasLargeEnough(t *testing.T) {
	at := func(day int) time.Time { return time.Date(2026, 11, day, 0, 0, 0, 0, time.UTC) }
	proof := func(day int, ok bool, bytes int64, seconds float64) repo.Proof {
		return repo.Proof{Time: at(day), OK: ok, FetchBytes: bytes, FetchSeconds: seconds, WALBytes: bytes, RecoverySeconds: 2 * seconds}
	}
	proofs := []repo.Proof{proof(1, true, 1<<30, 10), proof(2, true, 1<<30, 8), proof(3, false, 1<<30, 4), proof(4, true, 1<<20, 1)}
	if r := ratesOf(proofs); r != (Rates{Fetch: 1 << 27, Replay: 1 << 26, Measured: at(2)}) {
		t.Errorf("%+v", r)
	}
	if r := ratesOf(proofs[3:]); r != (Rates{}) {
		t.Errorf("of a small one: %+v", r)
	}
}

func TestAPlanTakesTheRatesThatATestRestoreHasShown(t *testing.T) {
	w := theWorld(t)
	_, r, _ := w.copyOf(t)
	backups, err := r.Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	shown := repo.Proof{Backup: backups[0].ID, Time: time.Now().Add(-time.Hour), OK: true, FetchBytes: 1 << 30, FetchSeconds: 1, WALBytes: 1 << 30, RecoverySeconds: 8}
	if err := r.PutProof(t.Context(), shown); err != nil {
		t.Fatal(err)
	}
	plan, err := planOf(t, r, "latest", 0)
	if err != nil {
		t.Fatal(err)
	}
	if e := plan.Expected; e.Measured == nil || e.FetchRate != 1<<30 || e.ReplayRate != 1<<27 {
		t.Errorf("%+v", e)
	}
}
