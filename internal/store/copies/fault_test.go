package copies

import (
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"pitr/internal/store"
)

var errDown = errors.New("connection refused")

func TestAMemberThatFailsIsFilledWhenItIsBack(t *testing.T) {
	w := newWorld(t, 2, 1)
	w.mustPut("c/anchor", "us")
	w.fill()
	w.stores[1].fail(errDown)
	for _, key := range []string{"c/wal/1", "c/wal/2", "c/packs/1", "c/shown/1"} {
		w.mustPut(key, "content of "+key)
	}
	w.landed()
	st := w.Stats()
	if !st[1].Behind || st[1].Missing != 4 || st[1].Frontier != 10 || st[1].Oldest.IsZero() || st[0].Behind || st[0].Frontier != 30 {
		t.Errorf("while it is away: %+v", st)
	}
	if err := w.Fill(t.Context(), nil); !errors.Is(err, errDown) {
		t.Errorf("filling a store that is away: %v", err)
	}
	w.stores[1].fail(nil)
	w.fill()
	w.equal()
	if st := w.Stats()[1]; st.Behind || st.Missing != 0 || st.Frontier != 30 {
		t.Errorf("when it is back: %+v", st)
	}
	for _, message := range []string{"a store has fallen behind", "a store has caught up"} {
		if n := strings.Count(w.log.String(), message); n != 1 {
			t.Errorf("%d times %q:\n%s", n, message, w.log)
		}
	}
}

