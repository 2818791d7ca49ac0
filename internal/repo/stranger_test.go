package repo

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"filippo.io/age"
)

// encrypted reads an object by "Encryption". It knows the fingerprint key of the test, which a reader does not need.
func (s *stranger) encrypted(key string, kind byte, b []byte) ([]byte, error) {
	if len(b) < 128 || binary.LittleEndian.Uint32(b[124:]) != crc32.Checksum(b[:124], crc32.MakeTable(crc32.Castagnoli)) {
		return nil, fmt.Errorf("%s: no header of an encrypted object", key)
	}
	if b[5] != kind || b[7] != 0 || !bytes.Equal(b[100:124], make([]byte, 24)) {
		return nil, fmt.Errorf("%s: kind %d, or what should be zero is not", key, b[5])
	}
	at := 128 + int(binary.LittleEndian.Uint32(b[96:]))
	additional := sha256.Sum256(b[:at])
	aead, err := s.cipher(key, b[64:80], b[80:96])
	if err != nil {
		return nil, err
	}
	var body []byte
	for last := false; !last; {
		end := min(at+65536+16, len(b))
		last = end == len(b)
		nonce := binary.LittleEndian.AppendUint64(nil, uint64(at))
		if last {
			nonce = append(nonce, 1, 0, 0, 0)
		} else {
			nonce = append(nonce, 0, 0, 0, 0)
		}
		chunk, err := aead.Open(nil, nonce, b[at:end], additional[:])
		if err != nil {
			return nil, fmt.Errorf("%s: byte %d: %w", key, at, err)
		}
		body, at = append(body, chunk...), end
	}
	if b[6] == 1 {
		if body, err = frames(body); err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
	}
	if uint64(len(body)) != binary.LittleEndian.Uint64(b[8:]) {
		return nil, fmt.Errorf("%s: the content is not as long as the header says", key)
	}
	return body, checkFingerprint(key, body, b)
}

func checkFingerprint(key string, content, header []byte) error {
	secret := sha256.Sum256([]byte("pitr fingerprint key\x00hush, hush, hush"))
	sum := func(text []byte) []byte {
		mac := hmac.New(sha256.New, secret[:])
		mac.Write(text)
		return mac.Sum(nil)
	}
	hash := sha256.Sum256(content)
	if !bytes.Equal(sum(append([]byte(key+"\x00"), hash[:]...)), header[24:56]) || !bytes.Equal(sum([]byte("id"))[:4], header[56:60]) {
		return fmt.Errorf("%s: the fingerprint is another one", key)
	}
	return nil
}

// cipher is that of an object, by "Key of an object".
func (s *stranger) cipher(key string, id, salt []byte) (cipher.AEAD, error) {
	wraps, err := filepath.Glob(filepath.Join(s.root, "keys", hex.EncodeToString(id), "*"))
	if err != nil || len(wraps) == 0 {
		return nil, fmt.Errorf("%s: no data key %x (%v)", key, id, err)
	}
	wrapped, err := os.ReadFile(wraps[0])
	if err != nil {
		return nil, err
	}
	identity, err := age.ParseX25519Identity(s.identity)
	if err != nil {
		return nil, err
	}
	plain, err := age.Decrypt(bytes.NewReader(wrapped), identity)
	if err != nil {
		return nil, err
	}
	dataKey, err := io.ReadAll(plain)
	if err != nil || len(dataKey) != 32 {
		return nil, fmt.Errorf("%s: a data key of %d bytes, %v", key, len(dataKey), err)
	}
	objectKey, err1 := hkdf.Key(sha256.New, dataKey, salt, "pitr object\x00"+key, 32)
	block, err2 := aes.NewCipher(objectKey)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// frame decrypts one frame of a pack.
func (s *stranger) frame(key, lock string, offset int, frame []byte) ([]byte, error) {
	b, err := hex.DecodeString(lock)
	if err != nil || len(b) != 32 {
		return nil, fmt.Errorf("%s: lock %q", key, lock)
	}
	aead, err := s.cipher(key, b[:16], b[16:])
	if err != nil {
		return nil, err
	}
	nonce := append(binary.LittleEndian.AppendUint64(nil, uint64(offset)), 2, 0, 0, 0)
	return aead.Open(nil, nonce, frame, nil)
}
