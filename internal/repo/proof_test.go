package repo

import (
	"testing"
	"time"
)

func TestProofsThatEndInOneSecondAreAllKept(t *testing.T) {
	r := newRepo(t, nil)
	at := time.Date(2026, 11, 20, 14, 3, 21, 0, time.UTC)
	for _, ok := range []bool{true, false, true} {
		if err := r.PutProof(t.Context(), Proof{Backup: "20261120T020000Z", Time: at.Add(time.Millisecond), OK: ok}); err != nil {
			t.Fatal(err)
		}
	}
	proofs, err := r.Proofs(t.Context())
	if err != nil || len(proofs) != 2 || !proofs[0].OK || proofs[1].OK || !proofs[1].Time.Equal(at.Add(time.Second)) {
		t.Errorf("of one that is put again, and another that has failed, there are %+v (%v)", proofs, err)
	}
}
