package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"pitr/internal/pg"
	"pitr/internal/store"
)

// Copied tells copies.Store what it must know of a repository that lies in several stores. docs/FORMAT.md, "Several stores".
type Copied struct {
	repo *Repo         // of the stores together; its owner sets it before the first request
	size atomic.Uint64 // of segments; zero: not known yet

	retain func(ctx context.Context, backups []Backup, now time.Time) (keep []Backup, err error) // nil: all are kept
	spared atomic.Pointer[judge]                                                                 // of the latest judgement, when it has backups that have expired
}

// NewCopied speaks of the repository of the named cluster. Serve must follow.
func NewCopied(cluster string) *Copied {
	return &Copied{repo: &Repo{prefix: cluster + "/", crypt: &crypt{}}}
}

// Serve tells how the repository is read.
func (c *Copied) Serve(r *Repo) { c.repo = r }

// Retain tells which backups the retention keeps. A store in which others could not be deleted, since its credentials do not allow it or it
// retains them, then does not bring them back to stores from which they were.
func (c *Copied) Retain(keep func(ctx context.Context, backups []Backup, now time.Time) ([]Backup, error)) {
	c.retain = keep
}

// Root is the prefix of everything of the cluster.
func (c *Copied) Root() string { return c.repo.prefix }

// Anchor is cluster.json.
func (c *Copied) Anchor() string { return c.repo.prefix + clusterKey }

// Order is that of filling: what opens the rest first, WAL before packs so that the way back to now is short, manifests last (law 4).
func (c *Copied) Order() []string {
	var list []string
	for _, dir := range []string{keysDir, timelinesDir, walDir, indexDir, catalogsDir, clocksDir, packsDir, contentsDir, backupsDir} {
		list = append(list, c.repo.prefix+dir)
	}
	return list
}

// Sole are the leases: two stores could each give one to another archiver.
func (c *Copied) Sole() []string { return []string{c.repo.prefix + leasesDir} }

// Position says which WAL a segment or a part holds; of segments only once their size is known.
func (c *Copied) Position(key string) (start, end uint64, ok bool) {
	rest, found := strings.CutPrefix(key, c.repo.prefix+walDir)
	if !found || len(rest) < timelineChars+1 {
		return 0, 0, false
	}
	name, partName, isPart := strings.Cut(rest[timelineChars+1:], partsSuffix+"/")
	if isPart {
		first, second, _ := strings.Cut(partName, "-")
		begins, err1 := pg.ParseLSNHex(first)
		ends, err2 := pg.ParseLSNHex(second)
		return uint64(begins), uint64(ends), err1 == nil && err2 == nil
	}
	size := pg.SegmentSize(c.size.Load())
	if size == 0 {
		return 0, 0, false
	}
	segment, err := pg.ParseSegmentName(name, size)
	if err != nil {
		return 0, 0, false
	}
	return uint64(segment.Start(size)), uint64(segment.End(size)), true
}

// Bound notes what cluster.json says, so that names of segments can be read.
func (c *Copied) Bound(anchor []byte) error {
	var cluster Cluster
	if err := json.Unmarshal(anchor, &cluster); err != nil {
		return fmt.Errorf("read %s: %w: %w", clusterKey, ErrDamaged, err)
	}
	if cluster.SegmentSize.Valid() {
		c.size.Store(uint64(cluster.SegmentSize))
	}
	return nil
}

// Same compares two objects of one key that two writers have made: what is compressed or encrypted otherwise may mean the same.
func (c *Copied) Same(ctx context.Context, key string, a, b []byte) error {
	key = strings.TrimPrefix(key, c.repo.prefix)
	dir, _, _ := strings.Cut(key, "/")
	switch dir + "/" {
	case clusterKey + "/":
		return sameCluster(a, b)
	case indexDir, gapsDir, refusedDir, keepsDir, tombstonesDir, runningDir, proofsDir:
		return nil // the first one stays, whichever it is: they differ at most in clocks and words
	case walDir, timelinesDir, packsDir, backupsDir, catalogsDir:
		return c.sameObject(ctx, key, a, b)
	}
	if !bytes.Equal(a, b) {
		return fmt.Errorf("%w: %d bytes and %d others", ErrConflict, len(a), len(b))
	}
	return nil
}

