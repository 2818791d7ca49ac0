package copies

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pitr/internal/store"
)

// TestRandomFaultsLoseNothingThatWasAcknowledged plays random puts, deletions, faults, fills and restarts. At the moment of its
// acknowledgement an object is in as many stores as the quorum says; when all stores are back and were filled, they are equal, hold all
// that was acknowledged, and nothing that was deleted.
func TestRandomFaultsLoseNothingThatWasAcknowledged(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		members := rapid.IntRange(2, 3).Draw(rt, "members")
		quorum := rapid.IntRange(1, members).Draw(rt, "quorum")
		w := newWorld(t, members, quorum)
		releases := map[int]func(){}
		var acknowledged []string
		touched, deleted := map[string]bool{}, map[string]bool{} // a deletion was tried; and has succeeded
		n := 0
		calm := func(i int) {
			if release := releases[i]; release != nil {
				release()
				delete(releases, i)
			}
			w.stores[i].fail(nil)
		}
		holders := func(key string) (count int) {
			for _, m := range w.stores {
				if m.has(key) == content(key) {
					count++
				}
			}
			return count
		}
		if err := w.put("c/anchor", content("c/anchor")); err != nil {
			rt.Fatal(err)
		}
		put := func(key string) error { // a store that stalls may hold it up as long as its caller waits
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			defer cancel()
			return w.Put(ctx, key, []byte(content(key)), store.PutOptions{IfAbsent: true})
		}
		rt.Repeat(map[string]func(*rapid.T){
			"put": func(rt *rapid.T) {
				n++
				key := fmt.Sprintf("c/%s/%d", rapid.SampledFrom([]string{"wal", "packs", "shown", "other"}).Draw(rt, "directory"), n)
				if err := put(key); err != nil {
					return
				}
				if got := holders(key); got < quorum {
					rt.Fatalf("%s was acknowledged, and %d stores hold it", key, got)
				}
				acknowledged = append(acknowledged, key)
			},
			// An action that cannot be in this state says so by Skip: rapid draws another one in its place, and fails when there is none.
			"again": func(rt *rapid.T) {
				if len(acknowledged) == 0 || len(releases) > 0 {
					rt.Skip()
				}
				key := rapid.SampledFrom(acknowledged).Draw(rt, "key")
				if touched[key] {
					rt.Skip()
				}
				if err := w.put(key, content(key)); (err == nil || errors.Is(err, store.ErrExist)) && holders(key) < quorum {
					rt.Fatalf("%s was acknowledged again, and %d stores hold it", key, holders(key))
				}
			},
			"delete": func(rt *rapid.T) {
				if len(acknowledged) == 0 || len(releases) > 0 {
					rt.Skip()
				}
				key := rapid.SampledFrom(acknowledged).Draw(rt, "key")
				w.format.removed(key) // it is superfluous before anybody removes it
				touched[key] = true
				if err := w.Delete(t.Context(), key); err == nil {
					deleted[key] = true
				}
			},
			"fault": func(rt *rapid.T) {
				w.stores[rapid.IntRange(0, members-1).Draw(rt, "store")].fail(errDown)
			},
			"stall": func(rt *rapid.T) {
				i := rapid.IntRange(0, members-1).Draw(rt, "store")
				if releases[i] == nil {
					releases[i] = w.stores[i].stall()
				}
			},
			"calm": func(rt *rapid.T) { calm(rapid.IntRange(0, members-1).Draw(rt, "store")) },
			"fill": func(*rapid.T) {
				if len(releases) == 0 {
					_ = w.Fill(t.Context(), nil) // stores may be away
				}
			},
			"restart": func(rt *rapid.T) {
				if len(releases) > 0 {
					rt.Skip()
				}
				w.close()
				w.open(quorum)
			},
		})
		for i := range w.stores {
			calm(i)
		}
		w.landed()
		w.fill()
		w.landed()
		w.fill()
		want := w.stores[0].all()
		for i, m := range w.stores {
			if got := m.all(); fmt.Sprint(got) != fmt.Sprint(want) {
				rt.Fatalf("store%d holds %v, store0 %v", i, got, want)
			}
			if st := w.Stats()[i]; st.Behind || st.Missing > 0 || st.Conflicts > 0 {
				rt.Fatalf("%+v", st)
			}
		}
		for _, key := range acknowledged {
			if _, there := want[key]; there == deleted[key] && touched[key] == deleted[key] {
				rt.Fatalf("%s: there %v, deleted %v", key, there, deleted[key])
			}
		}
		w.close()
	})
}

func content(key string) string { return "content of " + key }
