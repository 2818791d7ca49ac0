package repo

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"pitr/internal/store"
)

// Tag names the content of an extent: of a repository that is not encrypted it is the extent's hash. Otherwise it is keyed, so that
// writers who cannot open the repository can recognise a content, and a stranger cannot test a guess.
type Tag [16]byte

// TagOf returns the tag of an extent with that hash.
func (r *Repo) TagOf(hash Digest) Tag {
	if f := r.crypt.fingerprints; f != nil && r.Encrypts() {
		return Tag(f.sum([]byte("extent\x00"), hash[:])[:16])
	}
	return Tag(hash)
}

// tagKey tells by what tags were made: "" without a key.
func (r *Repo) tagKey() string {
	if f := r.crypt.fingerprints; f != nil && r.Encrypts() {
		return hex.EncodeToString(f.id[:])
	}
	return ""
}

// Contents says what a pack holds, so that a backup can refer to packs whose manifest it cannot open, or that has never been written.
// docs/FORMAT.md, "Contents".
type Contents struct {
	Pack
	TagKey string   `json:"tag_key,omitempty"` // tells the keys of tags apart; empty: they are hashes
	Frames []Tagged `json:"frames"`
}

// Tagged is one frame of a pack and the tag of its content. In JSON it is ["tag", offset, length].
type Tagged struct {
	Tag    Tag
	Offset int64
	Length int
}

// MarshalJSON implements json.Marshaler.
func (a Tagged) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, `["%x",%d,%d]`, a.Tag, a.Offset, a.Length), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (a *Tagged) UnmarshalJSON(b []byte) error {
	var tag string
	if err := json.Unmarshal(b, &[]any{&tag, &a.Offset, &a.Length}); err != nil {
		return err
	}
	raw, err := hex.DecodeString(tag)
	if err != nil || len(raw) != len(a.Tag) {
		return fmt.Errorf("%q is no tag", tag)
	}
	copy(a.Tag[:], raw)
	return nil
}

// contentsSizeMax bounds the contents of a pack: some 60 bytes for each of at most a million frames.
const contentsSizeMax = 64 << 20

// PutContents stores what a pack holds, after the pack. It is not encrypted: what is in it is keyed.
func (r *Repo) PutContents(ctx context.Context, pack Pack, frames []Tagged) error {
	content, err := json.Marshal(Contents{Pack: pack, TagKey: r.tagKey(), Frames: frames})
	if err != nil {
		return fmt.Errorf("put the contents of %s: %w", pack.Key, err)
	}
	d := newDraft(KindContents, time.Time{}, content, r.compressor.Append(nil, content), CodecZstd)
	key := contentsKey(pack.Key)
	object := append(d.header.encode(), d.body...)
	err = r.store.Put(ctx, r.prefix+key, object, store.PutOptions{IfAbsent: true})
	if errors.Is(err, store.ErrExist) {
		err = r.compare(ctx, key, d)
	}
	if err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	return nil
}

// ReadContents returns what a pack holds, if its tags were made with our key; ErrNotExist when nothing says that.
func (r *Repo) ReadContents(ctx context.Context, pack Pack) (Contents, error) {
	content, _, err := r.get(ctx, contentsKey(pack.Key), KindContents, contentsSizeMax)
	if err != nil {
		return Contents{}, err
	}
	var c Contents
	if err := json.NewDecoder(bytes.NewReader(content)).Decode(&c); err != nil {
		return Contents{}, fmt.Errorf("get %s: %w: %w", contentsKey(pack.Key), ErrDamaged, err)
	}
	if c.Key != pack.Key || c.Size != pack.Size {
		return Contents{}, fmt.Errorf("get %s: %w: it is about %s of %d bytes, which has %d", contentsKey(pack.Key), ErrDamaged, c.Key, c.Size, pack.Size)
	}
	for _, e := range c.Frames {
		if e.Offset < headerSize || e.Length <= 0 || e.Length > frameSizeMax || int64(e.Length) > c.Size-e.Offset {
			return Contents{}, fmt.Errorf("get %s: %w: it lists bytes that the pack does not have", contentsKey(pack.Key), ErrDamaged)
		}
	}
	if c.TagKey != r.tagKey() {
		return Contents{}, fmt.Errorf("get %s: %w", contentsKey(pack.Key), ErrIncomparable)
	}
	return c, nil
}

// MissingPacks returns those that do not lie in the store as the manifest says.
func (r *Repo) MissingPacks(ctx context.Context, packs []Pack) ([]Pack, error) {
	stored, err := r.StoredPacks(ctx)
	if err != nil {
		return nil, err
	}
	sizes := map[string]int64{}
	for _, list := range stored {
		for _, pack := range list {
			sizes[pack.Key] = pack.Size
		}
	}
	var missing []Pack
	for _, pack := range packs {
		if size, there := sizes[pack.Key]; !there || size != pack.Size {
			missing = append(missing, pack)
		}
	}
	return missing, nil
}
