package repo

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/store"
)

func newIdentity(t testing.TB) (identity, recipient string) {
	t.Helper()
	identity, recipient, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return identity, recipient
}

// identityFile writes identities where a reader finds them.
func identityFile(t testing.TB, identities ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "identities")
	if err := os.WriteFile(name, []byte(strings.Join(identities, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// as is the same repository as another process sees it.
func as(t testing.TB, r *Repo, opt Encryption) *Repo {
	t.Helper()
	other, err := r.WithEncryption(opt)
	if err != nil {
		t.Fatal(err)
	}
	return other
}

var historyTwo = []byte("1\t0/280000\tbefore the secret migration\n")

// fill writes an object of each kind.
func fill(t testing.TB, r *Repo) Backup {
	t.Helper()
	putSegment(t, r, 1, 2)
	putPart(t, r, 1, 0x300000, 0x340000)
	index := Index{Segment: "x", LastRecord: 0x2F_0000, Unfinished: 0x2F_FF00, RestorePoints: []RestorePoint{{At: 0x20_0000, Name: "a secret name", Time: clockZero}}}
	if err := errors.Join(r.PutHistory(t.Context(), 2, historyTwo), r.PutIndex(t.Context(), mib, segmentTwo, index)); err != nil {
		t.Fatal(err)
	}
	b, _, _ := someBackup(t, r, "20260101T000000Z", clockZero)
	return b
}

// readAll reads back what fill has written, and returns the first error.
func readAll(t testing.TB, r *Repo) error {
	t.Helper()
	content, err := r.ReadSegment(t.Context(), mib, segmentTwo)
	if err != nil {
		return err
	}
	equal(t, "the segment", content, walBytes(0x200000, 0x300000))
	if content, err = r.ReadSegment(t.Context(), mib, segmentTwo.Next()); err != nil {
		return err
	}
	equal(t, "the open segment", content, walBytes(0x300000, 0x340000))
	if content, err = r.HistoryFile(t.Context(), 2); err != nil {
		return err
	}
	equal(t, "the history", content, historyTwo)
	if index, err := r.ReadIndex(t.Context(), mib, segmentTwo); err != nil || index.RestorePoints[0].Name != "a secret name" {
		return errors.Join(err, errors.New("another index"))
	}
	m, err := r.ReadManifest(t.Context(), "20260101T000000Z")
	if err != nil {
		return err
	}
	for _, f := range m.Entries {
		for n, e := range f.Extents {
			body, err := r.PackReader(t.Context(), m.Packs[e.Pack], e.Offset, int64(e.Length))
			if err != nil {
				return err
			}
			frame := make([]byte, e.Length)
			_, err = io.ReadFull(body, frame)
			if err := errors.Join(err, body.Close()); err != nil {
				return err
			}
			length := min(ExtentSize, f.Size-int64(n)*ExtentSize)
			if _, err := r.OpenExtent(t.Context(), m.Packs[e.Pack], e, frame, int(length)); err != nil {
				return err
			}
		}
	}
	return r.VerifyPack(t.Context(), m.Packs[0], nil)
}

func TestOnlyWhomAnObjectIsMeantForCanReadIt(t *testing.T) {
	one, first := newIdentity(t)
	two, second := newIdentity(t)
	stranger, _ := newIdentity(t)
	r := newRepo(t, nil)
	fill(t, as(t, r, Encryption{Recipients: []string{first, second}}))
	for _, identity := range []string{one, two} {
		if err := readAll(t, as(t, r, Encryption{IdentityFile: identityFile(t, stranger, identity)})); err != nil {
			t.Error(err)
		}
	}
	refused := func(what string, want error, text string, opt Encryption) {
		t.Helper()
		if err := readAll(t, as(t, r, opt)); !errors.Is(err, want) || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("no identity", ErrNoIdentity, "get wal/00000001/000000010000000000000002: it is encrypted", Encryption{})
	refused("the writer", ErrNoIdentity, "no identity", Encryption{Recipients: []string{first, second}})
	refused("another identity", ErrWrongIdentity, "for other recipients", Encryption{IdentityFile: identityFile(t, stranger)})
	refused("a file that is not there", ErrNoIdentity, "no such file", Encryption{IdentityFile: "/no/such/file"})
	refused("a file of something else", ErrNoIdentity, "that can be used", Encryption{IdentityFile: identityFile(t, "password")})
}

func TestWhatWritersNeedIsInTheClear(t *testing.T) {
	_, recipient := newIdentity(t)
	r := as(t, newRepo(t, nil), Encryption{Recipients: []string{recipient}})
	want := fill(t, r)
	backups, err := r.Backups(t.Context())
	if err != nil || len(backups) != 1 || backups[0].Start != want.Start || backups[0].Packs[0].Size != want.Packs[0].Size || backups[0].Settings["max_connections"] != "100" {
		t.Errorf("%+v, %v", backups, err)
	}
	if len(backups[0].Tablespaces) != 0 || backups[0].Packs[0].Lock != "" {
		t.Errorf("too much is in the clear: %+v", backups[0])
	}
	if history, err := r.History(t.Context(), 2); err != nil || len(history) != 1 || history[0] != (pg.Ancestor{Timeline: 1, Switch: 0x280000}) {
		t.Errorf("%v, %v", history, err)
	}
	if joint, err := r.ReadJoint(t.Context(), mib, segmentTwo); err != nil || joint != (Joint{0x2F_0000, 0x2F_FF00}) {
		t.Errorf("%v, %v", joint, err)
	}
	part := Part{Timeline: 1, Start: 0x300000, End: 0x340000}
	if clock, err := r.PartClock(t.Context(), mib, part); err != nil || !clock.Time.Equal(clockZero) {
		t.Errorf("%v, %v", clock, err)
	}
}

func TestNothingThatIsEncryptedLiesInTheStore(t *testing.T) {
	_, recipient := newIdentity(t)
	r := as(t, newRepo(t, nil), Encryption{Recipients: []string{recipient}})
	r.compressor.encoder = nil // what follows is not compressed, so that it could be found
	secret := []byte("secret")
	for i, kind := range []Kind{KindHistory, KindSegment, KindPart, KindIndex, KindManifest} {
		if err := r.put(t.Context(), "kind/"+kind.String(), newDraft(kind, clockZero, bytes.Repeat(secret, 10_000*i+1), bytes.Repeat(secret, 10_000*i+1), CodecNone)); err != nil {
			t.Fatal(err)
		}
		content := object(t, r, "kind/"+kind.String())
		if bytes.Contains(content, secret[1:]) {
			t.Errorf("%s: the secret is there", kind)
		}
		d := newDraft(kind, clockZero, bytes.Repeat(secret, 10_000*i+1), nil, CodecNone)
		if bytes.Contains(content, d.header.Hash[:]) {
			t.Errorf("%s: a hash of the secret is there", kind)
		}
	}
}

func TestTamperedAndTruncatedEncryptedObjectsAreDamaged(t *testing.T) {
	identity, recipient := newIdentity(t)
	r := newRepo(t, nil)
	writer, reader := as(t, r, Encryption{Recipients: []string{recipient}}), as(t, r, Encryption{IdentityFile: identityFile(t, identity)})
	fill(t, writer)
	segment, part := segmentKey(segmentTwo, mib), partKey(Part{Timeline: 1, Start: 0x300000, End: 0x340000}, mib)
	for key, kind := range map[string]Kind{segment: KindSegment, part: KindPart, historyKey(2): KindHistory, indexKey(segmentTwo, mib): KindIndex, manifestKey("20260101T000000Z"): KindManifest} {
		clean := object(t, r, key)
		broken := func(what string, at int, content []byte) {
			t.Helper()
			overwrite(t, r, key, content)
			if _, _, err := reader.get(t.Context(), key, kind, mib2); !errors.Is(err, ErrDamaged) {
				t.Fatalf("%s, %s %d: %v", key, what, at, err)
			}
		}
		step := max(1, len(clean)/400)
		for at := 0; at < len(clean); at += step {
			changed := bytes.Clone(clean)
			changed[at] ^= 1 << (at % 8)
			broken("a flipped bit of byte", at, changed)
			broken("cut off at byte", at, clean[:at])
		}
		for at := encryptedHeaderSize + 16; at < len(clean); at += chunkSize + tagSize {
			broken("cut off at byte", at, clean[:at]) // with an empty part in the clear, between chunks
		}
		broken("a byte more at", len(clean), append(bytes.Clone(clean), 0))
		overwrite(t, r, key, clean)
	}
	// An object under the name of another one is not taken for it.
	clean := object(t, r, segment)
	overwrite(t, r, segmentKey(segmentTwo.Next(), mib), clean)
	if _, err := reader.ReadSegment(t.Context(), mib, segmentTwo.Next()); !errors.Is(err, ErrDamaged) {
		t.Errorf("a segment under another name: %v", err)
	}
	remove(t, r, segmentKey(segmentTwo.Next(), mib))
	reader.tamperWithPack(t)
	if err := readAll(t, reader); err != nil {
		t.Error(err)
	}
	keys, err := r.WrappedKeys(t.Context())
	if err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	fresh := func() *Repo { return as(t, r, Encryption{IdentityFile: identityFile(t, identity)}) }
	wrapped := object(t, r, keys[0].Wraps[0])
	overwrite(t, r, keys[0].Wraps[0], wrapped[:len(wrapped)-1])
	if err := readAll(t, fresh()); !errors.Is(err, ErrDamaged) {
		t.Errorf("a data key that is cut off: %v", err)
	}
	remove(t, r, keys[0].Wraps[0])
	if err := readAll(t, fresh()); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "is not there any more") {
		t.Errorf("a data key that is missing: %v", err)
	}
}

const mib2 = 2 << 20

func (r *Repo) tamperWithPack(t *testing.T) {
	t.Helper()
	key := packKey("20260101T000000Z", 0)
	clean := object(t, r, key)
	changed := bytes.Clone(clean)
	changed[200] ^= 1
	overwrite(t, r, key, changed)
	if err := readAll(t, r); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "it is not what was encrypted") {
		t.Errorf("an extent with a flipped bit: %v", err)
	}
	m, err := r.ReadManifest(t.Context(), "20260101T000000Z")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.VerifyPack(t.Context(), m.Packs[0], nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("a pack with a flipped bit: %v", err)
	}
	overwrite(t, r, key, clean)
}

func TestWritersRecogniseWhatTheyCannotRead(t *testing.T) {
	identity, recipient := newIdentity(t)
	_, other := newIdentity(t)
	r := newRepo(t, nil)
	part := Part{Timeline: 1, Start: 0x200000, End: 0x200100}
	put := func(opt Encryption, content []byte) error {
		return as(t, r, opt).PutPart(t.Context(), mib, part, clockZero, r.Pack(content))
	}
	same, different := walBytes(part.Start, part.End), make([]byte, 0x100)
	writer := Encryption{Recipients: []string{recipient}}
	for range 2 {
		if err := put(writer, same); err != nil {
			t.Error(err)
		}
	}
	if err := put(writer, different); !errors.Is(err, ErrConflict) {
		t.Errorf("other content: %v", err)
	}
	rotated := Encryption{Recipients: []string{other}}
	if err := put(rotated, same); !errors.Is(err, ErrIncomparable) || errors.Is(err, ErrConflict) {
		t.Errorf("by a writer with other recipients: %v", err)
	}
	rotated.IdentityFile = identityFile(t, identity)
	if err := put(rotated, same); err != nil {
		t.Errorf("by one who can read it: %v", err)
	}
	if err := put(rotated, different); !errors.Is(err, ErrConflict) {
		t.Errorf("other content by one who can read it: %v", err)
	}
	if err := put(Encryption{}, same); !errors.Is(err, ErrIncomparable) {
		t.Errorf("by one who does not encrypt: %v", err)
	}
	remove(t, r, partKey(part, mib))
	if err := errors.Join(put(Encryption{}, same), put(writer, same)); err != nil {
		t.Errorf("what was written before encryption: %v", err)
	}
	if err := put(writer, different); !errors.Is(err, ErrConflict) {
		t.Errorf("other content than before encryption: %v", err)
	}
	shared := func(recipient string) Encryption {
		return Encryption{Recipients: []string{recipient}, FingerprintKey: "sixteen letters!"}
	}
	remove(t, r, partKey(part, mib))
	if err := errors.Join(put(shared(recipient), same), put(shared(other), same)); err != nil {
		t.Errorf("with a fingerprint key recipients may change: %v", err)
	}
	if err := put(shared(other), different); !errors.Is(err, ErrConflict) {
		t.Errorf("other content with a fingerprint key: %v", err)
	}
	if err := errors.Join(as(t, r, writer).PutHistory(t.Context(), 2, historyTwo), as(t, r, Encryption{Recipients: []string{other}}).PutHistory(t.Context(), 2, historyTwo)); err != nil {
		t.Errorf("a history file is recognised by what it says in the clear: %v", err)
	}
	if err := as(t, r, Encryption{Recipients: []string{other}}).PutHistory(t.Context(), 2, []byte("1\t0/280010\tbefore the secret migration\n")); err == nil {
		t.Error("another history file was taken for it")
	}
}

func TestRewrappedKeysOpenForNewRecipientsOnlyAndNothingElseChanges(t *testing.T) {
	old, oldRecipient := newIdentity(t)
	fresh, newRecipient := newIdentity(t)
	var failing error
	r := newRepo(t, func(s store.Store) store.Store { return &deleting{s, &failing} })
	writer := as(t, r, Encryption{Recipients: []string{oldRecipient}})
	fill(t, writer)
	writer.crypt.writing.made = writer.crypt.writing.made.Add(-dataKeyLifetime - time.Second)
	putPart(t, writer, 1, 0x500000, 0x500100)
	before := snapshot(t, r)
	operator := as(t, r, Encryption{Recipients: []string{newRecipient}, IdentityFile: identityFile(t, old, fresh)})
	rewrap := func() (errs []error) {
		keys, err := operator.WrappedKeys(t.Context())
		if err != nil || len(keys) != 2 {
			t.Fatalf("%v: a day has one data key, the next another (%v)", keys, err)
		}
		for _, k := range keys {
			errs = append(errs, operator.Rewrap(t.Context(), k))
		}
		return errs
	}
	failing = errors.New("injected: killed before the old wrapping was removed")
	if errs := rewrap(); !errors.Is(errs[0], failing) {
		t.Errorf("%v", errs)
	}
	for _, identity := range []string{old, fresh} {
		if err := readAll(t, as(t, r, Encryption{IdentityFile: identityFile(t, identity)})); err != nil {
			t.Errorf("after a kill: %v", err)
		}
	}
	failing = nil
	if err := errors.Join(rewrap()...); err != nil {
		t.Fatal(err)
	}
	if _, err := as(t, r, Encryption{IdentityFile: identityFile(t, old)}).ReadSegment(t.Context(), mib, segmentTwo); !errors.Is(err, ErrWrongIdentity) {
		t.Errorf("the old identity: %v", err)
	}
	if content, err := as(t, r, Encryption{IdentityFile: identityFile(t, fresh)}).ReadSegment(t.Context(), mib, segmentTwo); err != nil || len(content) != int(mib) {
		t.Errorf("the new identity: %v", err)
	}
	for key, content := range snapshot(t, r) {
		if !strings.Contains(key, "/keys/") && !bytes.Equal(before[key], content) {
			t.Errorf("%s was changed", key)
		}
	}
	if keys, err := r.WrappedKeys(t.Context()); err != nil || len(keys) != 2 || len(keys[0].Wraps) != 1 || len(keys[1].Wraps) != 1 {
		t.Errorf("%v, %v", keys, err)
	}
	stranger, _ := newIdentity(t)
	blind := as(t, r, Encryption{Recipients: []string{oldRecipient}, IdentityFile: identityFile(t, stranger)})
	keys, err := blind.WrappedKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := blind.Rewrap(t.Context(), keys[0]); !errors.Is(err, ErrWrongIdentity) {
		t.Errorf("by somebody who cannot open it: %v", err)
	}
}

// deleting fails to delete as long as its error is not nil.
type deleting struct {
	store.Store
	err *error
}

func (d *deleting) Delete(ctx context.Context, key string) error {
	if *d.err != nil {
		return *d.err
	}
	return d.Store.Delete(ctx, key)
}

func snapshot(t testing.TB, r *Repo) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for o, err := range r.store.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		content, err := store.ReadAll(t.Context(), r.store, o.Key, 1<<30)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		all[o.Key] = content
	}
	return all
}

func TestImpossibleRecipientsAreRefused(t *testing.T) {
	r := newRepo(t, nil)
	for _, recipient := range []string{"age1nonsense", "", "AGE-SECRET-KEY-1"} {
		if _, err := r.WithEncryption(Encryption{Recipients: []string{recipient}}); err == nil {
			t.Errorf("%q is no recipient", recipient)
		}
	}
}