func sameCluster(a, b []byte) error {
	var one, other Cluster
	if err := errors.Join(json.Unmarshal(a, &one), json.Unmarshal(b, &other)); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if one.SystemID != other.SystemID || one.SegmentSize != other.SegmentSize {
		return fmt.Errorf("%w: one holds system identifier %s with segments of %d bytes, another %s with %d", ErrForeign, one.SystemID, one.SegmentSize, other.SystemID, other.SegmentSize)
	}
	return nil
}

// sameObject compares headers; where fingerprints of two keys say nothing, contents.
func (c *Copied) sameObject(ctx context.Context, key string, a, b []byte) error {
	kind := Kind(0)
	if len(a) >= headerSize {
		kind = Kind(a[5])
	}
	one, err := decodeHeader(a, kind)
	if err != nil {
		return err
	}
	other, err := decodeHeader(b, kind)
	if err != nil {
		return err
	}
	conflict := fmt.Errorf("%w (%d bytes with hash %x, %d with %x)", ErrConflict, one.PlainLength, one.Hash[:8], other.PlainLength, other.Hash[:8])
	switch {
	case one.PlainLength != other.PlainLength:
		return conflict
	case one.Hash == other.Hash && one.fingerprintID == other.fingerprintID && one.encrypted() == other.encrypted():
		return nil
	case kind == KindPack, one.encrypted() == other.encrypted() && one.fingerprintID == other.fingerprintID:
		return conflict
	}
	first, _, err := c.repo.decode(ctx, key, kind, bytes.Clone(a), int64(one.PlainLength))
	if err != nil {
		return incomparable(err)
	}
	second, _, err := c.repo.decode(ctx, key, kind, bytes.Clone(b), int64(other.PlainLength))
	if err != nil {
		return incomparable(err)
	}
	if !bytes.Equal(first, second) {
		return conflict
	}
	return nil
}

func incomparable(err error) error {
	if errors.Is(err, ErrNoIdentity) || errors.Is(err, ErrWrongIdentity) {
		return fmt.Errorf("%w: %w", ErrIncomparable, err)
	}
	return err
}

// Kept reports whether an object stays that may be gone: an older wrapping of a data key goes only when somebody has read back a newer one,
// and expiry, which knows the order, removes what belongs to backups that have expired.
func (c *Copied) Kept(key string) bool {
	if strings.HasPrefix(key, c.repo.prefix+keysDir) {
		return true
	}
	j := c.spared.Load()
	return j != nil && j.spares(strings.TrimPrefix(key, c.repo.prefix))
}

// Judge tells, by docs/FORMAT.md, "What may be deleted, and when", what may be gone. Of manifests only
// those of backups are that the retention does not keep: see Retain; expiry must have run before. When a manifest cannot be read nothing that a backup may need is judged either.
func (c *Copied) Judge(ctx context.Context) (func(key, next string) bool, error) {
	if _, err := c.repo.Cluster(ctx); errors.Is(err, store.ErrNotExist) {
		return func(string, string) bool { return false }, nil
	}
	backups, damaged, err := c.repo.ReadableBackups(ctx)
	if err != nil {
		return nil, err
	}
	j := &judge{root: c.repo.prefix, packs: map[string]bool{}, position: c.Position, blind: len(damaged) > 0, now: time.Now()}
	if err := j.noteRunning(ctx, c.repo, backups); err != nil {
		return nil, err
	}
	keep := backups
	if c.retain != nil && !j.blind {
		if keep, err = c.retain(ctx, backups, j.now); err != nil {
			return nil, err
		}
	}
	j.strict, j.horizon = horizonOf(backups), horizonOf(keep)
	kept := map[string]bool{}
	for _, b := range keep {
		kept[b.ID] = true
		for _, pack := range b.Packs {
			j.packs[pack.Key] = true
		}
	}
	c.spared.Store(nil)
	j.gone = map[string]bool{}
	for _, b := range backups {
		j.gone[b.ID] = !kept[b.ID]
	}
	if len(keep) < len(backups) {
		c.spared.Store(j)
	}
	return j.needless, nil
}

