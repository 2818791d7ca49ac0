// Package repo is the repository format: keys, encoding, and what is visible when. It is the only place that knows what lies in the
// bucket. docs/FORMAT.md specifies it. It owns the compression library and knows nothing of sockets, schedules or Postgres servers.
package repo

import (
	"context"
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
}

// New speaks of the repository of the named cluster. It asks the store nothing.
func New(s store.Store, cluster string, compressor *Compressor) *Repo {
	return &Repo{store: s, prefix: cluster + "/", compressor: compressor}
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

// ErrForeign says that the repository belongs to another cluster.
var ErrForeign = errors.New("the repository belongs to another cluster")

// Cluster reads cluster.json. store.ErrNotExist says that nothing was ever archived here.
func (r *Repo) Cluster(ctx context.Context) (Cluster, error) {
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

// put writes an object once. A key that already holds the same content is success; other content is ErrConflict.
func (r *Repo) put(ctx context.Context, key string, object []byte, kind Kind) error {
	err := r.store.Put(ctx, r.prefix+key, object, store.PutOptions{IfAbsent: true})
	if err == nil {
		return nil
	}
	if !errors.Is(err, store.ErrExist) {
		return fmt.Errorf("put %s: %w", key, err)
	}
	want, err := decodeHeader(object, kind)
	if err != nil {
		panic("repo: an object that was just sealed: " + err.Error())
	}
	have, err := r.header(ctx, key, kind)
	if err != nil {
		return fmt.Errorf("put %s: it exists; compare: %w", key, err)
	}
	if have.Hash != want.Hash || have.PlainLength != want.PlainLength {
		return fmt.Errorf("put %s: %w (%d bytes with hash %x, ours are %d with %x)", key, ErrConflict,
			have.PlainLength, have.Hash[:8], want.PlainLength, want.Hash[:8])
	}
	return nil
}

func (r *Repo) header(ctx context.Context, key string, kind Kind) (Header, error) {
	b, err := store.ReadRange(ctx, r.store, r.prefix+key, 0, headerSize)
	if err != nil {
		return Header{}, err
	}
	return decodeHeader(b, kind)
}

// get reads an object of at most max plain bytes and verifies it.
func (r *Repo) get(ctx context.Context, key string, kind Kind, max int64) ([]byte, Header, error) {
	object, err := store.ReadAll(ctx, r.store, r.prefix+key, max+max/8+1<<20)
	if err != nil {
		return nil, Header{}, fmt.Errorf("get %s: %w", key, err)
	}
	content, header, err := unseal(kind, object, max)
	if err != nil {
		return nil, header, fmt.Errorf("get %s: %w", key, err)
	}
	return content, header, nil
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
	if err != nil {
		return nil, Header{}, errors.Join(fmt.Errorf("get %s: %w", key, err), body.Close())
	}
	return body, header, nil
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
