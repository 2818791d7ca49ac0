package auth

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/xdg-go/scram"

	"pitr/config"
)

// begin starts the login of a user, which has to be by SCRAM.
func begin(t testing.TB, users *Users, ask Request, mechanism string) *Login {
	t.Helper()
	login, err := users.Begin(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	if login.Challenge != ChallengeSASL {
		t.Fatalf("the challenge is %d", login.Challenge)
	}
	if err := login.Choose(mechanism); err != nil {
		t.Fatal(err)
	}
	return login
}

// login plays a client that knows a password. The error is not nil if it is refused.
func login(t *testing.T, users *Users, name, password string) (salt string, shown Credentials, err error) {
	t.Helper()
	client, err := scram.SHA256.NewClient(name, password, "")
	if err != nil {
		t.Fatal(err)
	}
	conversation := begin(t, users, Request{User: name, Lookup: "db"}, Mechanism)
	mine := client.WithMinIterations(1).NewConversation()
	said, err := mine.Step("")
	if err != nil {
		t.Fatal(err)
	}
	answer, done, err := conversation.Step([]byte(said))
	if err != nil || done {
		t.Fatal(done, err)
	}
	_, salt, _ = strings.Cut(string(answer), ",")
	if said, err = mine.Step(string(answer)); err != nil {
		t.Fatal(err)
	}
	answer, done, err = conversation.Step([]byte(said))
	if err != nil {
		return salt, Credentials{}, err
	}
	if _, err := mine.Step(string(answer)); err != nil || !done {
		t.Errorf("the client does not believe the server: %v, done %v", err, done)
	}
	return salt, conversation.Credentials(), nil
}

func load(t testing.TB, cfg config.Auth, listed map[string]config.User) *Users {
	t.Helper()
	users, err := Load(cfg, listed, nil)
	if err != nil {
		t.Fatal(err)
	}
	return users
}

// isRefused reports whether the client is told the one thing that it may know.
func isRefused(err error, name string) bool {
	var denial *Denial
	return errors.As(err, &denial) && *denial == *passwordFailed(name)
}

func TestUnknownUserAndWrongPasswordLookAlike(t *testing.T) {
	secret := scramSecret(t, "right", 5000)
	users := load(t, config.Auth{Type: "scram-sha-256"}, map[string]config.User{
		"known": {Password: "right"}, "nopass": {}, "md5": {Password: config.Secret(md5Secret("right", "md5"))},
		"stored": {Password: config.Secret(secret)}, "stored2": {Password: config.Secret(secret)},
	})
	for _, name := range []string{"known", "stored"} {
		if _, _, err := login(t, users, name, "right"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"known", "unknown", "nopass", "md5", "stored"} {
		first, _, err := login(t, users, name, "wrong")
		if !isRefused(err, name) {
			t.Errorf("%s: %v", name, err)
		}
		if again, _, _ := login(t, users, name, "wrong"); again != first || len(first) != len("s=,i=5000")+24 || !strings.HasSuffix(first, ",i=5000") {
			t.Errorf("%s: salt and iterations were %s and are %s", name, first, again)
		}
	}
}

// scramSecret is what pg_authid.rolpassword would hold.
func scramSecret(t testing.TB, password string, iterations int) string {
	t.Helper()
	keys, err := credentialsOf(password, scram.KeyFactors{Salt: "0123456789abcdef", Iters: iterations})
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, encode([]byte(keys.Salt)), encode(keys.StoredKey), encode(keys.ServerKey))
}

// TestClientKeyIsLearnt holds that the key of a login opens the same secret elsewhere.
func TestClientKeyIsLearnt(t *testing.T) {
	users := load(t, config.Auth{Type: "scram-sha-256"}, map[string]config.User{"u": {Password: config.Secret(scramSecret(t, "right", 4096))}})
	_, shown, err := login(t, users, "u", "right")
	if err != nil || shown.SCRAM == nil {
		t.Fatal(shown, err)
	}
	keys := users.users["u"].secret.keys
	if sum := sha256.Sum256(shown.SCRAM.ClientKey); !bytes.Equal(sum[:], keys.StoredKey) || !bytes.Equal(shown.SCRAM.ServerKey, keys.ServerKey) {
		t.Error("the keys do not fit the secret")
	}
	plain := load(t, config.Auth{Type: "plain"}, map[string]config.User{"u": {Password: config.Secret(scramSecret(t, "right", 4096))}})
	ask, err := plain.Begin(t.Context(), Request{User: "u"})
	if err != nil || ask.Challenge != ChallengePassword {
		t.Fatal(err)
	}
	if err := ask.Password("right"); err != nil || !reflect.DeepEqual(ask.Credentials(), shown) {
		t.Errorf("a plain password shows %v, %v", ask.Credentials(), err)
	}
}

// TestSecretsOfEachKindWithEachMethod is PgBouncer's table: what a stored secret is good for, with its wrong twin.
func TestSecretsOfEachKindWithEachMethod(t *testing.T) {
	listed := map[string]config.User{
		"plain": {Password: "right"}, "md5": {Password: config.Secret(md5Secret("right", "md5"))}, "scram": {Password: config.Secret(scramSecret(t, "right", 4096))}, "none": {},
	}
	try := func(method, name, password string) (Challenge, error) {
		t.Helper()
		users := load(t, config.Auth{Type: method}, listed)
		ask, err := users.Begin(t.Context(), Request{User: name})
		if err != nil {
			t.Fatal(err)
		}
		switch ask.Challenge {
		case ChallengePassword:
			return ask.Challenge, ask.Password(password)
		case ChallengeMD5:
			return ask.Challenge, ask.MD5(md5Answer(md5Secret(password, name), ask.Salt))
		}
		_, _, err = login(t, users, name, password)
		return ask.Challenge, err
	}
	check := func(method, name string, asked Challenge, good bool) {
		t.Helper()
		got, err := try(method, name, "right")
		if got != asked || good != (err == nil) || !good && !isRefused(err, name) {
			t.Errorf("%s with %s: asked for %d, %v", method, name, got, err)
		}
		for _, wrong := range []string{"wrong", ""} {
			if got, err := try(method, name, wrong); got != asked || !isRefused(err, name) {
				t.Errorf("%s with %s and the password %q: asked for %d, %v", method, name, wrong, got, err)
			}
		}
	}
	check("plain", "plain", ChallengePassword, true)
	check("plain", "md5", ChallengePassword, true)
	check("plain", "scram", ChallengePassword, true)
	check("plain", "none", ChallengePassword, false)
	check("plain", "nobody", ChallengePassword, false)
	check("md5", "plain", ChallengeMD5, true)
	check("md5", "md5", ChallengeMD5, true)
	check("md5", "scram", ChallengeSASL, true)
	check("md5", "nobody", ChallengeSASL, false)
	check("scram-sha-256", "plain", ChallengeSASL, true)
	check("scram-sha-256", "md5", ChallengeSASL, false)
	check("scram-sha-256", "scram", ChallengeSASL, true)
	check("scram-sha-256", "none", ChallengeSASL, false)
	check("scram-sha-256", "nobody", ChallengeSASL, false)
}

// TestFirstMessagesThatAreRefused says the first messages of a client that knows the password, and wants more than to log in with it.
func TestFirstMessagesThatAreRefused(t *testing.T) {
	users := load(t, config.Auth{Type: "scram-sha-256"}, map[string]config.User{"known": {Password: "right"}})
	plain, secure := Origin{}, Origin{TLS: true, Binding: []byte("the hash of a certificate")}
	say := func(said, mechanism string, from Origin) error {
		_, _, err := begin(t, users, Request{User: "known", From: from}, mechanism).Step([]byte(said))
		return err
	}
	for _, said := range []string{"n,,n=,r=nonce", "y,,n=,r=nonce", "n,,n=somebody,r=nonce"} {
		if err := say(said, Mechanism, plain); err != nil {
			t.Errorf("%s: %v", said, err)
		}
	}
	if err := say("p=tls-server-end-point,,n=,r=nonce", MechanismPlus, secure); err != nil {
		t.Error(err)
	}
	if err := say("n,,n=,r=nonce", Mechanism, secure); err != nil {
		t.Error(err)
	}
	check := func(what, said, mechanism string, from Origin) {
		t.Helper()
		if err := say(said, mechanism, from); !isRefused(err, "known") {
			t.Errorf("%s: %v", what, err)
		}
	}
	check("another identity", "n,a=postgres,n=,r=nonce", Mechanism, plain)
	check("an empty identity", "n,a=,n=,r=nonce", Mechanism, plain)
	check("channel binding that was not offered", "p=tls-server-end-point,,n=,r=nonce", Mechanism, plain)
	check("an unknown extension", "n,,m=x,n=,r=nonce", Mechanism, plain)
	check("no nonce", "n,,n=,r=", Mechanism, plain)
	check("a nonce with a blank", "n,,n=,r=a b", Mechanism, plain)
	check("a nonce with controls", "n,,n=,r=a\x00b", Mechanism, plain)
	check("nothing", "", Mechanism, plain)
	check("somebody in the middle has removed the offer", "y,,n=,r=nonce", Mechanism, secure)
	check("channel binding with the other mechanism", "p=tls-server-end-point,,n=,r=nonce", Mechanism, secure)
	check("the mechanism without its channel binding", "n,,n=,r=nonce", MechanismPlus, secure)
	check("another channel binding", "p=tls-unique,,n=,r=nonce", MechanismPlus, secure)
	ask, err := users.Begin(t.Context(), Request{User: "known"})
	if err != nil {
		t.Fatal(err)
	}
	if err := ask.Choose(MechanismPlus); err == nil {
		t.Error("channel binding was chosen where there is none")
	}
}

func FuzzConversation(f *testing.F) {
	f.Add("n,,n=,r=nonce", "c=biws,r=nonce,p=AAAA")   // a proof that is too short
	f.Add("y,a=x,n=x,r=", "c=eSw9,r=")                // another identity
	f.Add("p=tls-unique,,n==2C,r=,", ",,,p=\xff====") // what is no SCRAM at all
	users := load(f, config.Auth{Type: "scram-sha-256"}, map[string]config.User{"known": {Password: "right"}})
	f.Fuzz(func(t *testing.T, first, final string) {
		for _, name := range []string{"known", "unknown"} {
			conversation := begin(t, users, Request{User: name}, Mechanism)
			if _, done, err := conversation.Step([]byte(first)); err != nil || done {
				continue
			}
			if _, done, err := conversation.Step([]byte(final)); !isRefused(err, name) || done {
				t.Errorf("%q and %q let %s in", first, final, name)
			}
		}
	})
}

func TestSecretsThatAreNoUse(t *testing.T) {
	check := func(secret, want string) {
		t.Helper()
		_, err := Load(config.Auth{Type: "scram-sha-256"}, map[string]config.User{"u": {Password: config.Secret(secret)}}, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", secret, err)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
	check("SCRAM-SHA-256$4096:c2FsdA==$AAAA:AAAA", "malformed keys")
	check("SCRAM-SHA-256$4096:c2FsdA==", "malformed SCRAM")
	check("SCRAM-SHA-256$0:c2FsdA==$AAAA:AAAA", "iteration count")
	check("SCRAM-SHA-256$1:%%$AAAA:AAAA", "base64")
	if _, err := Load(config.Auth{Type: "scram-sha-256"}, nil, nil); err == nil {
		t.Error("nobody could log in, and that is no error")
	}
}

func TestUserlistIsPgBouncers(t *testing.T) {
	check := func(text string, want ...entry) {
		t.Helper()
		got, err := parseUserlist(strings.NewReader(text))
		if len(want) == 0 && err == nil {
			t.Errorf("%q was accepted: %v", text, got)
		}
		if len(want) > 0 && (err != nil || len(got) != len(want) || got[0] != want[0] || got[len(got)-1] != want[len(want)-1]) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	check("\"a\" \"b\"\n", entry{"a", "b"})
	check("; comment\n\n# comment\n\"a\" \"b\" more\r\n\"c\"\t\"\"", entry{"a", "b"}, entry{"c", ""})
	check(`"quo""ted" "pass""word"`, entry{`quo"ted`, `pass"word`})
	check(`a "b"`)
	check(`"a" b`)
	check(`"a" "b`)
	check(`"a`)
	check("\"a\" \"b\"\n\"a\" \"c\"")
	file := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(file, []byte(`"file" "one"`+"\n"+`"both" "two"`), 0o600); err != nil {
		t.Fatal(err)
	}
	users := load(t, config.Auth{Type: "trust", File: file}, map[string]config.User{"both": {Password: "three"}, "file": {PoolMode: "session"}})
	if one := users.Stored("file").Plain; one != "one" {
		t.Errorf("password of file is %q", one)
	}
	if both := users.Stored("both").Plain; both != "three" {
		t.Errorf("password of both is %q", both)
	}
}

func FuzzUserlist(f *testing.F) {
	f.Add("\"a\" \"b\"")                    // one user
	f.Add("\"a\"\"\" \"SCRAM-SHA-256$1:\"") // a quote in the name, half a secret
	f.Add("; nothing\n\"")                  // a comment, an open quote
	f.Fuzz(func(t *testing.T, text string) {
		entries, err := parseUserlist(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, entry := range entries {
			if entry.name == "" {
				t.Error("a user without a name")
			}
			_, _ = newUser(entry.name, entry.secret)
		}
	})
}
