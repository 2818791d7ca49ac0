package auth

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xdg-go/scram"

	"pitr/config"
)

func login(t *testing.T, users *Users, name, password string) (salt string, err error) {
	t.Helper()
	client, err := scram.SHA256.NewClient(name, password, "")
	if err != nil {
		t.Fatal(err)
	}
	conversation, err := users.Begin(name)
	if err != nil {
		t.Fatal(err)
	}
	mine := client.NewConversation()
	said, err := mine.Step("")
	if err != nil {
		t.Fatal(err)
	}
	answer, done, err := conversation.Step([]byte(said))
	if err != nil || done {
		t.Fatal(done, err)
	}
	salt = strings.Split(string(answer), ",")[1]
	if said, err = mine.Step(string(answer)); err != nil {
		t.Fatal(err)
	}
	answer, done, err = conversation.Step([]byte(said))
	if err != nil {
		return salt, err
	}
	if _, err := mine.Step(string(answer)); err != nil || !done {
		t.Errorf("the client does not believe the server: %v, done %v", err, done)
	}
	return salt, nil
}

func TestUnknownUserAndWrongPasswordLookAlike(t *testing.T) {
	users, err := Load(config.Auth{Type: "scram-sha-256"}, map[string]config.User{"known": {Password: "right"}, "nopass": {}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := login(t, users, "known", "right"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"known", "unknown", "nopass"} {
		first, err := login(t, users, name, "wrong")
		if err != ErrRefused {
			t.Errorf("%s: %v", name, err)
		}
		if again, _ := login(t, users, name, "wrong"); again != first || len(first) != len("s=")+24 {
			t.Errorf("%s: the salt was %s and is %s", name, first, again)
		}
	}
}

// TestFirstMessagesThatAreRefused says the first messages of a client that knows the password, and wants more than to log in with it.
func TestFirstMessagesThatAreRefused(t *testing.T) {
	users, err := Load(config.Auth{Type: "scram-sha-256"}, map[string]config.User{"known": {Password: "right"}})
	if err != nil {
		t.Fatal(err)
	}
	begin := func(said string) error {
		conversation, err := users.Begin("known")
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = conversation.Step([]byte(said))
		return err
	}
	for _, said := range []string{"n,,n=,r=nonce", "y,,n=,r=nonce", "n,,n=somebody,r=nonce"} {
		if err := begin(said); err != nil {
			t.Errorf("%s: %v", said, err)
		}
	}
	for what, said := range map[string]string{
		"another identity":      "n,a=postgres,n=,r=nonce",
		"an empty identity":     "n,a=,n=,r=nonce",
		"channel binding":       "p=tls-server-end-point,,n=,r=nonce",
		"an unknown extension":  "n,,m=x,n=,r=nonce",
		"no nonce":              "n,,n=,r=",
		"a nonce with a blank":  "n,,n=,r=a b",
		"a nonce with controls": "n,,n=,r=a\x00b",
		"nothing":               "",
	} {
		if err := begin(said); err != ErrRefused {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzConversation(f *testing.F) {
	f.Add("n,,n=,r=nonce", "c=biws,r=nonce,p=AAAA")   // a proof that is too short
	f.Add("y,a=x,n=x,r=", "c=eSw9,r=")                // another identity
	f.Add("p=tls-unique,,n==2C,r=,", ",,,p=\xff====") // what is no SCRAM at all
	users, err := Load(config.Auth{Type: "scram-sha-256"}, map[string]config.User{"known": {Password: "right"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, first, final string) {
		for _, name := range []string{"known", "unknown"} {
			conversation, err := users.Begin(name)
			if err != nil {
				t.Fatal(err)
			}
			if _, done, err := conversation.Step([]byte(first)); err != nil || done {
				continue
			}
			if _, done, err := conversation.Step([]byte(final)); err != ErrRefused || done {
				t.Errorf("%q and %q let %s in", first, final, name)
			}
		}
	})
}

func TestSecretsThatAreNoUse(t *testing.T) {
	check := func(secret, want string) {
		t.Helper()
		_, err := Load(config.Auth{Type: "scram-sha-256"}, map[string]config.User{"u": {Password: config.Secret(secret)}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", secret, err)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
	check("md5d41d8cd98f00b204e9800998ecf8427e", "md5 secrets are not supported")
	check("SCRAM-SHA-256$4096:c2FsdA==$AAAA:AAAA", "malformed keys")
	check("SCRAM-SHA-256$4096:c2FsdA==", "malformed SCRAM")
	check("SCRAM-SHA-256$0:c2FsdA==$AAAA:AAAA", "iteration count")
	check("SCRAM-SHA-256$1:%%$AAAA:AAAA", "base64")
	if _, err := Load(config.Auth{Type: "scram-sha-256"}, nil); err == nil {
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
	users, err := Load(config.Auth{File: file}, map[string]config.User{"both": {Password: "three"}})
	if err != nil {
		t.Fatal(err)
	}
	if one, _ := users.Password("file"); one != "one" {
		t.Errorf("password of file is %q", one)
	}
	if both, _ := users.Password("both"); both != "three" {
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
			_, _ = newUser(entry.secret)
		}
	})
}
