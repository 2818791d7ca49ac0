package auth

import (
	"crypto/md5"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"

	"github.com/xdg-go/scram"
)

// kind says in which form a password is known.
type kind uint8

const (
	kindNone kind = iota // it is not: no password fits
	kindPlain
	kindMD5
	kindSCRAM
)

// secret is a password as it is stored.
type secret struct {
	kind kind
	text string                  // plain, or md5 and 32 digits
	keys scram.StoredCredentials // of a SCRAM secret
}

// parseSecret reads a secret as pg_authid.rolpassword or a plain text holds it; see get_password_type in src/backend/libpq/crypt.c.
// Its errors do not show the secret.
func parseSecret(text string) (secret, error) {
	switch {
	case text == "":
		return secret{}, nil
	case isMD5(text):
		return secret{kind: kindMD5, text: text}, nil
	}
	body, found := strings.CutPrefix(text, Mechanism+"$")
	if !found {
		return secret{kind: kindPlain, text: text}, nil
	}
	keys, err := parseSCRAM(body)
	return secret{kind: kindSCRAM, keys: keys}, err
}

// isMD5 follows get_password_type in src/backend/libpq/crypt.c.
func isMD5(text string) bool {
	digits, found := strings.CutPrefix(text, "md5")
	return found && len(digits) == 32 && strings.Trim(digits, "0123456789abcdef") == ""
}

// iterationsMax bounds the work factor of a secret that was configured.
const iterationsMax = 10_000_000

// parseSCRAM reads <iterations>:<salt>$<StoredKey>:<ServerKey>, the rest of the form of pg_authid.rolpassword; see
// parse_scram_secret in src/backend/libpq/auth-scram.c.
func parseSCRAM(body string) (keys scram.StoredCredentials, err error) {
	parts := strings.FieldsFunc(body, func(c rune) bool { return c == '$' || c == ':' })
	if len(parts) != 4 {
		return keys, errors.New("malformed SCRAM-SHA-256 secret")
	}
	count, err := strconv.Atoi(parts[0])
	if err != nil || count < 1 || count > iterationsMax {
		return keys, errors.New("malformed iteration count in the SCRAM-SHA-256 secret")
	}
	var decoded [3][]byte
	for i, part := range parts[1:] {
		if decoded[i], err = base64.StdEncoding.DecodeString(part); err != nil {
			return keys, errors.New("malformed base64 in the SCRAM-SHA-256 secret")
		}
	}
	if len(decoded[0]) == 0 || len(decoded[1]) != sha256.Size || len(decoded[2]) != sha256.Size {
		return keys, errors.New("malformed keys in the SCRAM-SHA-256 secret")
	}
	return scram.StoredCredentials{
		KeyFactors: scram.KeyFactors{Salt: string(decoded[0]), Iters: count}, StoredKey: decoded[1], ServerKey: decoded[2],
	}, nil
}

// md5Secret is what pg_authid.rolpassword holds of a password: pg_md5_encrypt in src/common/md5_common.c.
func md5Secret(password, user string) string { return "md5" + md5Hex(password+user) }

func md5Hex(text string) string {
	sum := md5.Sum([]byte(text))
	return hex.EncodeToString(sum[:])
}

// md5Answer is what a client says that knows the secret, once it was told the salt: md5_crypt_verify in src/backend/libpq/crypt.c.
func md5Answer(stored string, salt [4]byte) string {
	return md5Secret(strings.TrimPrefix(stored, "md5"), string(salt[:]))
}

// same compares without telling by its time where two texts differ.
func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// credentialsOf makes a password comparable, with one salt or another. It takes a millisecond or so.
func credentialsOf(password string, with scram.KeyFactors) (scram.StoredCredentials, error) {
	client, err := clientOf(password)
	if err != nil {
		return scram.StoredCredentials{}, err
	}
	return client.GetStoredCredentialsWithError(with)
}

// clientOf is one who knows the password. One that SASLprep does not accept is used as it is, as in pg_be_scram_build_secret
// of src/backend/libpq/auth-scram.c.
func clientOf(password string) (*scram.Client, error) {
	client, err := scram.SHA256.NewClient("", password, "")
	if err != nil {
		client, err = scram.SHA256.NewClientUnprepped("", password, "")
	}
	if err != nil {
		return nil, err
	}
	return client.WithMinIterations(1), nil
}
