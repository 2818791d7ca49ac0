package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"strings"

	"github.com/xdg-go/scram"
)

// SASL mechanisms. The second is offered over TLS alone.
const (
	Mechanism     = "SCRAM-SHA-256"
	MechanismPlus = "SCRAM-SHA-256-PLUS"
)

// MessageLenMax is PG_MAX_SASL_MESSAGE_LENGTH in src/include/libpq/sasl.h, the longest answer of a client that is read.
const MessageLenMax = 1024

// Binding is the channel binding tls-server-end-point of a server's certificate (RFC 5929), nil if its kind of signature has none.
func Binding(certificate *x509.Certificate) []byte {
	binding, err := scram.NewTLSServerEndpointBinding(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{certificate}})
	if err != nil {
		return nil // as X509_get_signature_info has none for Ed25519: be_tls_get_certificate_hash in src/backend/libpq/be-secure-openssl.c
	}
	return binding.Data
}

// conversation is one login with SCRAM.
type conversation struct {
	scram *scram.ServerConversation
	keys  scram.StoredCredentials
	plus  bool // the client has chosen the mechanism with channel binding
	begun bool
	first string // what the client has said first, without the header of GSS-API
	reply string // what it was told

	clientKey []byte // learnt of a proof that was valid
}

// converse begins a conversation about these keys. As in Postgres, the name that counts is that of the startup packet and not the one
// inside SCRAM's messages.
func converse(keys scram.StoredCredentials, binding []byte, plus bool) (*conversation, error) {
	server, err := scram.SHA256.NewServer(func(string) (scram.StoredCredentials, error) { return keys, nil })
	if err != nil {
		return nil, err
	}
	c := &conversation{keys: keys, plus: plus}
	if binding == nil {
		c.scram = server.NewConversation()
	} else {
		c.scram = server.NewConversationWithChannelBinding(scram.ChannelBinding{Type: scram.ChannelBindingTLSServerEndpoint, Data: binding})
	}
	return c, nil
}

// step takes what the client said and returns what it is to be told. done means that the client is who it says.
func (c *conversation) step(said []byte) (answer []byte, done bool, err error) {
	text := string(said)
	if !c.begun && !c.acceptable(text) {
		return nil, false, ErrRefused
	}
	out, err := c.scram.Step(text)
	if err != nil {
		return nil, false, ErrRefused
	}
	if !c.begun {
		c.begun, c.reply = true, out
		return []byte(out), false, nil
	}
	if !c.scram.Valid() {
		return nil, false, ErrRefused
	}
	if err := c.learn(text); err != nil {
		return nil, false, ErrRefused
	}
	return []byte(out), true, nil
}

// acceptable checks of a client's first message what xdg-go/scram leaves open and read_client_first_message in
// src/backend/libpq/auth-scram.c does not: channel binding with the mechanism that has it and with no other, nobody else's identity,
// and a nonce of printable characters. A client that says y while channel binding is offered is refused by xdg-go/scram: somebody in
// the middle has kept the offer from it.
func (c *conversation) acceptable(first string) bool {
	header := "p=" + string(scram.ChannelBindingTLSServerEndpoint) + ",,"
	if !c.plus {
		header = "n,,"
		if strings.HasPrefix(first, "y,,") {
			header = "y,,"
		}
	}
	bare, found := strings.CutPrefix(first, header)
	if !found {
		return false
	}
	c.first = bare
	_, nonce, _ := strings.Cut(first, ",r=")
	nonce, _, _ = strings.Cut(nonce, ",")
	for i := range len(nonce) {
		if nonce[i] <= ' ' || nonce[i] > '~' {
			return false
		}
	}
	return nonce != ""
}

// learn finds the client's key, which lets us log in wherever the same secret is stored: ClientKey = ClientProof XOR
// HMAC(StoredKey, AuthMessage) (RFC 5802, section 3).
func (c *conversation) learn(final string) error {
	without, proof, found := cutLast(final, ",p=")
	if !found {
		return errors.New("no proof")
	}
	key, err := base64.StdEncoding.DecodeString(proof)
	if err != nil || len(key) != sha256.Size {
		return errors.New("malformed proof")
	}
	mac := hmac.New(sha256.New, c.keys.StoredKey)
	mac.Write([]byte(c.first + "," + c.reply + "," + without))
	for i, b := range mac.Sum(nil) {
		key[i] ^= b
	}
	if sum := sha256.Sum256(key); !hmac.Equal(sum[:], c.keys.StoredKey) {
		return errors.New("the key does not fit")
	}
	c.clientKey = key
	return nil
}

func cutLast(text, separator string) (before, after string, found bool) {
	i := strings.LastIndex(text, separator)
	if i < 0 {
		return text, "", false
	}
	return text[:i], text[i+len(separator):], true
}

// verify lets a plain password play the client's part against these keys, so that it costs the same whoever it is.
func verify(password string, keys scram.StoredCredentials) (clientKey []byte, fits bool) {
	client, err := clientOf(password)
	if err != nil {
		return nil, false
	}
	server, err := converse(keys, nil, false)
	if err != nil {
		return nil, false
	}
	mine := client.NewConversation()
	said, err := mine.Step("")
	for err == nil {
		answer, done, failed := server.step([]byte(said))
		if failed != nil || done {
			return server.clientKey, done
		}
		said, err = mine.Step(string(answer))
	}
	return nil, false
}
