package prover

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pitr/internal/repo"
	"pitr/internal/store/file"
)

// stocked is a repository with a backup of one pack.
func stocked(t *testing.T) (*repo.Repo, string) {
	t.Helper()
	root := t.TempDir()
	files, err := file.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	compressor, err := repo.NewCompressor("zstd:1")
	if err != nil {
		t.Fatal(err)
	}
	return repo.New(files, "main", compressor), root
}

func publish(t *testing.T, r *repo.Repo) {
	t.Helper()
	ctx := t.Context()
	if err := r.Bind(ctx, repo.Cluster{SystemID: 77, SegmentSize: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	b := repo.Backup{ID: "20260101T000000Z", SystemID: 77, SegmentSize: 1 << 20, Timeline: 1, ExtentSize: repo.ExtentSize, StopTime: time.Now()}
	builder := r.NewPack()
	builder.Add(r.CompressExtent([]byte("x")))
	pack, err := r.PutPack(ctx, b.ID, 0, builder)
	if err != nil {
		t.Fatal(err)
	}
	b.Packs = []repo.Pack{pack}
	if err := r.NewManifest().Publish(ctx, b); err != nil {
		t.Fatal(err)
	}
}

// live lets a schedule run for a time.
func live(t *testing.T, opt Options, span time.Duration) Stats {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p := New(opt)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.Run(ctx)
	}()
	<-time.After(span)
	cancel()
	<-ended
	return p.Stats()
}

func TestTheScheduleGoesOnWhereItsPredecessorWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, root := stocked(t)
		working := true
		restores := 0
		opt := Options{Repo: r, Inventory: time.Hour, ChecksumDays: 5, Restore: 7 * day, Settle: time.Minute, Working: func() bool { return working }, Log: slog.New(slog.DiscardHandler),
			Prove: func(context.Context, uint64) (repo.Proof, error) {
				restores++
				return repo.Proof{Backup: "20260101T000000Z", Time: time.Now(), OK: restores != 2, FetchSeconds: 1, RecoverySeconds: 2}, nil
			}}
		if st := live(t, opt, day); st.Inventories+st.Slices+st.Restores+st.Failures > 0 {
			t.Errorf("of an empty repository: %+v", st)
		}
		publish(t, r)
		working = false
		if st := live(t, opt, day); st.Inventories+st.Slices+st.Restores > 0 {
			t.Errorf("while another one works: %+v", st)
		}
		working = true
		st := live(t, opt, 3*day+time.Hour)
		if st.Inventories < 70 || st.Inventories > 75 || st.Slices != 4 || st.Restores != 1 || st.LastProven.IsZero() || st.RecoverTook != 3*time.Second {
			t.Errorf("in three days: %+v", st)
		}
		// Killed and begun anew an hour later.
		st = live(t, opt, 4*day)
		if st.Slices != 4 || st.Restores != 1 || !st.LastFailed || st.LastProven.IsZero() || time.Since(st.LastProven) < 7*day {
			t.Errorf("in four more days: %+v", st)
		}
		readings, err := r.Readings(t.Context(), time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		var slicesRead []int
		objects := 0
		for i, reading := range readings {
			slicesRead = append(slicesRead, reading.Slice)
			if i < 5 {
				objects += reading.Objects
			}
		}
		if !slices.Equal(slicesRead, []int{0, 1, 2, 3, 4, 0, 1, 2}) || objects != 1 {
			t.Errorf("slices %v were read, with %d objects in the first round", slicesRead, objects)
		}

		// What is missing is seen within the hour, what is damaged within the round.
		pack := filepath.Join(root, "main", "packs", "20260101T000000Z", "000000")
		content, err := os.ReadFile(pack)
		if err != nil {
			t.Fatal(err)
		}
		content[len(content)-1] ^= 1
		if err := os.Remove(pack); err != nil {
			t.Fatal(err)
		}
		before := st.InventoryDefects
		if st = live(t, opt, 61*time.Minute); st.InventoryDefects != before+1 {
			t.Errorf("without its pack: %+v", st)
		}
		if err := os.WriteFile(pack, content, 0o600); err != nil {
			t.Fatal(err)
		}
		defects := 0
		for range 5 {
			if st = live(t, opt, day+time.Minute); st.InventoryDefects != before {
				t.Errorf("with a damaged pack, by names: %+v", st)
			}
			defects += st.SliceDefects - before
		}
		if defects != 1 {
			t.Errorf("in a round %d defects were found", defects)
		}
	})
}