// horizonOf is the start of the first segment that any of the backups needs; zero when there is none.
func horizonOf(backups []Backup) (horizon uint64) {
	for i, b := range backups {
		if start := uint64(b.SegmentSize.Start(b.Start)); i == 0 || start < horizon {
			horizon = start
		}
	}
	return horizon
}

// The age from which on a pack without a manifest is an orphan, and the form of a backup's id: docs/FORMAT.md.
const (
	orphanAge      = 7 * 24 * time.Hour
	backupIDLayout = "20060102T150405Z"
)

// judge knows what the backups need. Keys come in order.
type judge struct {
	root     string
	now      time.Time
	blind    bool            // some backup's needs are not known
	running  bool            // one is being taken, which may have found orphans that are old by now
	horizon  uint64          // WAL that ends at or before it is needed by no backup that is kept
	strict   uint64          // the same of all backups that are there
	gone     map[string]bool // backups that are there and have expired, by id
	packs    map[string]bool
	position func(key string) (start, end uint64, ok bool)
	whole    string // the last whole segment
}

func (j *judge) needless(key, next string) bool {
	name := strings.TrimPrefix(key, j.root)
	dir, rest, _ := strings.Cut(name, "/")
	behind := strings.TrimPrefix(next, j.root)
	switch dir + "/" {
	case walDir:
		segment, _, isPart := strings.Cut(name, partsSuffix+"/")
		if !isPart {
			j.whole = name
		}
		return isPart && j.whole == segment || j.expired(key)
	case indexDir:
		return j.expired(j.root + walDir + rest)
	case packsDir, contentsDir:
		backup, _, _ := strings.Cut(rest, "/")
		return !j.blind && !j.packs[packsDir+rest] && (j.gone[backup] || j.orphaned(rest))
	case backupsDir:
		backup, _, _ := strings.Cut(rest, "/")
		return !j.blind && j.gone[backup]
	case clocksDir:
		at, _, _ := strings.Cut(name, "-")
		lsn, err := pg.ParseLSNHex(at[strings.LastIndexByte(at, '/')+1:])
		return strings.HasPrefix(behind, at+"-") || err == nil && !j.blind && uint64(lsn) < j.horizon
	case catalogsDir:
		at, _, _ := strings.Cut(behind, "-")
		lsn, err := pg.ParseLSNHex(at[strings.LastIndexByte(at, '/')+1:])
		sameTimeline := name[:strings.LastIndexByte(name, '/')+1] == behind[:strings.LastIndexByte(behind, '/')+1]
		return !j.blind && sameTimeline && err == nil && uint64(lsn) <= j.horizon
	case keysDir:
		return strings.HasPrefix(behind, name[:strings.LastIndexByte(name, '/')+1])
	}
	return false
}

// spares reports whether something is needless only because a backup has expired.
func (j *judge) spares(name string) bool {
	dir, rest, _ := strings.Cut(name, "/")
	switch dir + "/" {
	case backupsDir:
		return true
	case packsDir, contentsDir:
		backup, _, _ := strings.Cut(rest, "/")
		return j.gone[backup]
	case walDir, indexDir:
		_, end, ok := j.position(j.root + walDir + rest)
		return ok && end > j.strict
	}
	return false
}

// noteRunning looks for a backup that is being taken. One whose mark is older than any backup takes is not.
func (j *judge) noteRunning(ctx context.Context, r *Repo, backups []Backup) error {
	running, err := r.RunningBackups(ctx)
	for id := range running {
		ended := slices.ContainsFunc(backups, func(b Backup) bool { return b.ID == id })
		j.running = j.running || !ended && !j.old(id)
	}
	return err
}

// orphaned reports whether a pack that no manifest refers to is so old that its backup cannot be running any more, and none that found it can.
func (j *judge) orphaned(pack string) bool {
	backup, _, _ := strings.Cut(pack, "/")
	return !j.running && j.old(backup)
}

func (j *judge) old(backup string) bool {
	began, err := time.Parse(backupIDLayout, backup)
	return err == nil && j.now.Sub(began) >= orphanAge
}

func (j *judge) expired(key string) bool {
	_, end, ok := j.position(key)
	return ok && !j.blind && end <= j.horizon
}
