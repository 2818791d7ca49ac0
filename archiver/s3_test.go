package archiver

import (
	"testing"
	"time"

	"pitr/internal/store"
	"pitr/internal/store/s3"
	"pitr/internal/store/s3/s3test"
)

func TestOutageOfTheObjectStoreIsRiddenOut(t *testing.T) {
	gateway := s3test.Start(t)
	opt, err := s3.ParseURL(gateway.URL("deep/prefix"))
	if err != nil {
		t.Fatal(err)
	}
	bucket, err := s3.Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, 1, "wal_keep_size=1GB")
	b.store.Store = store.Retry(bucket, store.RetryOptions{Retries: 1, Timeout: 2 * time.Second, Pause: 50 * time.Millisecond})
	a := b.run(b.options())
	a.archived(b.written())
	over := make(chan struct{})
	go func() {
		defer close(over)
		b.pgbench("-i", "-s", "1", "-q")
		b.pgbench("-c", "2", "-T", "4", "-n")
	}()
	for range 2 {
		stored := a.Stats().Stored
		until(t, "WAL arrives", func() bool { return a.Stats().Stored > stored })
		gateway.Kill()
		until(t, "the store is known to be down", func() bool { return a.Stats().StoreDown })
		if at := a.Stats(); at.WaitingBytes > b.options().BufferMax {
			t.Errorf("%d bytes are held", at.WaitingBytes)
		}
		gateway.Restart()
	}
	<-over
	a.archived(b.written())
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes are equal, %d puts failed", b.compareWAL(1), a.Stats().StoreFailures)
	b.everySegmentHasItsIndexAndNoParts()
}
