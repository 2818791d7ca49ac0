package repo

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"filippo.io/age"
)

// Encryption says for whom a repository is encrypted, and how it is read. docs/FORMAT.md, "Encryption".
type Encryption struct {
	Recipients     []string // age recipients, for what is written; none: it is written as it is
	IdentityFile   string   // of age identities, for what is read; opened when the first encrypted object is; empty: none
	FingerprintKey string   // keys the hashes by which writers recognise content; empty: the recipients do
}

var (
	// ErrNoIdentity says that an object is encrypted and that nothing was given to open it with.
	ErrNoIdentity = errors.New("it is encrypted, and no identity is configured")
	// ErrWrongIdentity says that an object is encrypted for others.
	ErrWrongIdentity = errors.New("it is encrypted for other recipients than the identities that are configured")
	// ErrIncomparable says that a key is taken by an encrypted object of the right length, and that nobody here can tell what it holds.
	ErrIncomparable = errors.New("the key holds an encrypted object, and whether its content is the same cannot be told")
)

// crypt is the part of a Repo that knows about encryption.
type crypt struct {
	recipients   []age.Recipient // none: what is written is not encrypted
	identityFile string
	fingerprints *fingerprinter // nil: none can be made

	mu         sync.Mutex // guards what follows; held while keys are made and fetched, so that it is done once
	writing    *dataKey   // nil before the first encrypted object
	known      map[keyID][dataKeySize]byte
	identities []age.Identity // nil before the first encrypted object is read
}

// WithEncryption returns the repository with another way to encrypt and decrypt. It opens no file and asks the store nothing.
func (r *Repo) WithEncryption(opt Encryption) (*Repo, error) {
	c := &crypt{identityFile: opt.IdentityFile, known: map[keyID][dataKeySize]byte{}}
	for _, text := range opt.Recipients {
		parsed, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil {
			return nil, fmt.Errorf("recipient %q: %w", text, err)
		}
		c.recipients = append(c.recipients, parsed...)
	}
	if len(c.recipients) > 0 {
		// Some kinds of recipients do not go together; age says so only when it is asked to encrypt.
		if _, err := age.Encrypt(io.Discard, c.recipients...); err != nil {
			return nil, fmt.Errorf("recipients: %w", err)
		}
	}
	c.fingerprints = newFingerprinter(opt)
	changed := *r
	changed.crypt = c
	return &changed, nil
}

// Encrypts reports whether what is written is encrypted, so that the writer cannot read it back.
func (r *Repo) Encrypts() bool { return len(r.crypt.recipients) > 0 }

// NewIdentity makes a pair of keys: the secret one for an identity file, and the recipient that belongs to it.
func NewIdentity() (identity, recipient string, err error) {
	made, err := age.GenerateX25519Identity()
	if err != nil {
		return "", "", err
	}
	return made.String(), made.Recipient().String(), nil
}

// fingerprinter makes what stands in the header of an encrypted object in place of the hash of its content: whoever writes the same
// content again can recognise it, and whoever has only the bucket cannot test a guess.
type fingerprinter struct {
	key [sha256.Size]byte
	id  [4]byte // tells keys apart
}

func newFingerprinter(opt Encryption) *fingerprinter {
	f := &fingerprinter{}
	switch {
	case opt.FingerprintKey != "":
		f.key = sha256.Sum256([]byte("pitr fingerprint key\x00" + opt.FingerprintKey))
	case len(opt.Recipients) > 0:
		sorted := slices.Sorted(slices.Values(opt.Recipients))
		f.key = sha256.Sum256([]byte("pitr fingerprint recipients\x00" + strings.Join(sorted, "\x00")))
	default:
		return nil
	}
	copy(f.id[:], f.sum([]byte("id")))
	return f
}

func (f *fingerprinter) sum(parts ...[]byte) []byte {
	mac := hmac.New(sha256.New, f.key[:])
	for _, part := range parts {
		mac.Write(part)
	}
	return mac.Sum(nil)
}

// of is the fingerprint of the object of a key whose content has the hash.
func (f *fingerprinter) of(key string, hash [sha256.Size]byte) [sha256.Size]byte {
	return [sha256.Size]byte(f.sum([]byte(key), []byte{0}, hash[:]))
}
