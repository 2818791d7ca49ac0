package archiver

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

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
