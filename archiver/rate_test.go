package archiver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhatIsReadComesNoFasterThanItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := bytes.Repeat([]byte("pitr"), 1<<20)
		begin := time.Now()
		n, err := io.Copy(io.Discard, &rated{t.Context(), bytes.NewReader(content), &rate{limit: 1 << 20}})
		if took := time.Since(begin); err != nil || n != 4<<20 || took.Round(time.Millisecond) != 4*time.Second {
			t.Errorf("%d bytes took %s, %v", n, took, err)
		}
		begin = time.Now()
		if n, err = io.Copy(io.Discard, &rated{t.Context(), bytes.NewReader(content), &rate{}}); err != nil || n != 4<<20 || time.Since(begin) != 0 {
			t.Errorf("without a limit %d bytes took %s, %v", n, time.Since(begin), err)
		}
	})
}

func TestSeveralShareARateAndAPauseSavesNothingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &rate{limit: 1000}
		begin := time.Now()
		var senders sync.WaitGroup
		for range 5 {
			senders.Go(func() {
				for range 4 {
					if err := r.pass(t.Context(), 500); err != nil {
						t.Error(err)
					}
				}
			})
		}
		senders.Wait()
		if took := time.Since(begin); took != 10*time.Second {
			t.Errorf("10000 bytes took %s", took)
		}
		<-time.After(time.Hour)
		begin = time.Now()
		if err := r.pass(t.Context(), 3000); err != nil || time.Since(begin) != 3*time.Second {
			t.Errorf("after a pause 3000 bytes took %s, %v", time.Since(begin), err)
		}
	})
}

func TestWhoeverWaitsForARateStopsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		given := errors.New("given up")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(given) })
		begin := time.Now()
		if err := (&rate{limit: 1}).pass(ctx, 1<<30); !errors.Is(err, given) || time.Since(begin) != time.Second {
			t.Errorf("%v after %s", err, time.Since(begin))
		}
	})
}

// TestABackupIsHeldBackByItsRates has rates at which nothing comes to an end: of what is read the server sees that, of what is uploaded the store.
func TestABackupIsHeldBackByItsRates(t *testing.T) {
	b := newBench(t, 16)
	a := b.run(b.options())
	a.archived(b.written())
	b.query("create table t as select i, (select string_agg(md5(random()::text || i || j), '') from generate_series(1, 20) j) from generate_series(1, 30000) i; checkpoint")
	var packs atomic.Int64
	b.store.onPut(func(_ context.Context, key string, _ []byte, put func() error) error {
		if strings.Contains(key, "packs/") {
			packs.Add(1)
		}
		return put()
	})
	held := func(opt BackupOptions, what string, isHeld func() bool) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() {
			_, err := TakeBackup(ctx, opt)
			ended <- err
		}()
		until(t, what, isHeld)
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) || packs.Load() > 0 {
			t.Errorf("%d packs were put, and it ended with %v", packs.Load(), err)
		}
	}
	opt := b.smallPacks()
	opt.RateRead = 1
	held(opt, "the server waits for us", func() bool {
		return b.query("select count(*) from pg_stat_activity where application_name = 'pitr backup' and wait_event = 'ClientWrite'") == "1"
	})
	until(t, "the server has noticed that nobody reads", func() bool {
		return b.query("select count(*) from pg_stat_activity where application_name = 'pitr backup'") == "0"
	})
	opt.RateRead, opt.RateUpload = 0, 1
	held(opt, "memory is full of what waits to be uploaded", func() bool {
		return b.query("select count(*) from pg_stat_activity where application_name = 'pitr backup' and wait_event = 'ClientWrite'") == "1"
	})
	opt.RateUpload = 1 << 40
	if b.backupWith(opt); packs.Load() < 3 {
		t.Errorf("%d packs were put", packs.Load())
	}
}
