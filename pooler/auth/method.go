package auth

import (
	"fmt"
	"net/netip"
)

// Method is how a client shows who it is.
type Method uint8

// The methods, by PgBouncer's names: auth_type in its manual, and those of the HBA file.
const (
	MethodReject Method = iota // the zero value lets nobody in
	MethodAny
	MethodTrust
	MethodPassword
	MethodMD5
	MethodSCRAM
	MethodCert
	MethodPeer
	methodHBA // only of pooler.auth.type: the rules decide
)

// types are the values of pooler.auth.type, which are PgBouncer's of auth_type.
var types = map[string]Method{
	"any": MethodAny, "trust": MethodTrust, "plain": MethodPassword, "md5": MethodMD5, "scram-sha-256": MethodSCRAM, "cert": MethodCert,
	"peer": MethodPeer, "hba": methodHBA,
}

// ruleMethods are those of an HBA file: PgBouncer's manual, section "HBA file format". pam and ldap are not known here, any is global only.
var ruleMethods = map[string]Method{
	"reject": MethodReject, "trust": MethodTrust, "password": MethodPassword, "md5": MethodMD5, "scram-sha-256": MethodSCRAM, "cert": MethodCert,
	"peer": MethodPeer,
}

// Origin is what is known of a connection before its client says who it is.
type Origin struct {
	Address    netip.Addr // not valid for a Unix socket
	TLS        bool
	Binding    []byte // tls-server-end-point of our certificate (RFC 5929); nil: no channel binding is offered
	Verified   bool   // the client has shown a certificate that our authority has signed, and these are its names:
	CommonName string
	DN         string // as RFC 2253 writes it
	SystemUser string // who is at the other end of a Unix socket; empty when that is not known
}

// Request is a client that wants to come in.
type Request struct {
	User, Database string
	Replication    bool
	Lookup         string // the database that auth_query asks; empty: nobody is asked
	From           Origin
}

// Denial is a login that has failed for a reason that the client may know. Nothing of it depends on a secret.
type Denial struct {
	Code string // SQLSTATE
	Text string
}

func (d *Denial) Error() string { return d.Text }

// denied is refused with ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION, as in auth_failed of src/backend/libpq/auth.c.
func denied(format string, args ...any) *Denial {
	return &Denial{Code: "28000", Text: fmt.Sprintf(format, args...)}
}

// passwordFailed is what auth_failed of src/backend/libpq/auth.c says, for every method that asks for a password.
func passwordFailed(user string) *Denial {
	return &Denial{Code: "28P01", Text: fmt.Sprintf("password authentication failed for user %q", user)}
}
