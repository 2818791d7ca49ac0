// Package repo is the repository format: keys, encoding, and what is visible when. It is the only place that knows what lies in the
// bucket. docs/FORMAT.md specifies it. It owns the compression library and knows nothing of sockets, schedules or Postgres servers.
package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"pitr/internal/pg"
	"pitr/internal/store"
)

// Repo is the repository of one cluster in a store.
type Repo struct {
	store      store.Store
	prefix     string // "<cluster>/"
	compressor *Compressor
	crypt      *crypt
}

// New speaks of the repository of the named cluster, unencrypted. It asks the store nothing.
func New(s store.Store, cluster string, compressor *Compressor) *Repo {
	return &Repo{store: s, prefix: cluster + "/", compressor: compressor, crypt: &crypt{}}
}

// Cluster is what cluster.json binds the repository to.
type Cluster struct {
	FormatVersion int            `json:"format_version"`
	SystemID      pg.SystemID    `json:"system_identifier,string"`
	SegmentSize   pg.SegmentSize `json:"wal_segment_size"`
	Created       time.Time      `json:"created"`
}

// clusterSizeMax bounds cluster.json.
const clusterSizeMax = 1 << 16

// ErrNotExist says that what was asked for is certainly absent: store.ErrNotExist, for those who do not see the store.
var ErrNotExist = store.ErrNotExist

// ErrDenied and ErrLocked say why an object was not removed: store.ErrDenied and store.ErrLocked, for those who do not see the store.
var (
	ErrDenied = store.ErrDenied
	ErrLocked = store.ErrLocked
)

// ErrForeign says that the repository belongs to another cluster.
var ErrForeign = errors.New("the repository belongs to another cluster")

// Cluster reads cluster.json. store.ErrNotExist says that nothing was ever archived here.
func (r *Repo) Cluster(ctx context.Context) (c Cluster, err error) {
	if c, err = r.cluster(ctx); err == nil {
		return c, nil
	}
	err = r.elsewhere(clusterKey, err, func(one *Repo) (err error) {
		c, err = one.cluster(ctx)
		return err
	})
	return c, err
}

func (r *Repo) cluster(ctx context.Context) (Cluster, error) {
	content, err := store.ReadAll(ctx, r.store, r.prefix+clusterKey, clusterSizeMax)
	if err != nil {
		return Cluster{}, fmt.Errorf("read %s: %w", clusterKey, err)
	}
	var c Cluster
	if err := json.Unmarshal(content, &c); err != nil {
		return Cluster{}, fmt.Errorf("read %s: %w: %w", clusterKey, ErrDamaged, err)
	}
	if c.FormatVersion != formatVersion {
		return Cluster{}, fmt.Errorf("read %s: the repository has format version %d, this program reads %d", clusterKey, c.FormatVersion, formatVersion)
	}
	if c.SystemID == 0 || !c.SegmentSize.Valid() {
		return Cluster{}, fmt.Errorf("read %s: %w: system identifier %d, segment size %d", clusterKey, ErrDamaged, c.SystemID, c.SegmentSize)
	}
	return c, nil
}

// Bind binds the repository to the cluster, or confirms that it is; another cluster's repository is ErrForeign.
func (r *Repo) Bind(ctx context.Context, want Cluster) error {
	want.FormatVersion = formatVersion
	content, err := json.MarshalIndent(want, "", "  ")
	if err != nil {
		return fmt.Errorf("bind the repository: %w", err)
	}
	err = r.store.Put(ctx, r.prefix+clusterKey, append(content, '\n'), store.PutOptions{IfAbsent: true})
	if err == nil {
		return nil
	}
	if !errors.Is(err, store.ErrExist) {
		return fmt.Errorf("bind the repository: put %s: %w", clusterKey, err)
	}
	have, err := r.Cluster(ctx)
	if err != nil {
		return fmt.Errorf("bind the repository: %w", err)
	}
	if have.SystemID != want.SystemID || have.SegmentSize != want.SegmentSize {
		return fmt.Errorf("bind the repository: it holds system identifier %s with segments of %d bytes, this server has %s with %d: %w",
			have.SystemID, have.SegmentSize, want.SystemID, want.SegmentSize, ErrForeign)
	}
	return nil
}

