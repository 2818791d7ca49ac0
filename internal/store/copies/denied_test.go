package copies

import (
	"errors"
	"testing"

	"pitr/internal/store"
)

func TestAMemberThatRefusesDeletesIsNotBehind(t *testing.T) {
	for _, answer := range []error{store.ErrDenied, store.ErrLocked} {
		w := newWorld(t, 2, 1)
		w.mustPut("c/anchor", "us")
		w.mustPut("c/wal/1", "x")
		w.landed()
		w.fill()
		w.stores[1].refuse(answer)
		if err := w.Delete(t.Context(), "c/wal/1"); err != nil {
			t.Errorf("one has removed it, and the delete said %v", err)
		}
		w.landed()
		for i, st := range w.Stats() {
			if st.Behind || st.Missing != 0 || st.Cause != "" {
				t.Errorf("member %d: %+v", i, st)
			}
		}
		w.stores[0].refuse(answer)
		if err := w.Delete(t.Context(), "c/wal/1"); !errors.Is(err, answer) {
			t.Errorf("nobody removes it, and the delete said %v", err)
		}
		w.stores[0].fail(errDown)
		if err := w.Delete(t.Context(), "c/wal/1"); errors.Is(err, answer) || !errors.Is(err, errDown) {
			t.Errorf("one refuses, one is away, and the delete said %v", err)
		}
		w.landed()
	}
}
