package repo

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"
)

// Kind says what an object holds.
type Kind uint8

// The kinds of docs/FORMAT.md, "Object header".
const (
	KindHistory Kind = iota + 1
	KindSegment
	KindPart
	KindIndex
	KindPack
	KindManifest
	KindCatalog
	KindRefused
	KindContents
)

func (k Kind) String() string {
	names := [...]string{"none", "history", "segment", "part", "index", "pack", "manifest", "catalog", "refused", "contents"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Header is the fixed beginning of an object.
type Header struct {
	Kind        Kind
	Codec       Codec
	PlainLength uint64
	AsOf        time.Time         // the server's clock when the content was current; zero: unknown
	Hash        [sha256.Size]byte // of the content; a fingerprint of it when the object is encrypted

	// What follows belongs to encrypted objects: docs/FORMAT.md, "Encryption".
	FormatVersion byte // zero when it is about to be written unencrypted
	fingerprintID [4]byte
	lock          lock
	clearLength   uint32
}

func (h Header) encrypted() bool { return h.FormatVersion == encryptedVersion }

// headerSize and the offsets below are docs/FORMAT.md, "Object header". Numbers are little-endian.
const (
	headerSize    = 64
	magic         = "PITR"
	formatVersion = 1
)

var (
	// ErrDamaged says that an object's bytes are not those that were written.
	ErrDamaged = errors.New("object is damaged")
	// ErrConflict says that a key holds other content than what was to be written: law 3.
	ErrConflict = errors.New("the key holds other content")

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func (h Header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	b[4], b[5], b[6] = max(formatVersion, h.FormatVersion), byte(h.Kind), byte(h.Codec)
	binary.LittleEndian.PutUint64(b[8:], h.PlainLength)
	if !h.AsOf.IsZero() {
		binary.LittleEndian.PutUint64(b[16:], uint64(h.AsOf.UnixMicro()))
	}
	copy(b[24:], h.Hash[:])
	copy(b[56:], h.fingerprintID[:])
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return b
}

func decodeHeader(b []byte, want Kind) (Header, error) {
	switch {
	case len(b) < headerSize:
		return Header{}, fmt.Errorf("%w: %d bytes are no header", ErrDamaged, len(b))
	case string(b[:4]) != magic:
		return Header{}, fmt.Errorf("%w: it does not begin with %s", ErrDamaged, magic)
	case crc32.Checksum(b[:60], castagnoli) != binary.LittleEndian.Uint32(b[60:]):
		return Header{}, fmt.Errorf("%w: its header's checksum is wrong", ErrDamaged)
	case b[4] != formatVersion && b[4] != encryptedVersion:
		return Header{}, fmt.Errorf("object has format version %d, this program reads %d and %d", b[4], formatVersion, encryptedVersion)
	}
	h := Header{Kind: Kind(b[5]), Codec: Codec(b[6]), FormatVersion: b[4], PlainLength: binary.LittleEndian.Uint64(b[8:])}
	if micros := int64(binary.LittleEndian.Uint64(b[16:])); micros != 0 {
		h.AsOf = time.UnixMicro(micros).UTC()
	}
	copy(h.Hash[:], b[24:])
	copy(h.fingerprintID[:], b[56:])
	if h.Kind != want {
		return Header{}, fmt.Errorf("%w: it is a %s, not a %s", ErrDamaged, h.Kind, want)
	}
	return h, nil
}

// seal makes the object that holds content, unencrypted.
func seal(kind Kind, asOf time.Time, content []byte, body []byte, codec Codec) []byte {
	d := newDraft(kind, asOf, content, body, codec)
	return append(d.header.encode(), body...)
}

// unseal returns the content of an unencrypted object after its length and hash have been compared. No more than max bytes are decoded.
func unseal(kind Kind, object []byte, max int64) ([]byte, Header, error) {
	h, err := decodeHeader(object, kind)
	if err != nil {
		return nil, h, err
	}
	if h.encrypted() {
		return nil, h, ErrNoIdentity
	}
	if h.PlainLength > uint64(max) {
		return nil, h, fmt.Errorf("%w: it says that it holds %d bytes, at most %d are expected", ErrDamaged, h.PlainLength, max)
	}
	content, err := h.Codec.decode(object[headerSize:], int64(h.PlainLength))
	if err != nil {
		return nil, h, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if sum := sha256.Sum256(content); uint64(len(content)) != h.PlainLength || !bytes.Equal(sum[:], h.Hash[:]) {
		return nil, h, fmt.Errorf("%w: the hash of its content is wrong", ErrDamaged)
	}
	return content, h, nil
}
