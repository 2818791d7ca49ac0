package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strings"
	"testing"
)

// The server's half of the check: StoredKey is in the secret, and ClientKey = ClientProof XOR HMAC(StoredKey, AuthMessage).
func TestProofFitsTheSecret(t *testing.T) {
	secret, err := scramSecret()
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.FieldsFunc(secret, func(r rune) bool { return r == '$' || r == ':' })
	if len(fields) != 5 || fields[0] != "SCRAM-SHA-256" || fields[1] != "4096" {
		t.Fatalf("secret %q", secret)
	}
	storedKey, err := base64.StdEncoding.DecodeString(fields[3])
	if err != nil {
		t.Fatal(err)
	}

	client := &scramClient{}
	initial, err := client.answer(binary.BigEndian.AppendUint32(nil, 10))
	if err != nil || !bytes.HasSuffix(initial, []byte(client.first)) {
		t.Fatalf("%q, %v", initial, err)
	}
	nonce := strings.TrimPrefix(client.first, "n=,r=") + "server"
	challenge := "r=" + nonce + ",s=" + fields[2] + ",i=4096"
	final, err := client.answer(append(binary.BigEndian.AppendUint32(nil, 11), challenge...))
	if err != nil {
		t.Fatal(err)
	}
	withoutProof, proof64, _ := strings.Cut(string(final), ",p=")
	key, err := base64.StdEncoding.DecodeString(proof64)
	if err != nil || len(key) != sha256.Size {
		t.Fatalf("proof %q, %v", proof64, err)
	}
	for i, b := range mac(storedKey, client.first+","+challenge+","+withoutProof) {
		key[i] ^= b
	}
	if found := sha256.Sum256(key); !hmac.Equal(found[:], storedKey) {
		t.Error("the proof does not fit the secret")
	}
}

func TestLoginsByOtherMeansAreErrors(t *testing.T) {
	for _, code := range []uint32{3, 5} { // clear text, md5
		if _, err := (&scramClient{}).answer(binary.BigEndian.AppendUint32(nil, code)); err == nil {
			t.Errorf("authentication request %d has no error", code)
		}
	}
	if _, err := (&scramClient{}).answer(append(binary.BigEndian.AppendUint32(nil, 11), "r=x,s=c2FsdA==,i=999999999"...)); err == nil {
		t.Error("any number of iterations is taken")
	}
}

func TestCopyBlockIsOfWholeMessagesAndRows(t *testing.T) {
	block := copyBlock()
	if len(block) > copyWriteSize || len(block) < copyWriteSize/2 {
		t.Errorf("%d bytes in a write", len(block))
	}
	for len(block) > 0 {
		length := int(binary.BigEndian.Uint32(block[1:])) + 1
		if block[0] != 'd' || length > len(block) || block[length-1] != '\n' {
			t.Fatalf("a message %q of %d bytes, %d left", block[0], length, len(block))
		}
		block = block[length:]
	}
}
