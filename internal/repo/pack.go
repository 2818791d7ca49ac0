package repo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"

	"pitr/internal/store"
)

// PackSizeMax is the size at which a pack is closed: a handful of extents may exceed it by one frame.
const PackSizeMax = 64 << 20

// DigestOf returns the hash that a manifest keeps of an extent's plain bytes.
func DigestOf(content []byte) Digest {
	sum := sha256.Sum256(content)
	return Digest(sum[:16])
}

// CompressExtent returns content as one zstd frame, with room behind it for what encryption adds.
func (r *Repo) CompressExtent(content []byte) []byte {
	return r.AppendExtent(make([]byte, 0, len(content)/2+64), content)
}

// AppendExtent appends what CompressExtent returns to frame.
func (r *Repo) AppendExtent(frame, content []byte) []byte {
	frame = r.compressor.AppendExtent(frame, content)
	if r.Encrypts() {
		frame = append(frame, make([]byte, tagSize)...)
	}
	return frame
}

// PackBuilder collects frames for one pack.
type PackBuilder struct {
	object []byte // room for the header, then frames
	room   int    // for the header; zero: that of an unencrypted object
	size   int    // that it will have, as far as is known
	ends   []int  // of frames that are to be encrypted
}

// NewPack begins a pack.
func (r *Repo) NewPack() *PackBuilder {
	if r.Encrypts() {
		return &PackBuilder{room: encryptedHeaderSize}
	}
	return &PackBuilder{}
}

// Expect says how large the pack will get, so that it does not have to grow.
func (b *PackBuilder) Expect(size int) { b.size = size }

// Add appends a frame of CompressExtent and returns its offset in the object.
func (b *PackBuilder) Add(frame []byte) int64 {
	if b.object == nil {
		room := max(headerSize, b.room)
		b.object = make([]byte, room, max(room+len(frame), b.size))
	}
	offset := int64(len(b.object))
	b.object = append(b.object, frame...)
	if b.room > 0 {
		b.ends = append(b.ends, len(b.object))
	}
	return offset
}

// Size is that of the object so far; zero when nothing was added.
func (b *PackBuilder) Size() int64 { return int64(len(b.object)) }

// PutPack stores a pack of a backup and returns what the manifest says of it. Nothing may be done with b afterwards.
func (r *Repo) PutPack(ctx context.Context, backup string, number int, b *PackBuilder) (Pack, error) {
	if r.Encrypts() != (b.room > 0) {
		panic("repo: a pack begins with NewPack, of the repository that it is for")
	}
	key := packKey(backup, number)
	pack := Pack{Key: key, Size: b.Size()}
	room := max(headerSize, b.room)
	h := Header{Kind: KindPack, Codec: CodecNone}
	if b.room > 0 {
		var err error
		if h.lock, err = r.encryptFrames(ctx, key, b); err != nil {
			return pack, fmt.Errorf("put %s: %w", key, err)
		}
		pack.Lock = h.lock.String()
	}
	content := b.object[room:]
	h.PlainLength, h.Hash = uint64(len(content)), sha256.Sum256(content)
	if b.room > 0 {
		copy(b.object, h.encodeEncrypted())
	} else {
		copy(b.object, h.encode())
	}
	err := r.store.Put(ctx, r.prefix+key, b.object, store.PutOptions{IfAbsent: true})
	if errors.Is(err, store.ErrExist) {
		err = r.compare(ctx, key, draft{header: h})
	}
	if err != nil {
		err = fmt.Errorf("put %s: %w", key, err)
	}
	return pack, err
}

// encryptFrames encrypts each frame where it lies; it ends with the room that its tag needs.
func (r *Repo) encryptFrames(ctx context.Context, key string, b *PackBuilder) (lock, error) {
	l, aead, err := r.newLock(ctx, key)
	if err != nil {
		return lock{}, err
	}
	at := b.room
	for _, end := range b.ends {
		aead.Seal(b.object[at:at], nonceAt(int64(at), chunkFrame), b.object[at:end-tagSize], nil)
		at = end
	}
	return l, nil
}

// OpenExtent returns the length plain bytes of an extent of a pack from what lies there, after their hash was compared.
func (r *Repo) OpenExtent(ctx context.Context, p Pack, e Extent, frame []byte, length int) ([]byte, error) {
	if p.Lock != "" {
		l, err := parseLock(p.Lock)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		aead, err := r.open(ctx, l, p.Key)
		if err != nil {
			return nil, err
		}
		if frame, err = aead.Open(nil, nonceAt(e.Offset, chunkFrame), frame, nil); err != nil {
			return nil, fmt.Errorf("%w: it is not what was encrypted", ErrDamaged)
		}
	}
	return DecodeExtent(frame, length, e.Hash)
}

