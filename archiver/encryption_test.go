package archiver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// encrypted makes the bench's repository one that is encrypted for a new identity, and returns how its writer and its reader see it.
func (b *bench) encrypted() (writer, reader repo.Encryption) {
	b.t.Helper()
	identity, recipient, err := repo.NewIdentity()
	if err != nil {
		b.t.Fatal(err)
	}
	file := filepath.Join(b.t.TempDir(), "identity")
	if err := os.WriteFile(file, []byte(identity+"\n"), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return repo.Encryption{Recipients: []string{recipient}}, repo.Encryption{IdentityFile: file}
}

func (b *bench) with(opt repo.Encryption) *repo.Repo {
	b.t.Helper()
	r, err := b.repo.WithEncryption(opt)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func TestArchiverWithoutAnIdentityGoesOnWhereItStopped(t *testing.T) {
	b := newBench(t, 1, "wal_keep_size=1GB")
	writer, reader := b.encrypted()
	opt := b.options()
	for range 5 {
		opt.Repo = b.with(writer) // it knows nothing of the keys of the one before
		a := b.run(opt)
		b.query("create table if not exists load (i int, t text); insert into load select i, md5(i::text) from generate_series(1, 3000) i")
		a.archived(b.written())
		if err := a.stop(); err != nil {
			t.Fatal(err)
		}
		if st := a.Stats(); st.Corrupt != 0 || st.Gaps != 0 {
			t.Errorf("%+v", st)
		}
	}
	end := b.lsn("select pg_current_wal_flush_lsn()")
	plain := b.repo
	b.repo = b.with(reader)
	if n := b.compareWAL(1); n < 3<<19 || b.frontier(1) < end {
		t.Errorf("%d bytes are equal, up to %s of %s", n, b.frontier(1), end)
	}
	b.repo = plain
	inv, err := plain.Inventory(t.Context(), 1, b.size, 0)
	if err != nil || len(inv.Segments) == 0 {
		t.Fatal(inv, err)
	}
	if _, err := plain.ReadSegment(t.Context(), b.size, b.size.Segment(1, end)); !errors.Is(err, repo.ErrNoIdentity) {
		t.Errorf("without an identity: %v", err)
	}
}

func TestArchiverWithoutAnIdentityThatIsKilledAtAnyMomentGoesOnWithoutGapOrConflict(t *testing.T) {
	b := newBench(t, 1, "wal_keep_size=2GB")
	writer, reader := b.encrypted()
	kills := b.killAtAnyMoment(func() *repo.Repo { return b.with(writer) })
	b.repo = b.with(reader)
	n := b.compareWAL(1)
	inv, err := b.repo.Inventory(t.Context(), 1, b.size, 0)
	if err != nil {
		t.Fatal(err)
	}
	without := 0
	for _, number := range inv.Segments {
		_, err := b.repo.ReadIndex(t.Context(), b.size, pg.Segment{Timeline: 1, Number: number})
		switch {
		case errors.Is(err, repo.ErrNotExist):
			without++ // its archiver died before, or its successor had not the beginning of the first record
		case err != nil:
			t.Error(err)
		}
		if n := len(inv.Parts[number]); n != 0 {
			t.Errorf("segment %X is whole and has %d parts", number, n)
		}
	}
	t.Logf("%d archivers died, %d bytes are equal, %d of %d segments have no index", kills, n, without, len(inv.Segments))
	if without > 2*kills || without == len(inv.Segments) {
		t.Errorf("%d of %d segments have no index after %d kills", without, len(inv.Segments), kills)
	}
}

func TestServerWithAnotherHistoryThanWhatIsStoredEncryptedIsAConflict(t *testing.T) {
	b := newBench(t, 16)
	writer, _ := b.encrypted()
	opt := b.options()
	opt.Repo = b.with(writer)
	a := b.run(opt)
	a.archived(b.written())
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	stored := a.Stats().Stored
	start := b.size.Start(stored)
	part := repo.Part{Timeline: 1, Start: start, End: start + 100}
	if err := b.with(writer).PutPart(t.Context(), b.size, part, time.Time{}, b.repo.Pack(make([]byte, 100))); err != nil {
		t.Fatal(err)
	}
	opt.Repo = b.with(writer)
	a = b.run(opt)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	select {
	case <-a.done:
	case <-ctx.Done():
		t.Fatal("the archiver went on with other bytes than those that are stored")
	}
	if !errors.Is(a.err, repo.ErrConflict) || !strings.Contains(a.err.Error(), "resume at") {
		t.Errorf("the archiver ended with %v", a.err)
	}
}
