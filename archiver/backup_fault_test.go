package archiver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"testing"
	"time"

	"pitr/internal/repo"
	"pitr/internal/store"
)

// failing lets one call of a store fail, of whatever kind, before or after it was carried out.
type failing struct {
	store.Store
	mu    sync.Mutex // guards what follows
	calls []string
	at    int  // which call fails; zero: none
	after bool // it is carried out, and the answer is lost
}

var errInjected = errors.New("injected: the store does not answer")

// call counts a call and reports whether it fails.
func (f *failing) call(what string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, what)
	return len(f.calls) == f.at
}

func (f *failing) Put(ctx context.Context, key string, content []byte, opt store.PutOptions) error {
	fails := f.call("put " + key)
	if fails && !f.after {
		return errInjected
	}
	if err := f.Store.Put(ctx, key, content, opt); err != nil || !fails {
		return err
	}
	return errInjected
}

func (f *failing) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if f.call("get " + key) {
		return nil, errInjected
	}
	return f.Store.Get(ctx, key, offset, length)
}

func (f *failing) List(ctx context.Context, prefix, after string) iter.Seq2[store.Object, error] {
	if f.call("list " + prefix) {
		return func(yield func(store.Object, error) bool) { yield(store.Object{}, errInjected) }
	}
	return f.Store.List(ctx, prefix, after)
}

func (f *failing) Delete(ctx context.Context, key string) error {
	if f.call("delete " + key) {
		return errInjected
	}
	return f.Store.Delete(ctx, key)
}

// TestNoFaultOfTheStoreLeavesHalfABackup fails each call that a backup makes, one by one.
func TestNoFaultOfTheStoreLeavesHalfABackup(t *testing.T) {
	b := newSummarizing(t)
	b.query("create table t as select i, md5(i::text) from generate_series(1, 30000) i; checkpoint")
	a := b.run(b.options())
	a.archived(b.written())
	b.backupWith(b.smallPacks())
	compressor, err := repo.NewCompressor("zstd:1")
	if err != nil {
		t.Fatal(err)
	}
	failed, mended := 0, 0
	for _, c := range []struct {
		source Source
		after  bool
	}{{SourceServer, false}, {SourceServer, true}, {SourceFiles, false}, {SourceFiles, true}} {
		after := c.after
		for n := 1; ; n++ {
			f := &failing{Store: b.store.Store, at: n, after: after}
			opt := b.smallPacks()
			opt.Source, opt.Directory = c.source, b.server.Dir
			opt.Repo = repo.New(f, "main", compressor)
			b.query(fmt.Sprintf("update t set i = -i where i between %d and %d; checkpoint", 100*n, 100*n+20))
			before := b.backupIDs()
			backup, err := TakeBackup(t.Context(), opt)
			switch now := b.backupIDs(); {
			case err == nil:
				mended++
				b.countedAsSent(b.repo, backup.ID)
			case len(now) > len(before):
				// Only of the last put may the answer be lost: the backup exists then, and is whole.
				made := slices.DeleteFunc(now, func(id string) bool { return slices.Contains(before, id) })
				if last := f.calls[n-1]; !after || last != "put main/backups/"+made[0]+"/manifest" {
					t.Errorf("call %d (%s) failed, the backup ended with %v and exists", n, last, err)
				}
				b.countedAsSent(b.repo, made[0])
				failed++
			default:
				failed++
			}
			if err != nil && !errors.Is(err, errInjected) {
				t.Errorf("call %d: %v", n, err)
			}
			if t.Failed() || len(f.calls) < n {
				break
			}
			b.tidyUp()
		}
	}
	if failed < 20 || mended == 0 {
		t.Errorf("%d backups failed and %d did not: the test shows nothing", failed, mended)
	}
	t.Logf("%d failed, %d did not", failed, mended)
}

func (b *bench) backupIDs() []string {
	b.t.Helper()
	backups, err := b.repo.Backups(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	var ids []string
	for _, backup := range backups {
		ids = append(ids, backup.ID)
	}
	slices.Sort(ids)
	return ids
}

// tidyUp leaves one backup, the newest, and nothing of those that failed: the next one would read what their packs hold and what the WAL since the last
// one has changed, and so make a call more each time.
func (b *bench) tidyUp() {
	b.t.Helper()
	b.backupWith(b.smallPacks())
	backups, err := b.repo.Backups(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := PlanExpiry(Catalogue{Backups: backups}, time.Now(), Retention{Minimum: 1}).CarryOut(b.t.Context(), b.repo, time.Now()); err != nil {
		b.t.Fatal(err)
	}
	stored, err := b.repo.StoredPacks(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	needed := map[string]bool{}
	for _, pack := range backups[len(backups)-1].Packs {
		needed[pack.Key] = true
	}
	for _, packs := range stored {
		for _, pack := range packs {
			if needed[pack.Key] {
				continue
			}
			if err := b.repo.DeletePack(b.t.Context(), pack); err != nil {
				b.t.Fatal(err)
			}
		}
	}
}