// PackReader reads a run of bytes of a pack.
func (r *Repo) PackReader(ctx context.Context, p Pack, offset, length int64) (io.ReadCloser, error) {
	if !strings.HasPrefix(p.Key, packsDir) {
		return nil, fmt.Errorf("get %s: %w: it is no key of a pack", p.Key, ErrDamaged)
	}
	body, err := r.store.Get(ctx, r.prefix+p.Key, offset, length)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", p.Key, err)
	}
	return body, nil
}

// DecodeExtent returns the length plain bytes of a frame after their hash was compared.
func DecodeExtent(frame []byte, length int, want Digest) ([]byte, error) {
	content, err := decodeFrame(frame, length)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if DigestOf(content) != want {
		return nil, fmt.Errorf("%w: the hash of an extent is wrong", ErrDamaged)
	}
	return content, nil
}

// ExtentUse is what a manifest says that a pack holds.
type ExtentUse struct {
	Extent Extent
	Length int // of the plain bytes
}

// VerifyPack reads a whole pack, compares its hash, and decodes what manifests say that it holds.
func (r *Repo) VerifyPack(ctx context.Context, p Pack, uses []ExtentUse) error {
	err := r.verifyPack(ctx, p, uses)
	if err == nil {
		return nil
	}
	return r.elsewhere(p.Key, err, func(one *Repo) error { return one.verifyPack(ctx, p, uses) })
}

func (r *Repo) verifyPack(ctx context.Context, p Pack, uses []ExtentUse) error {
	object, err := store.ReadAll(ctx, r.store, r.prefix+p.Key, 3*PackSizeMax)
	if err == nil {
		_, _, err = r.decode(ctx, p.Key, KindPack, object, 2*PackSizeMax)
	}
	if err != nil {
		return fmt.Errorf("get %s: %w", p.Key, err)
	}
	for _, use := range uses {
		e := use.Extent
		if e.Offset < headerSize || e.Length <= 0 || int64(e.Length) > int64(len(object))-e.Offset {
			return fmt.Errorf("get %s: %w: a manifest refers to bytes that it does not have", p.Key, ErrDamaged)
		}
		if _, err := r.OpenExtent(ctx, p, e, object[e.Offset:e.Offset+int64(e.Length)], use.Length); err != nil {
			return fmt.Errorf("get %s: what a manifest refers to at byte %d: %w", p.Key, e.Offset, err)
		}
	}
	return nil
}

// StoredPacks lists the packs that lie in the store, by backup, with or without a manifest.
func (r *Repo) StoredPacks(ctx context.Context) (map[string][]Pack, error) {
	packs := map[string][]Pack{}
	err := r.keys(ctx, packsDir, func(object store.Object) error {
		backup, _, found := strings.Cut(object.Key[len(packsDir):], "/")
		if !found {
			return fmt.Errorf("list %s: %s is no pack: %w", packsDir, object.Key, ErrDamaged)
		}
		packs[backup] = append(packs[backup], Pack{Key: object.Key, Size: object.Size})
		return nil
	})
	return packs, err
}

// DeleteBackup removes a backup: its manifest first, so that it does not exist any more, then its packs.
func (r *Repo) DeleteBackup(ctx context.Context, id string, packs []Pack) error {
	if err := r.store.Delete(ctx, r.prefix+manifestKey(id)); err != nil {
		return fmt.Errorf("delete %s: %w", manifestKey(id), err)
	}
	var errs []error
	for _, pack := range packs {
		errs = append(errs, r.DeletePack(ctx, pack))
	}
	return errors.Join(errs...)
}

// DeletePack removes a pack that no manifest refers to, after what says what it holds: nobody begins to refer to it then.
func (r *Repo) DeletePack(ctx context.Context, pack Pack) error {
	if err := r.store.Delete(ctx, r.prefix+contentsKey(pack.Key)); err != nil {
		return fmt.Errorf("delete %s: %w", contentsKey(pack.Key), err)
	}
	if err := r.store.Delete(ctx, r.prefix+pack.Key); err != nil {
		return fmt.Errorf("delete %s: %w", pack.Key, err)
	}
	return nil
}
