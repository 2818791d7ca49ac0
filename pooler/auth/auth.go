// Package auth decides who may come in. It owns users and their secrets, the rules of an HBA file, and the conversation of a login,
// and knows nothing of sockets: it takes what the client said and returns what it is to be told. A user that does not exist and a
// wrong password look the same to the client and take the same time, down to the salt. Settings, methods and files follow PgBouncer's
// manual; SCRAM follows RFC 5802 and 7677 and src/backend/libpq/auth-scram.c.
package auth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/xdg-go/scram"

	"pitr/config"
)

const (
	// saltLen is SCRAM_DEFAULT_SALT_LEN in src/include/common/scram-common.h.
	saltLen = 16
	// iterations is SCRAM_SHA_256_DEFAULT_ITERATIONS in src/include/common/scram-common.h.
	iterations = 4096
)

// ErrRefused says that a login has failed. The client must not learn more than that.
var ErrRefused = errors.New("password authentication failed")

// Users is everybody who may log in, and how. It is safe for concurrent use.
type Users struct {
	method  Method
	rules   Rules
	idents  Idents
	users   map[string]*user
	queries *lookups     // nil without auth_query
	rounds  atomic.Int64 // of the secrets that are known; those of the others are made up to have as many
	scram   bool         // most secrets that are listed are no MD5 ones, as then those that are made up for pooler.auth.type md5
}

type user struct {
	name   string
	secret secret
	// once guards keys, which take a millisecond to derive of a plain password.
	once sync.Once
	keys scram.StoredCredentials
	err  error
}

// Load reads the users of the configuration and of its files; the configuration's own win. query is asked for users that are not
// listed; nil: they do not exist.
func Load(cfg config.Auth, listed map[string]config.User, query Query) (*Users, error) {
	method, known := types[cfg.Type]
	if !known {
		return nil, fmt.Errorf("pooler.auth.type %q is not known", cfg.Type)
	}
	u := &Users{method: method, users: map[string]*user{}}
	u.rounds.Store(iterations)
	if err := u.loadRules(cfg); err != nil {
		return nil, err
	}
	if err := u.loadUserlist(cfg.File); err != nil {
		return nil, err
	}
	for name, entry := range listed {
		added, err := newUser(name, entry.Password.Reveal())
		if err != nil {
			return nil, fmt.Errorf("pooler.users.%s: %w", name, err)
		}
		if entry.Password == "" && (u.users[name] != nil || query != nil) {
			continue // the entry is about something else: its secret is in the file, or in the database
		}
		u.users[name] = added
	}
	if query != nil {
		u.queries = &lookups{ask: query, max: cfg.QueryCacheMax, lifetime: cfg.QueryCacheLifetime.D(), entries: map[lookupKey]*lookup{}}
	}
	if u.asksForPasswords() && len(u.users) == 0 && query == nil {
		return nil, fmt.Errorf("pooler.auth.type is %s, but neither pooler.users nor pooler.auth.file names anybody who could log in, and pooler.auth.user is not set", cfg.Type)
	}
	u.survey()
	return u, u.prepare()
}

func (u *Users) asksForPasswords() bool {
	return u.method == MethodSCRAM || u.method == MethodMD5 || u.method == MethodPassword
}

func (u *Users) loadRules(cfg config.Auth) error {
	if u.method != methodHBA {
		return nil
	}
	if cfg.HBAFile == "" {
		return errors.New("pooler.auth.type is hba, but pooler.auth.hba_file is not set")
	}
	if cfg.IdentFile != "" {
		text, err := readFile(cfg.IdentFile)
		if err != nil {
			return fmt.Errorf("pooler.auth.ident_file: %w", err)
		}
		if u.idents, err = ParseIdents(cfg.IdentFile, text); err != nil {
			return fmt.Errorf("pooler.auth.ident_file: %w", err)
		}
	}
	text, err := readFile(cfg.HBAFile)
	if err != nil {
		return fmt.Errorf("pooler.auth.hba_file: %w", err)
	}
	if u.rules, err = ParseRules(cfg.HBAFile, text, readFile, u.idents); err != nil {
		return fmt.Errorf("pooler.auth.hba_file: %w", err)
	}
	return nil
}

// readFile reads a file of rules, of which only so much is held as may be in one.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > rulesLenMax {
		return nil, fmt.Errorf("%s: is no file, or has more than %d bytes", path, rulesLenMax)
	}
	return os.ReadFile(path)
}

func (u *Users) loadUserlist(path string) error {
	if path == "" {
		return nil
	}
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("pooler.auth.file: %w", err)
	}
	defer file.Close()
	entries, err := parseUserlist(file)
	if err != nil {
		return fmt.Errorf("pooler.auth.file: %s: %w", path, err)
	}
	for _, entry := range entries {
		if u.users[entry.name], err = newUser(entry.name, entry.secret); err != nil {
			return fmt.Errorf("pooler.auth.file: %s: user %q: %w", path, entry.name, err)
		}
	}
	return nil
}

func newUser(name, text string) (*user, error) {
	stored, err := parseSecret(text)
	if err != nil {
		return nil, err
	}
	return &user{name: name, secret: stored}, nil
}

