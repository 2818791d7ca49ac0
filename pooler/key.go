package pooler

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"fmt"

	"pitr/internal/pgwire"
)

// Lengths of the secret part of cancel keys in bytes: MyCancelKeyLength of PostgreSQL 18, which is MAX_CANCEL_KEY_LENGTH in src/include/storage/procsignal.h
// for those who speak protocol 3.2, and four for others. A client takes up to 256 ("BackendKeyData" in the manual).
const (
	shortSecret = 4
	longSecret  = 32
)

// cancelKey is what a cancel request has to know besides the process id.
type cancelKey struct {
	random [longSecret]byte
	long   bool // all of it, for clients that speak protocol 3.2
}

// secret is valid as long as the key.
func (k *cancelKey) secret() []byte {
	if k.long {
		return k.random[:]
	}
	return k.random[:shortSecret]
}

// opens compares in a time that tells nothing of the key but its length, which is no secret.
func (k *cancelKey) opens(secret []byte) bool {
	return subtle.ConstantTimeCompare(secret, k.secret()) == 1
}

// newKey returns a process id that nobody has, and a key. The caller has mu.
func (p *Pooler) newKey(version uint32) (id uint32, key cancelKey, err error) {
	var random [4]byte
	for id == 0 || p.clients[id] != nil || p.consoles[id] != nil {
		if _, err := rand.Read(random[:]); err != nil {
			return 0, key, fmt.Errorf("random cancel key: %w", err)
		}
		id = binary.BigEndian.Uint32(random[:]) >> 1 // a positive int32, as clients expect
	}
	if _, err := rand.Read(key.random[:]); err != nil {
		return 0, key, fmt.Errorf("random cancel key: %w", err)
	}
	key.long = version >= pgwire.Version32
	if len(p.peers) > 0 {
		key.random[hopsByte] |= hopsMask
	}
	return id, key, nil
}
