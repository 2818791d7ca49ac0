package archiver

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pitr/internal/repo"
)

// smallPacks makes backups of a few MiB consist of several packs.
func (b *bench) smallPacks() BackupOptions {
	opt := b.backupOptions()
	opt.BufferMax = 4 << 20 // packs of 512 KiB
	return opt
}

func TestSecondBackupUploadsWhatHasChangedAndIsCompleteByItself(t *testing.T) {
	b := newBench(t, 16)
	b.pgbench("-i", "-s", "5", "-q")
	a := b.run(b.options())
	a.archived(b.written())
	first := b.backupWith(b.smallPacks())
	b.query("update pgbench_accounts set abalance = 1 where aid between 1000 and 1100; checkpoint")
	second := b.backupWith(b.smallPacks())
	if first.ReferredBytes != 0 || first.Previous != "" || second.Previous != first.ID {
		t.Errorf("the first refers to %d bytes and %q, the second to %q", first.ReferredBytes, first.Previous, second.Previous)
	}
	if second.UploadedBytes() > first.UploadedBytes()/4 || second.ReferredBytes < first.StoredBytes/2 {
		t.Errorf("the first has uploaded %d bytes; the second %d, and refers to %d", first.UploadedBytes(), second.UploadedBytes(), second.ReferredBytes)
	}
	b.countedAsSent(b.repo, second.ID)

	// The first one expires; what the second refers to stays.
	backups, err := b.repo.Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	plan := PlanExpiry(Catalogue{Backups: backups}, time.Now(), Retention{Minimum: 1})
	if done, err := plan.CarryOut(t.Context(), b.repo, time.Now()); err != nil || len(plan.Expire) != 1 || done.Removed == 0 {
		t.Fatalf("%d backups and %d objects have expired, %v", len(plan.Expire), done.Removed, err)
	}
	m, _ := b.countedAsSent(b.repo, second.ID)
	others := 0
	for _, pack := range m.Packs {
		if strings.Contains(pack.Key, first.ID) {
			others++
		}
	}
	if others == 0 {
		t.Error("the second backup refers to no pack of the first")
	}
	third := b.backupWith(b.smallPacks())
	b.countedAsSent(b.repo, third.ID)
	if third.UploadedBytes() > first.UploadedBytes()/4 {
		t.Errorf("the third has uploaded %d bytes", third.UploadedBytes())
	}

	opt := b.smallPacks()
	opt.Full = true
	full := b.backupWith(opt)
	if full.ReferredBytes != 0 || full.Previous != "" || full.UploadedBytes() < first.UploadedBytes()/2 {
		t.Errorf("a full one has uploaded %d bytes and refers to %d of %q", full.UploadedBytes(), full.ReferredBytes, full.Previous)
	}
}

func TestBackupWhoseArchiverCannotReadWhatIsThereUploadsOnlyWhatHasChanged(t *testing.T) {
	b := newBench(t, 16)
	writing, reading := b.encrypted()
	reader := b.with(reading)
	b.repo = b.with(writing)
	b.pgbench("-i", "-s", "3", "-q")
	a := b.run(b.options())
	a.archived(b.written())
	first := b.backupWith(b.smallPacks())
	b.query("update pgbench_accounts set abalance = 1 where aid between 1000 and 1100; checkpoint")
	second := b.backupWith(b.smallPacks())
	if second.UploadedBytes() > first.UploadedBytes()/4 || second.ReferredBytes < first.StoredBytes/2 {
		t.Errorf("the first has uploaded %d bytes; the second %d, and refers to %d", first.UploadedBytes(), second.UploadedBytes(), second.ReferredBytes)
	}
	b.countedAsSent(reader, second.ID)
}

func TestBackupThatRefersToAPackWhichIsRemovedMeanwhileDoesNotExist(t *testing.T) {
	b := newBench(t, 16)
	a := b.run(b.options())
	a.archived(b.written())
	first := b.backup()
	b.query("create table t as select i, md5(i::text) from generate_series(1, 10000) i")
	var once atomic.Bool
	b.store.onPut(func(_ context.Context, key string, _ []byte, put func() error) error {
		if strings.Contains(key, "packs/") && once.CompareAndSwap(false, true) {
			if err := b.repo.DeletePack(t.Context(), first.Packs[0]); err != nil {
				return err
			}
		}
		return put()
	})
	if _, err := TakeBackup(t.Context(), b.backupOptions()); !errors.Is(err, ErrPackGone) {
		t.Errorf("a pack is gone; the backup ended with %v", err)
	}
	if backups, err := b.repo.Backups(t.Context()); err != nil || len(backups) != 1 {
		t.Errorf("backups %v, %v", backups, err)
	}
	// The next one sees that the pack is missing, and stores again what was in it.
	third := b.backup()
	b.countedAsSent(b.repo, third.ID)
}

func TestBackupUsesWhatAnInterruptedOneHasUploaded(t *testing.T) {
	b := newBench(t, 16)
	b.pgbench("-i", "-s", "5", "-q")
	b.query("checkpoint")
	a := b.run(b.options())
	a.archived(b.written())
	ctx, kill := context.WithCancel(t.Context())
	defer kill()
	var uploaded atomic.Int64
	b.store.onPut(func(_ context.Context, key string, content []byte, put func() error) error {
		if !strings.Contains(key, "packs/") {
			return put()
		}
		if uploaded.Load() > 2<<20 {
			kill()
			return context.Canceled
		}
		uploaded.Add(int64(len(content)))
		return put()
	})
	if _, err := TakeBackup(ctx, b.smallPacks()); err == nil {
		t.Fatal("a backup that was interrupted says that it exists")
	}
	b.noBackup()
	b.store.onPut(nil)
	interrupted := uploaded.Load()
	backup := b.backupWith(b.smallPacks())
	b.countedAsSent(b.repo, backup.ID)
	// Whatever the first one has put with its contents is not put again: all but the packs that were under way when it ended.
	if backup.ReferredBytes < interrupted-uploads*(1<<20) || backup.ReferredBytes == 0 {
		t.Errorf("the first has uploaded %d bytes, the second refers to %d of them and has uploaded %d", interrupted, backup.ReferredBytes, backup.UploadedBytes())
	}
	if backup.Previous != "" {
		t.Errorf("it says that it was compared with %q", backup.Previous)
	}
	t.Logf("%d bytes were uploaded before the interruption, %d behind it; %d are referred to", interrupted, backup.UploadedBytes(), backup.ReferredBytes)
}

// TestReferencesAreMadeOnlyToWhatIsAsSecretAsTheBackup turns encryption on between two backups.
func TestReferencesAreMadeOnlyToWhatIsAsSecretAsTheBackup(t *testing.T) {
	b := newBench(t, 16)
	plain := b.repo
	a := b.run(b.options())
	a.archived(b.written())
	first := b.backup()
	writing, reading := b.encrypted()
	writer, reader := b.with(writing), b.with(reading)
	for _, r := range []*repo.Repo{writer, reader} {
		opt := b.backupOptions()
		if opt.Repo = writer; r == reader {
			opt.Repo = plain // and off again
		}
		second := b.backupWith(opt)
		for _, pack := range second.Packs {
			if strings.Contains(pack.Key, first.ID) && opt.Repo == writer || (pack.Lock != "") != (opt.Repo == writer) {
				t.Errorf("%s with lock %q", pack.Key, pack.Lock)
			}
		}
		b.countedAsSent(reader, second.ID)
	}
}