// encode makes the object of a draft.
func (r *Repo) encode(ctx context.Context, key string, d draft) ([]byte, error) {
	if r.Encrypts() {
		return r.encrypt(ctx, key, d)
	}
	return append(d.header.encode(), d.body...), nil
}

// putOnce writes an object, or fails with store.ErrExist.
func (r *Repo) putOnce(ctx context.Context, key string, d draft) error {
	object, err := r.encode(ctx, key, d)
	if err != nil {
		return err
	}
	return r.store.Put(ctx, r.prefix+key, object, store.PutOptions{IfAbsent: true})
}

// put writes an object once. A key that already holds the same content is success; other content is ErrConflict.
func (r *Repo) put(ctx context.Context, key string, d draft) error {
	err := r.putOnce(ctx, key, d)
	if errors.Is(err, store.ErrExist) {
		err = r.compare(ctx, key, d)
	}
	if err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	return nil
}

// compare holds what lies under a key against what was to be written there.
func (r *Repo) compare(ctx context.Context, key string, d draft) error {
	have, err := r.header(ctx, key, d.header.Kind)
	if err != nil {
		return fmt.Errorf("it exists; compare: %w", err)
	}
	want := d.header
	if f := r.crypt.fingerprints; have.encrypted() && have.Kind != KindPack {
		if have.PlainLength == want.PlainLength && (f == nil || f.id != have.fingerprintID) {
			return r.compareContent(ctx, key, d)
		}
		if f != nil {
			want.Hash = f.of(key, want.Hash)
		}
	}
	if have.Hash != want.Hash || have.PlainLength != want.PlainLength {
		return fmt.Errorf("%w (%d bytes with hash %x, ours are %d with %x)", ErrConflict, have.PlainLength, have.Hash[:8], want.PlainLength, want.Hash[:8])
	}
	return nil
}

// compareContent does so when the fingerprint says nothing, because another key made it: by what is in the clear, or by opening it.
func (r *Repo) compareContent(ctx context.Context, key string, d draft) error {
	if d.header.Kind == KindHistory {
		// The clear part has all but the reasons, which nobody acts on.
		clear, err := r.clear(ctx, key, KindHistory)
		if err == nil && !bytes.Equal(clear, d.clear) {
			err = ErrConflict
		}
		return err
	}
	content, _, err := r.get(ctx, key, d.header.Kind, int64(d.header.PlainLength))
	switch {
	case errors.Is(err, ErrNoIdentity), errors.Is(err, ErrWrongIdentity):
		return fmt.Errorf("%w: it was written with another archive.encryption.fingerprint_key or other recipients; an archive.encryption.identity_file that opens it would tell", ErrIncomparable)
	case err != nil:
		return fmt.Errorf("it exists; compare: %w", err)
	case sha256.Sum256(content) != d.header.Hash:
		return ErrConflict
	default:
		return nil
	}
}

func (r *Repo) header(ctx context.Context, key string, kind Kind) (Header, error) {
	b, err := store.ReadRange(ctx, r.store, r.prefix+key, 0, headerSize)
	if err != nil {
		return Header{}, err
	}
	return decodeHeader(b, kind)
}

// get reads an object of at most max plain bytes and verifies it. Of several stores it takes one that has it whole.
func (r *Repo) get(ctx context.Context, key string, kind Kind, max int64) ([]byte, Header, error) {
	content, header, err := r.getOnce(ctx, key, kind, max)
	if err == nil {
		return content, header, nil
	}
	err = r.elsewhere(key, err, func(one *Repo) (err error) {
		content, header, err = one.getOnce(ctx, key, kind, max)
		return err
	})
	return content, header, err
}

