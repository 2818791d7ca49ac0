// Package auth decides who may come in. It owns users and their secrets and the conversation of a login, and knows nothing of
// sockets: it takes what the client said and returns what it is to be told. A user that does not exist and a wrong password look
// the same to the client, down to the salt. SCRAM follows RFC 5802 and 7677 and src/backend/libpq/auth-scram.c.
package auth

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/xdg-go/scram"

	"pitr/config"
)

// Mechanism is the only SASL mechanism that is offered.
const Mechanism = "SCRAM-SHA-256"

const (
	// MessageLenMax is PG_MAX_SASL_MESSAGE_LENGTH in src/include/libpq/sasl.h, the longest answer of a client that is read.
	MessageLenMax = 1024
	// saltLen is SCRAM_DEFAULT_SALT_LEN in src/include/common/scram-common.h.
	saltLen = 16
	// iterations is SCRAM_SHA_256_DEFAULT_ITERATIONS in src/include/common/scram-common.h.
	iterations = 4096
)

// ErrRefused says that a login has failed. The client must not learn more than that.
var ErrRefused = errors.New("password authentication failed")

// Users is everybody who may log in. It is safe for concurrent use.
type Users struct {
	trust bool
	users map[string]*user
	mock  [32]byte // makes up the salts of users who do not exist
}

type user struct {
	plain string // empty when only the secret is known
	// once guards credentials of a plain password, which take a millisecond to derive.
	once        sync.Once
	credentials scram.StoredCredentials
	err         error
}

// Load reads the users of the configuration and of its userlist file; the configuration's own win.
func Load(cfg config.Auth, listed map[string]config.User) (*Users, error) {
	u := &Users{trust: cfg.Type == "trust", users: map[string]*user{}}
	if _, err := rand.Read(u.mock[:]); err != nil {
		return nil, fmt.Errorf("random salt: %w", err)
	}
	if cfg.File != "" {
		file, err := os.Open(cfg.File)
		if err != nil {
			return nil, fmt.Errorf("pooler.auth.file: %w", err)
		}
		defer file.Close()
		entries, err := parseUserlist(file)
		if err != nil {
			return nil, fmt.Errorf("pooler.auth.file: %s: %w", cfg.File, err)
		}
		for _, entry := range entries {
			if u.users[entry.name], err = newUser(entry.secret); err != nil {
				return nil, fmt.Errorf("pooler.auth.file: %s: user %q: %w", cfg.File, entry.name, err)
			}
		}
	}
	for name, entry := range listed {
		added, err := newUser(entry.Password.Reveal())
		if err != nil {
			return nil, fmt.Errorf("pooler.users.%s: %w", name, err)
		}
		u.users[name] = added
	}
	if !u.trust && len(u.users) == 0 {
		return nil, errors.New("pooler.auth.type is scram-sha-256, but neither pooler.users nor pooler.auth.file names anybody who could log in")
	}
	return u, nil
}

func newUser(secret string) (*user, error) {
	if isMD5(secret) {
		return nil, errors.New("md5 secrets are not supported: set the password again with password_encryption = 'scram-sha-256'")
	}
	credentials, isSecret, err := parseSecret(secret)
	if err != nil {
		return nil, err
	}
	if isSecret {
		u := &user{credentials: credentials}
		u.once.Do(func() {})
		return u, nil
	}
	return &user{plain: secret}, nil
}

// Password returns the plain password of a user where it is known.
func (u *Users) Password(name string) (string, bool) {
	found := u.users[name]
	if found == nil || found.plain == "" {
		return "", false
	}
	return found.plain, true
}

// Trusted reports whether the user may come in without a conversation. refused means that it may not come in at all.
func (u *Users) Trusted(name string) (trusted, refused bool) {
	if !u.trust {
		return false, false
	}
	return true, len(u.users) > 0 && u.users[name] == nil
}

// Conversation is one login with SCRAM.
type Conversation struct {
	scram *scram.ServerConversation
	begun bool
}

// Begin starts the login of a user, whether it exists or not. As in Postgres, the name that counts is that of the startup packet
// and not the one inside SCRAM's messages.
func (u *Users) Begin(name string) (*Conversation, error) {
	server, err := scram.SHA256.NewServer(func(string) (scram.StoredCredentials, error) { return u.credentials(name) })
	if err != nil {
		return nil, fmt.Errorf("scram: %w", err)
	}
	return &Conversation{scram: server.NewConversation()}, nil
}

// Step takes what the client said and returns what it is to be told. done means that the client is who it says.
func (c *Conversation) Step(said []byte) (answer []byte, done bool, err error) {
	if !c.begun && !acceptable(string(said)) {
		return nil, false, ErrRefused
	}
	c.begun = true
	text, err := c.scram.Step(string(said))
	if err != nil {
		return nil, false, ErrRefused
	}
	return []byte(text), c.scram.Valid(), nil
}

// acceptable checks of a client's first message what xdg-go/scram leaves open and read_client_first_message in
// src/backend/libpq/auth-scram.c does not: no channel binding, nobody else's identity, and a nonce of printable characters.
func acceptable(first string) bool {
	if !strings.HasPrefix(first, "n,,") && !strings.HasPrefix(first, "y,,") {
		return false
	}
	_, nonce, _ := strings.Cut(first, ",r=")
	nonce, _, _ = strings.Cut(nonce, ",")
	for i := range len(nonce) {
		if nonce[i] <= ' ' || nonce[i] > '~' {
			return false
		}
	}
	return nonce != ""
}

func (u *Users) credentials(name string) (scram.StoredCredentials, error) {
	found := u.users[name]
	if found == nil || found.plain == "" && found.credentials.Salt == "" {
		return u.mockCredentials(name), nil
	}
	found.once.Do(func() { found.credentials, found.err = derive(name, found.plain) })
	return found.credentials, found.err
}

func derive(name, plain string) (scram.StoredCredentials, error) {
	var salt [saltLen]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return scram.StoredCredentials{}, err
	}
	client, err := scram.SHA256.NewClient(name, plain, "")
	if err != nil {
		// A password that SASLprep does not accept is used as it is, as in pg_be_scram_build_secret of auth-scram.c.
		if client, err = scram.SHA256.NewClientUnprepped(name, plain, ""); err != nil {
			return scram.StoredCredentials{}, err
		}
	}
	return client.GetStoredCredentialsWithError(scram.KeyFactors{Salt: string(salt[:]), Iters: iterations})
}

// mockCredentials are those of a user who does not exist: the same salt each time, and keys that nothing fits. Compare
// mock_scram_secret in src/backend/libpq/auth-scram.c.
func (u *Users) mockCredentials(name string) scram.StoredCredentials {
	mac := hmac.New(sha256.New, u.mock[:])
	mac.Write([]byte(name))
	sum := mac.Sum(nil)
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // crypto/rand never fails
	return scram.StoredCredentials{KeyFactors: scram.KeyFactors{Salt: string(sum[:saltLen]), Iters: iterations}, StoredKey: key, ServerKey: key}
}
