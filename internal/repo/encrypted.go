package repo

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"time"
)

// The layout of an encrypted object: docs/FORMAT.md, "Encryption".
const (
	encryptedVersion    = 2
	encryptedHeaderSize = 128
	saltSize            = 16
	chunkSize           = 64 << 10 // of plain bytes; the last one is shorter
	tagSize             = 16
	// clearSizeMax bounds what an encrypted object says in the clear: the head of a manifest, some 60 bytes for each pack.
	clearSizeMax = manifestLineMax
)

// Uses of a nonce, its ninth byte.
const (
	chunkInside = 0
	chunkLast   = 1
	chunkFrame  = 2
)

// lock is what an object is encrypted with: its data key, and the salt that makes the object's own key from it.
type lock struct {
	id   keyID
	salt [saltSize]byte
}

// String is how a manifest names the lock of a pack.
func (l lock) String() string { return hex.EncodeToString(append(l.id[:], l.salt[:]...)) }

func parseLock(text string) (l lock, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(l.id)+len(l.salt) {
		return l, fmt.Errorf("%q is no lock", text)
	}
	copy(l.id[:], b)
	copy(l.salt[:], b[len(l.id):])
	return l, nil
}

// aead is the cipher of the object of a key.
func (l lock) aead(dataKey [dataKeySize]byte, key string) (cipher.AEAD, error) {
	objectKey, err := hkdf.Key(sha256.New, dataKey[:], l.salt[:], "pitr object\x00"+key, dataKeySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(objectKey)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// newLock draws a salt for an object that is about to be written.
func (r *Repo) newLock(ctx context.Context, key string) (lock, cipher.AEAD, error) {
	k, err := r.writingKey(ctx)
	if err != nil {
		return lock{}, nil, err
	}
	l := lock{id: k.id}
	rand.Read(l.salt[:])
	aead, err := l.aead(k.key, key)
	return l, aead, err
}

// open is the cipher to read an object with.
func (r *Repo) open(ctx context.Context, l lock, key string) (cipher.AEAD, error) {
	dataKey, err := r.readingKey(ctx, l.id)
	if err != nil {
		return nil, err
	}
	return l.aead(dataKey, key)
}

// nonceAt is unique within an object: the offset at which the bytes lie, and what they are.
func nonceAt(offset int64, use byte) []byte {
	nonce := make([]byte, 12)
	binary.LittleEndian.PutUint64(nonce, uint64(offset))
	nonce[8] = use
	return nonce
}

// encodeEncrypted is the header of an encrypted object. Its first 64 bytes have the form of any header, so that a reader that knows
// nothing of encryption says that this is another version.
func (h Header) encodeEncrypted() []byte {
	b := make([]byte, encryptedHeaderSize)
	h.FormatVersion = encryptedVersion
	copy(b, h.encode())
	copy(b[64:], h.lock.id[:])
	copy(b[80:], h.lock.salt[:])
	binary.LittleEndian.PutUint32(b[96:], h.clearLength)
	binary.LittleEndian.PutUint32(b[124:], crc32.Checksum(b[:124], castagnoli))
	return b
}

// decodeExtension reads what an encrypted object has behind the first 64 bytes.
func (h *Header) decodeExtension(b []byte) error {
	if len(b) < encryptedHeaderSize {
		return fmt.Errorf("%w: %d bytes are no header of an encrypted object", ErrDamaged, len(b))
	}
	if crc32.Checksum(b[:124], castagnoli) != binary.LittleEndian.Uint32(b[124:]) {
		return fmt.Errorf("%w: the checksum of its header is wrong", ErrDamaged)
	}
	copy(h.lock.id[:], b[64:])
	copy(h.lock.salt[:], b[80:])
	h.clearLength = binary.LittleEndian.Uint32(b[96:])
	if h.clearLength > clearSizeMax {
		return fmt.Errorf("%w: it says that it has %d bytes in the clear", ErrDamaged, h.clearLength)
	}
	return nil
}

// encrypt makes the object that holds a draft. What is in the clear is bound to what is not.
func (r *Repo) encrypt(ctx context.Context, key string, d draft) ([]byte, error) {
	l, aead, err := r.newLock(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("put %s: %w", key, err)
	}
	h := r.encryptedHeader(key, d.header, l)
	h.clearLength = uint32(len(d.clear))
	chunks := max(1, (len(d.body)+chunkSize-1)/chunkSize)
	object := make([]byte, 0, encryptedHeaderSize+len(d.clear)+len(d.body)+chunks*tagSize)
	object = append(append(object, h.encodeEncrypted()...), d.clear...)
	bound := sha256.Sum256(object)
	for body := d.body; ; {
		n := min(len(body), chunkSize)
		use := byte(chunkInside)
		if n == len(body) {
			use = chunkLast
		}
		object = aead.Seal(object, nonceAt(int64(len(object)), use), body[:n], bound[:])
		if body = body[n:]; use == chunkLast {
			return object, nil
		}
	}
}

// encryptedHeader has a fingerprint where a plain one has the hash of the content.
func (r *Repo) encryptedHeader(key string, h Header, l lock) Header {
	h.lock = l
	h.Hash, h.fingerprintID = r.crypt.fingerprints.of(key, h.Hash), r.crypt.fingerprints.id
	return h
}

// decrypt returns the content of an encrypted object. Its bytes are overwritten.
func (r *Repo) decrypt(ctx context.Context, key string, h Header, object []byte, max int64) ([]byte, error) {
	if err := h.decodeExtension(object); err != nil {
		return nil, err
	}
	if h.PlainLength > uint64(max) {
		return nil, fmt.Errorf("%w: it says that it holds %d bytes, at most %d are expected", ErrDamaged, h.PlainLength, max)
	}
	at := encryptedHeaderSize + int(h.clearLength)
	if at > len(object) {
		return nil, fmt.Errorf("%w: it breaks off", ErrDamaged)
	}
	if h.Kind == KindPack {
		return packContent(h, object[at:])
	}
	aead, err := r.open(ctx, h.lock, key)
	if err != nil {
		return nil, err
	}
	bound := sha256.Sum256(object[:at])
	body := object[at:at]
	for last := false; !last; {
		n := min(len(object)-at, chunkSize+tagSize)
		use := byte(chunkInside)
		if last = at+n == len(object); last {
			use = chunkLast
		}
		chunk, err := aead.Open(object[at:at], nonceAt(int64(at), use), object[at:at+n], bound[:])
		if err != nil {
			return nil, fmt.Errorf("%w: the bytes from %d on are not those that were encrypted, or some are missing", ErrDamaged, at)
		}
		body = append(body, chunk...)
		at += n
	}
	return r.decryptedContent(key, h, body)
}

// decryptedContent decodes a body and compares what the header says of it.
func (r *Repo) decryptedContent(key string, h Header, body []byte) ([]byte, error) {
	content, err := h.Codec.decode(body, int64(h.PlainLength))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if uint64(len(content)) != h.PlainLength {
		return nil, fmt.Errorf("%w: it holds %d bytes and says %d", ErrDamaged, len(content), h.PlainLength)
	}
	if f := r.crypt.fingerprints; f != nil && f.id == h.fingerprintID && f.of(key, sha256.Sum256(content)) != h.Hash {
		return nil, fmt.Errorf("%w: the fingerprint of its content is wrong", ErrDamaged)
	}
	return content, nil
}

// packContent compares the hash of a pack: it is that of the frames as they lie there, encrypted.
func packContent(h Header, frames []byte) ([]byte, error) {
	if sum := sha256.Sum256(frames); uint64(len(frames)) != h.PlainLength || !bytes.Equal(sum[:], h.Hash[:]) {
		return nil, fmt.Errorf("%w: the hash of its content is wrong", ErrDamaged)
	}
	return frames, nil
}

// draft is an object that is about to be written: the header of its plain content, its encoded body, and what it says in the clear if it
// is encrypted, so that writers who cannot read it can do their work.
type draft struct {
	header Header
	body   []byte
	clear  []byte
}

func newDraft(kind Kind, asOf time.Time, content, body []byte, codec Codec) draft {
	h := Header{Kind: kind, Codec: codec, PlainLength: uint64(len(content)), AsOf: asOf, Hash: sha256.Sum256(content)}
	return draft{header: h, body: body}
}