func TestAPutReturnsOnlyWhenTheQuorumHoldsTheObject(t *testing.T) {
	w := newWorld(t, 2, 2)
	w.mustPut("c/anchor", "us")
	release := w.stores[1].stall()
	done := make(chan error, 1)
	go func() { done <- w.put("c/wal/1", "x") }()
	select {
	case err := <-done:
		t.Fatalf("one of two holds it, and the put returned %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	w.equal()
	w.stores[1].fail(errDown)
	if err := w.put("c/wal/2", "x"); !errors.Is(err, ErrQuorum) || !strings.Contains(err.Error(), "store1") {
		t.Errorf("a put that one of two takes: %v", err)
	}
	if err := w.Ready(); err == nil || !strings.Contains(err.Error(), "store1") {
		t.Errorf("ready: %v", err)
	}
	w.stores[1].fail(nil)
	// It is asked again, since nothing can be put without it.
	if err := w.put("c/wal/2", "x"); !errors.Is(err, store.ErrExist) {
		t.Errorf("the same put again: %v", err)
	}
	w.equal()
}

func TestAMemberThatStallsHoldsNobodyUpAndNoMoreMemoryThanItMay(t *testing.T) {
	w := newWorld(t, 2, 1)
	w.mustPut("c/anchor", "us")
	w.fill()
	release := w.stores[1].stall()
	for _, key := range []string{"c/wal/1", "c/wal/2", "c/wal/3", "c/wal/4", "c/wal/5"} {
		w.mustPut(key, strings.Repeat("x", 300<<10))
	}
	if st := w.Stats()[1]; st.State != "away" || st.Overflows != 1 || st.Frontier != 10 {
		t.Errorf("%+v", st)
	}
	if err := w.Delete(t.Context(), "c/wal/1"); err != nil {
		t.Error(err)
	}
	w.format.removed("c/wal/1")
	release()
	w.landed()
	if st := w.Stats()[1]; st.Backlog != 0 {
		t.Errorf("%d bytes are still on their way", st.Backlog)
	}
	w.fill()
	w.equal()
	if w.stores[0].has("c/wal/1") != "" {
		t.Error("what was deleted is back")
	}
}

func TestOtherBytesUnderAKeyStopTheWriterAndStay(t *testing.T) {
	for quorum := range 2 {
		w := newWorld(t, 2, quorum+1)
		w.stores[1].objects["c/wal/1"] = []byte("theirs")
		err := w.put("c/wal/1", "ours")
		w.landed()
		if err == nil || errors.Is(err, store.ErrExist) { // the quorum was there first: the next put stops
			err = w.put("c/wal/2", "ours")
		}
		if !errors.Is(err, errConflict) {
			t.Errorf("quorum %d: %v", quorum+1, err)
		}
		if w.stores[1].has("c/wal/1") != "theirs" || w.Stats()[0].Conflicts+w.Stats()[1].Conflicts != 1 || w.Ready() == nil {
			t.Errorf("%q, %+v", w.stores[1].has("c/wal/1"), w.Stats())
		}
	}
}

func TestTwoEncodingsOfOneContentAreNoConflict(t *testing.T) {
	w := newWorld(t, 3, 2)
	w.stores[1].objects["c/wal/1"] = []byte("CONTENT")
	if err := w.put("c/wal/1", "content"); err != nil && !errors.Is(err, store.ErrExist) {
		t.Fatal(err)
	}
	w.landed()
	w.fill()
	if err := w.Ready(); err != nil || w.state(1) != "live" {
		t.Errorf("%v, %+v", err, w.Stats())
	}
	for _, m := range w.stores[1:] {
		m.fail(errDown)
	}
	if got, err := store.ReadAll(t.Context(), w, "c/wal/1", 100); err != nil || string(got) != "content" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAStoreOfSomebodyElseGetsNothing(t *testing.T) {
	w := newWorld(t, 2, 1)
	w.mustPut("c/anchor", "us")
	w.landed()
	w.close()
	w.stores[1].objects = map[string][]byte{"c/anchor": []byte("others")}
	w.open(1)
	w.mustPut("c/wal/1", "x")
	if err := w.Fill(t.Context(), nil); !errors.Is(err, errForeign) {
		t.Errorf("%v", err)
	}
	w.landed()
	if all := w.stores[1].all(); len(all) != 1 || w.Ready() == nil {
		t.Errorf("it has %v, ready %v", all, w.Ready())
	}
}

func TestACopyThatIsAddedLaterIsFilledAndWhatComesLastComesLast(t *testing.T) {
	w := newWorld(t, 1, 1)
	for _, key := range []string{"c/anchor", "c/wal/1", "c/wal/2", "c/packs/1", "c/shown/1", "c/unknown/1"} {
		w.mustPut(key, "content of "+key)
	}
	w.close()
	added := newMemory()
	var order []string
	added.onPut = func(key string) {
		added.mu.Lock()
		defer added.mu.Unlock()
		order = append(order, key)
	}
	w.stores = append(w.stores, added)
	w.open(1)
	// The new process has not compared them yet: it does before it shows anything.
	w.mustPut("c/shown/2", "needs all of it")
	w.equal()
	if n := len(order); n != 7 || order[0] != "c/anchor" || !strings.HasPrefix(order[n-1], "c/shown/") || !strings.HasPrefix(order[n-2], "c/shown/") {
		t.Errorf("filled in the order %v", order)
	}
	asked := added.asked["list"]
	w.fill()
	w.fill()
	if n := added.asked["list"] - asked; n > 16 {
		t.Errorf("comparing twice what is equal took %d listings", n)
	}
}

func TestADeletionThatWasMissedIsMadeUpForByTheNextProcess(t *testing.T) {
	w := newWorld(t, 3, 1)
	w.mustPut("c/anchor", "us")
	w.mustPut("c/wal/1", "x")
	w.mustPut("c/wal/2", "y")
	w.landed()
	w.fill()
	w.stores[0].fail(errDown)
	w.format.removed("c/wal/1")
	if err := w.Delete(t.Context(), "c/wal/1"); err != nil {
		t.Fatal(err)
	}
	w.mustPut("c/wal/3", "z")
	w.landed()
	w.close()
	w.stores[0].fail(nil)
	w.open(1)
	w.fill()
	w.equal()
	if all := w.stores[0].all(); len(all) != 3 || all["c/wal/1"] != "" {
		t.Errorf("it holds %v", all)
	}
}

func TestAbsentIsOnlyWhatWasCertainlyNotAcknowledgedAndAListingIsCompleteOrFails(t *testing.T) {
	w := newWorld(t, 3, 2)
	w.mustPut("c/wal/1", "x")
	w.landed()
	w.stores[0].fail(errDown)
	if got, err := store.ReadAll(t.Context(), w, "c/wal/1", 10); err != nil || string(got) != "x" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := w.Get(t.Context(), "c/wal/2", 0, -1); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("one of three cannot be asked, with a quorum of two, and get says %v", err)
	}
	list := func() (keys []string, err error) {
		for object, listErr := range w.List(t.Context(), "c/", "") {
			if err = listErr; err == nil {
				keys = append(keys, object.Key)
			}
		}
		return keys, err
	}
	if keys, err := list(); err != nil || len(keys) != 1 {
		t.Errorf("one of three cannot be listed, with a quorum of two: %v, %v", keys, err)
	}
	w.stores[2].fail(errDown)
	if keys, err := list(); !errors.Is(err, errDown) || !strings.Contains(err.Error(), "take it out") {
		t.Errorf("two of three cannot be listed, with a quorum of two: %v, %v", keys, err)
	}
	if _, err := w.Get(t.Context(), "c/wal/2", 0, -1); err == nil || errors.Is(err, store.ErrNotExist) || !strings.Contains(err.Error(), "store0") {
		t.Errorf("two of three cannot be asked, with a quorum of two, and get says %v", err)
	}
	w.stores[0].fail(nil)
	w.stores[2].fail(nil)
	if _, err := w.Get(t.Context(), "c/wal/2", 0, -1); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("all can be asked, and get says %v", err)
	}
}

func TestABodyThatBreaksOffIsNotContinuedFromAnotherMember(t *testing.T) {
	w := newWorld(t, 2, 2)
	w.mustPut("c/wal/1", "0123456789")
	w.stores[0].breaks = 4
	body, err := w.Get(t.Context(), "c/wal/1", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(body); string(got) != "0123" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAPutWhoseCallerGivesUpLeavesNothingHalfDone(t *testing.T) {
	w := newWorld(t, 2, 2)
	w.mustPut("c/anchor", "us")
	w.fill()
	release := w.stores[1].stall()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Put(ctx, "c/wal/1", []byte("x"), store.PutOptions{IfAbsent: true}) }()
	for w.stores[0].has("c/wal/1") == "" {
		runtime.Gosched()
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	release()
	w.fill()
	w.equal()
}

func TestAPutGoesOnBehindACallerWhoEndsHisContextAfterwards(t *testing.T) {
	w := newWorld(t, 2, 1)
	w.mustPut("c/anchor", "us")
	w.landed()
	release := w.stores[1].stall()
	ctx, cancel := context.WithCancel(t.Context())
	if err := w.Put(ctx, "c/wal/1", []byte("x"), store.PutOptions{IfAbsent: true}); err != nil {
		t.Fatal(err)
	}
	cancel()
	release()
	w.equal()
}

// A member that this process knows to hold everything is enough: a copy that is away does not stop what only reads or compares.
func TestAMemberThatHoldsEverythingVouchesForIt(t *testing.T) {
	w := newWorld(t, 2, 1)
	w.mustPut("c/anchor", "us")
	w.mustPut("c/wal/1", "x")
	w.landed()
	w.stores[1].fail(errDown)
	list := func() error {
		for _, err := range w.List(t.Context(), "c/", "") {
			if err != nil {
				return err
			}
		}
		return nil
	}
	if err := list(); !errors.Is(err, errDown) {
		t.Errorf("nobody knows whether the store that is away alone holds something, and list says %v", err)
	}
	w.stores[1].fail(nil)
	w.fill()
	w.stores[1].fail(errDown)
	if err := list(); err != nil {
		t.Errorf("the other one holds everything, and list says %v", err)
	}
	if _, err := w.Get(t.Context(), "c/wal/2", 0, -1); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("get of what is absent: %v", err)
	}
	w.mustPut("c/shown/1", "x") // and a backup can be taken
}

// TestNothingIsRemovedFromAMemberThatHasNotTakenWhatReplacesIt: were the other one lost in this moment, neither would be there.
func TestNothingIsRemovedFromAMemberThatHasNotTakenWhatReplacesIt(t *testing.T) {
	for _, arrives := range []bool{true, false} {
		w := newWorld(t, 2, 1)
		w.mustPut("c/anchor", "us")
		w.mustPut("c/wal/1", "a part")
		w.landed()
		w.fill()
		release := make(chan struct{})
		w.stores[1].onPut = func(key string) {
			<-release
			if !arrives {
				w.stores[1].fail(errDown)
			}
		}
		w.mustPut("c/wal/2", "the whole")
		w.format.removed("c/wal/1")
		if err := w.Delete(t.Context(), "c/wal/1"); err != nil || w.stores[0].has("c/wal/1") != "" {
			t.Fatalf("the part is %q, %v", w.stores[0].has("c/wal/1"), err)
		}
		<-time.After(50 * time.Millisecond)
		if w.stores[1].has("c/wal/1") == "" {
			t.Error("the second store holds neither")
		}
		close(release)
		w.landed()
		if !arrives {
			if w.stores[1].has("c/wal/1") == "" {
				t.Error("the second store has not taken the whole, and has removed the part")
			}
			w.stores[1].onPut = nil
			w.stores[1].fail(nil)
			w.fill()
		}
		w.equal()
		if all := w.stores[1].all(); len(all) != 2 {
			t.Errorf("it holds %v", all)
		}
	}
}

// TestWhoTakesOverKnowsNothingOfWhatAnotherHasPut: a stand-by has compared the members, and then another process has put something that one of them lacks.
func TestWhoTakesOverKnowsNothingOfWhatAnotherHasPut(t *testing.T) {
	w := newWorld(t, 2, 1)
	w.mustPut("c/anchor", "us")
	w.landed()
	w.fill()
	standby := w.Store
	w.stores[0].fail(errDown)
	w.open(1)
	w.mustPut("c/wal/1", "x")
	w.landed()
	w.close()
	w.Store = standby
	w.stores[0].fail(nil)
	w.stores[1].fail(errDown)
	w.Doubt()
	if _, err := w.Get(t.Context(), "c/wal/1", 0, -1); err == nil || errors.Is(err, store.ErrNotExist) {
		t.Errorf("it was acknowledged, and who takes over says %v", err)
	}
	for _, err := range w.List(t.Context(), "c/wal/", "") {
		if err == nil {
			t.Error("it lists what is there")
		}
		return
	}
	t.Error("a listing without what was acknowledged")
}

// TestFillingRemovesNothingBeforeWhatReplacesItIsThere: a copy has parts of something that another has as a whole.
func TestFillingRemovesNothingBeforeWhatReplacesItIsThere(t *testing.T) {
	for _, arrives := range []bool{true, false} {
		w := newWorld(t, 2, 1)
		w.mustPut("c/anchor", "us")
		w.landed()
		whole, part := "c/wal/2", "c/wal/3"
		for i, key := range []string{whole, part} {
			if err := w.stores[i].Put(t.Context(), key, []byte("x"), store.PutOptions{IfAbsent: true}); err != nil {
				t.Fatal(err)
			}
		}
		w.format.removed(part)
		w.stores[1].onPut = func(string) {
			<-time.After(50 * time.Millisecond)
			if w.stores[1].has(part) == "" {
				t.Error("the copy holds neither")
			}
			if !arrives {
				w.stores[1].fail(errDown)
			}
		}
		if err := w.Fill(t.Context(), nil); (err == nil) != arrives {
			t.Errorf("fill: %v", err)
		}
		if has := w.stores[1].has(part) != ""; has == arrives {
			t.Errorf("the whole has arrived: %v, the part is there: %v", arrives, has)
		}
	}
}