// survey finds out what most secrets look like, which is then what those of users who do not exist look like.
func (u *Users) survey() {
	rounds, md5s := map[int]int{}, 0
	for _, one := range u.users {
		switch one.secret.kind {
		case kindSCRAM:
			rounds[one.secret.keys.Iters]++
		case kindMD5:
			md5s++
		case kindPlain:
			rounds[iterations]++
			md5s++ // it answers to MD5 where that is asked for
		}
	}
	most := 0
	for count, n := range rounds {
		if n > most || n == most && count < int(u.rounds.Load()) {
			most = n
			u.rounds.Store(int64(count))
		}
	}
	u.scram = 2*md5s <= len(u.users)
}

// prepare derives the keys of plain passwords at once where they may be needed: who is the first to log in as somebody could else see by
// the time it takes that there is such a user.
func (u *Users) prepare() error {
	if u.method != MethodSCRAM && u.method != MethodPassword && u.method != methodHBA {
		return nil
	}
	var work sync.WaitGroup
	var failed atomic.Pointer[error]
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	for _, one := range u.users {
		if one.secret.kind != kindPlain {
			continue
		}
		slots <- struct{}{}
		work.Go(func() {
			if _, err := u.keysOf(one); err != nil {
				failed.Store(&err)
			}
			<-slots
		})
	}
	work.Wait()
	if err := failed.Load(); err != nil {
		return fmt.Errorf("derive the keys of a password: %w", *err)
	}
	return nil
}

// Credentials is what is known of a user that lets us log in to a server in its name.
type Credentials struct {
	Plain string
	MD5   string // as in pg_authid.rolpassword
	SCRAM *Keys
}

// Keys are those of a SCRAM secret, of which the client's is learnt when it logs in.
type Keys struct {
	ClientKey, ServerKey []byte
	Salt                 []byte
	Iterations           int
}

// Stored returns what the stored secret of a listed user allows by itself.
func (u *Users) Stored(name string) Credentials {
	if found := u.users[name]; found != nil {
		return found.credentials(nil)
	}
	return Credentials{}
}

func (one *user) credentials(clientKey []byte) Credentials {
	switch one.secret.kind {
	case kindPlain:
		return Credentials{Plain: one.secret.text}
	case kindMD5:
		return Credentials{MD5: one.secret.text}
	case kindSCRAM:
		if clientKey != nil {
			keys := one.secret.keys
			return Credentials{SCRAM: &Keys{ClientKey: clientKey, ServerKey: keys.ServerKey, Salt: []byte(keys.Salt), Iterations: keys.Iters}}
		}
	}
	return Credentials{}
}

// roundsLearntMax bounds the iterations that are made up because auth_query has told of somebody who has as many: whoever may set its own
// password in Postgres could else make each login here as expensive as it likes.
const roundsLearntMax = 100_000

// find returns the user, or nil if there is none.
func (u *Users) find(ctx context.Context, ask Request) (*user, error) {
	if found := u.users[ask.User]; found != nil || u.queries == nil || ask.Lookup == "" {
		return found, nil
	}
	return u.queries.find(ctx, ask.Lookup, ask.User, func(text string) (*user, error) {
		found, err := newUser(ask.User, text)
		if err != nil {
			return nil, err
		}
		// What was asked for costs the keys of one plain password, whatever the answer was.
		password := found.secret.text
		if found.secret.kind == kindSCRAM && found.secret.keys.Iters <= roundsLearntMax {
			u.rounds.Store(int64(found.secret.keys.Iters))
		}
		keys, err := credentialsOf(password, u.factors(ask.User))
		if found.secret.kind == kindPlain {
			found.once.Do(func() { found.keys, found.err = keys, err })
		}
		return found, nil
	})
}

// QueryCacheOverflows counts how often somebody was forgotten because of pooler.auth.query_cache_max.
func (u *Users) QueryCacheOverflows() uint64 {
	if u.queries == nil {
		return 0
	}
	u.queries.mu.Lock()
	defer u.queries.mu.Unlock()
	return u.queries.overflows
}

// keysOf returns what a SCRAM login of the user is held against. For one that does not exist, or has no such secret, these are keys that
// nothing fits. Compare mock_scram_secret in src/backend/libpq/auth-scram.c.
func (u *Users) keysOf(one *user) (scram.StoredCredentials, error) {
	switch {
	case one.secret.kind == kindSCRAM:
		return one.secret.keys, nil
	case one.secret.kind == kindPlain:
		one.once.Do(func() { one.keys, one.err = credentialsOf(one.secret.text, u.factors(one.name)) })
		return one.keys, one.err
	}
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // crypto/rand never fails
	return scram.StoredCredentials{KeyFactors: u.factors(one.name), StoredKey: key, ServerKey: key}, nil
}

// mock makes up the salts of users who do not exist. It stays what it is when users are read again.
var mock = sync.OnceValue(func() (secret [32]byte) {
	_, _ = rand.Read(secret[:]) // crypto/rand never fails
	return secret
})

// factors are salt and iterations for a name that has none: the same each time for as long as the process lives.
func (u *Users) factors(name string) scram.KeyFactors {
	secret := mock()
	mac := hmac.New(sha256.New, secret[:])
	mac.Write([]byte(name))
	return scram.KeyFactors{Salt: string(mac.Sum(nil)[:saltLen]), Iters: int(u.rounds.Load())}
}