func (r *Repo) getOnce(ctx context.Context, key string, kind Kind, max int64) ([]byte, Header, error) {
	object, err := store.ReadAll(ctx, r.store, r.prefix+key, max+max/8+1<<20)
	if err != nil {
		return nil, Header{}, fmt.Errorf("get %s: %w", key, err)
	}
	content, header, err := r.decode(ctx, key, kind, object, max)
	if err != nil {
		return nil, header, fmt.Errorf("get %s: %w", key, err)
	}
	return content, header, nil
}

// decode returns the content of an object, encrypted or not.
func (r *Repo) decode(ctx context.Context, key string, kind Kind, object []byte, max int64) ([]byte, Header, error) {
	header, err := decodeHeader(object, kind)
	if err != nil || !header.encrypted() {
		return unseal(kind, object, max)
	}
	content, err := r.decrypt(ctx, key, header, object, max)
	return content, header, err
}

// clear returns what an encrypted object says in the clear; nil when it is not encrypted.
func (r *Repo) clear(ctx context.Context, key string, kind Kind) (clear []byte, err error) {
	if clear, err = r.clearOnce(ctx, key, kind); err == nil {
		return clear, nil
	}
	err = r.elsewhere(key, err, func(one *Repo) (err error) {
		clear, err = one.clearOnce(ctx, key, kind)
		return err
	})
	return clear, err
}

func (r *Repo) clearOnce(ctx context.Context, key string, kind Kind) ([]byte, error) {
	body, header, err := r.stream(ctx, key, kind)
	if err != nil {
		return nil, err
	}
	if !header.encrypted() {
		return nil, body.Close()
	}
	clear, err := readClear(body, header)
	if err := errors.Join(err, body.Close()); err != nil {
		return nil, fmt.Errorf("get %s: %w", key, err)
	}
	return clear, nil
}

// readClear reads the clear part of a stream that stands behind the header.
func readClear(body io.Reader, h Header) ([]byte, error) {
	clear, err := io.ReadAll(io.LimitReader(body, int64(h.clearLength)))
	if err == nil && len(clear) != int(h.clearLength) {
		err = fmt.Errorf("%w: it breaks off", ErrDamaged)
	}
	return clear, err
}

// stream opens the body of an object behind its header; the hash is the reader's to check.
func (r *Repo) stream(ctx context.Context, key string, kind Kind) (io.ReadCloser, Header, error) {
	body, err := r.store.Get(ctx, r.prefix+key, 0, -1)
	if err != nil {
		return nil, Header{}, fmt.Errorf("get %s: %w", key, err)
	}
	b := make([]byte, headerSize)
	if _, err := io.ReadFull(body, b); err != nil {
		return nil, Header{}, errors.Join(fmt.Errorf("get %s: %w: %w", key, ErrDamaged, err), body.Close())
	}
	header, err := decodeHeader(b, kind)
	if err == nil && header.encrypted() {
		err = readExtension(body, b, &header)
	}
	if err != nil {
		return nil, Header{}, errors.Join(fmt.Errorf("get %s: %w", key, err), body.Close())
	}
	return body, header, nil
}

func readExtension(body io.Reader, first []byte, h *Header) error {
	b := make([]byte, encryptedHeaderSize)
	if _, err := io.ReadFull(body, b[copy(b, first):]); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return h.decodeExtension(b)
}

// keys lists what lies below a directory of the repository, in order, without the cluster's prefix.
func (r *Repo) keys(ctx context.Context, dir string, visit func(store.Object) error) error {
	for object, err := range r.store.List(ctx, r.prefix+dir, "") {
		if err != nil {
			return fmt.Errorf("list %s: %w", dir, err)
		}
		object.Key = object.Key[len(r.prefix):]
		if err := visit(object); err != nil {
			return err
		}
	}
	return nil
}
