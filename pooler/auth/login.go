package auth

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
)

// Challenge is what a client is asked for.
type Challenge uint8

const (
	ChallengeNone     Challenge = iota // it is in
	ChallengePassword                  // AuthenticationCleartextPassword; Password takes the answer
	ChallengeMD5                       // AuthenticationMD5Password with Salt; MD5 takes the answer
	ChallengeSASL                      // AuthenticationSASL with Mechanisms; Choose and Step take the answers
)

// Login is one client on its way in.
type Login struct {
	Challenge  Challenge
	Salt       [4]byte
	Mechanisms []string

	users        *Users
	ask          Request
	user         *user // somebody without a secret, if there is nobody by that name
	conversation *conversation
	clientKey    []byte
}

// Begin finds out how a client is to show who it is. The error is a *Denial if the client may not come in whatever it says.
func (u *Users) Begin(ctx context.Context, ask Request) (*Login, error) {
	rule := Rule{Method: u.method}
	if u.method == methodHBA {
		rule = u.rules.Match(ask)
	}
	l := &Login{users: u, ask: ask, user: &user{name: ask.User}}
	switch rule.Method {
	case MethodAny:
		return l, nil
	case MethodTrust:
		return l, u.must(ctx, ask, l)
	case MethodCert:
		return l, u.byCertificate(ctx, rule, l)
	case MethodPeer:
		if !u.idents.allows(rule.Map, ask.From.SystemUser, ask.User) {
			return nil, denied("Peer authentication failed for user %q", ask.User)
		}
		return l, u.must(ctx, ask, l)
	case MethodPassword, MethodMD5, MethodSCRAM:
		found, err := u.find(ctx, ask)
		if err != nil {
			return nil, err
		}
		if found != nil {
			l.user = found
		}
		l.challenge(rule.Method)
		return l, nil
	}
	return nil, denied("connection of user %q to database %q is rejected by the pooler's rules (pooler.auth)", ask.User, ask.Database)
}

// must lets in who is listed without asking for a secret. If nobody is, and auth_query does not know either, everybody is let in.
func (u *Users) must(ctx context.Context, ask Request, l *Login) error {
	if len(u.users) == 0 && u.queries == nil {
		return nil
	}
	found, err := u.find(ctx, ask)
	if err != nil {
		return err
	}
	if found == nil {
		return denied("user %q may not log in", ask.User)
	}
	l.user = found
	return nil
}

func (u *Users) byCertificate(ctx context.Context, rule Rule, l *Login) error {
	from := l.ask.From
	if !from.Verified {
		return denied("connection requires a valid client certificate")
	}
	name := from.CommonName
	if rule.DN {
		name = from.DN
	}
	if !u.idents.allows(rule.Map, name, l.ask.User) {
		return denied("certificate authentication failed for user %q", l.ask.User)
	}
	return u.must(ctx, l.ask, l)
}

// challenge decides what is asked for. As with PgBouncer, md5 becomes SCRAM for those whose secret is of that kind.
func (l *Login) challenge(method Method) {
	if kind := l.user.secret.kind; method == MethodMD5 && (kind == kindSCRAM || kind == kindNone && l.users.scram) {
		method = MethodSCRAM
	}
	switch method {
	case MethodPassword:
		l.Challenge = ChallengePassword
	case MethodMD5:
		l.Challenge = ChallengeMD5
		_, _ = rand.Read(l.Salt[:]) // crypto/rand never fails
	default:
		l.Challenge = ChallengeSASL
		l.Mechanisms = []string{Mechanism}
		if l.ask.From.TLS && l.ask.From.Binding != nil {
			l.Mechanisms = []string{MechanismPlus, Mechanism}
		}
	}
}

// Password takes the answer to ChallengePassword.
func (l *Login) Password(said string) error {
	if l.Challenge != ChallengePassword {
		panic("auth: a password that was not asked for")
	}
	keys, err := l.users.keysOf(l.user)
	if err != nil {
		return err
	}
	clientKey, fits := verify(said, keys) // for everybody, since it takes its time
	switch l.user.secret.kind {
	case kindMD5:
		fits = same(md5Secret(said, l.ask.User), l.user.secret.text)
	case kindNone:
		fits = false
	}
	if !fits || said == "" {
		return l.refused()
	}
	l.clientKey = clientKey
	return nil
}

// MD5 takes the answer to ChallengeMD5.
func (l *Login) MD5(said string) error {
	if l.Challenge != ChallengeMD5 {
		panic("auth: an answer that was not asked for")
	}
	stored := l.user.secret.text
	if l.user.secret.kind != kindMD5 {
		stored = md5Secret(stored, l.ask.User)
	}
	fits := same(said, md5Answer(stored, l.Salt))
	if !fits || l.user.secret.kind != kindMD5 && l.user.secret.kind != kindPlain {
		return l.refused()
	}
	return nil
}

// Choose takes the mechanism that the client has chosen in answer to ChallengeSASL.
func (l *Login) Choose(mechanism string) error {
	if !slices.Contains(l.Mechanisms, mechanism) {
		return &Denial{Code: "08P01", Text: "client selected an invalid SASL authentication mechanism"}
	}
	keys, err := l.users.keysOf(l.user)
	if err != nil {
		return err
	}
	var binding []byte
	if len(l.Mechanisms) > 1 {
		binding = l.ask.From.Binding
	}
	if l.conversation, err = converse(keys, binding, mechanism == MechanismPlus); err != nil {
		return fmt.Errorf("scram: %w", err)
	}
	return nil
}

// Step takes what the client said and returns what it is to be told. done means that the client is who it says.
func (l *Login) Step(said []byte) (answer []byte, done bool, err error) {
	if answer, done, err = l.conversation.step(said); err != nil {
		return nil, false, l.refused()
	}
	if done {
		l.clientKey = l.conversation.clientKey
	}
	return answer, done, nil
}

// refused is the one end of all logins with a wrong password, or without a user.
func (l *Login) refused() error {
	if l.users.queries != nil && l.users.users[l.ask.User] == nil {
		l.users.queries.failed(l.ask.Lookup, l.ask.User)
	}
	return passwordFailed(l.ask.User)
}

// Credentials returns what a login that has succeeded allows towards servers.
func (l *Login) Credentials() Credentials { return l.user.credentials(l.clientKey) }
