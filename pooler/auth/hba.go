package auth

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
)

// connection is the first word of a rule: over what it holds.
type connection uint8

const (
	overLocal connection = iota + 1
	overHost
	overTLS
	overPlain
)

var connections = map[string]connection{"local": overLocal, "host": overHost, "hostssl": overTLS, "hostnossl": overPlain}

// Rule says how those come in whom it fits.
type Rule struct {
	Method Method
	// Map names an ident map for cert and peer; empty: the names have to be the same.
	Map string
	// DN compares the distinguished name of a certificate and not its common name.
	DN bool

	over             connection
	databases, users names
	everywhere       bool
	network, mask    []byte // of an address as bytes; four or sixteen
}

// names is the second or third field of a rule.
type names struct {
	all         bool
	sameUser    bool // the user's name, for a database; the database's, for a user
	replication bool
	set         map[string]struct{}
}

// Rules are those of an HBA file, in their order: the first that fits decides, and who fits none is refused.
type Rules []Rule

// ReadFile returns the content of a file that an HBA file refers to.
type ReadFile func(path string) ([]byte, error)

// ParseRules reads an HBA file as PgBouncer's manual describes it in "HBA file format". A line that is not understood is an error, which
// names file and line: PgBouncer ignores such a line, and whoever it was to keep out might come in by the next. maps are those that rules may name.
func ParseRules(path string, text []byte, read ReadFile, maps Idents) (Rules, error) {
	var rules Rules
	err := eachLine(path, text, func(tokens []token) error {
		p := ruleParser{dir: filepath.Dir(path), read: read, maps: maps, tokens: tokens}
		if err := p.parse(); err != nil {
			return err
		}
		rules = append(rules, p.rule)
		return nil
	})
	return rules, err
}

// ruleParser reads one line.
type ruleParser struct {
	dir    string
	read   ReadFile
	maps   Idents
	tokens []token
	rule   Rule
}

// next takes the next word, which belongs to no list.
func (p *ruleParser) next(what string) (token, error) {
	if len(p.tokens) == 0 {
		return token{}, fmt.Errorf("the line ends before the %s", what)
	}
	t := p.tokens[0]
	p.tokens = p.tokens[1:]
	if t.comma {
		return token{}, fmt.Errorf("the %s %s is a list", what, t.text)
	}
	return t, nil
}

func (p *ruleParser) parse() error {
	kind, err := p.next("type of connection")
	if err != nil {
		return err
	}
	if p.rule.over = connections[kind.text]; p.rule.over == 0 || kind.quoted {
		return fmt.Errorf("%q is none of local, host, hostssl, hostnossl", kind.text)
	}
	if err := p.names(&p.rule.databases, "database"); err != nil {
		return err
	}
	if err := p.names(&p.rule.users, "user"); err != nil {
		return err
	}
	if p.rule.over != overLocal {
		if err := p.address(); err != nil {
			return err
		}
	}
	return p.method()
}

func (p *ruleParser) names(into *names, what string) error {
	into.set = map[string]struct{}{}
	for {
		if len(p.tokens) == 0 {
			return fmt.Errorf("the line ends before the %s", what)
		}
		t := p.tokens[0]
		p.tokens = p.tokens[1:]
		if err := p.name(into, t, what, 0); err != nil {
			return err
		}
		if !t.comma {
			return nil
		}
	}
}

// includeDepthMax bounds files of names that refer to others; CONF_FILE_MAX_DEPTH in src/include/utils/conffiles.h of PostgreSQL.
const includeDepthMax = 10

func (p *ruleParser) name(into *names, t token, what string, depth int) error {
	if t.quoted {
		into.set[t.text] = struct{}{}
		return nil
	}
	switch {
	case t.text == "all":
		into.all = true
	case t.text == "sameuser" && what == "database":
		into.sameUser = true
	case t.text == "replication" && what == "database":
		into.replication = true
	case (t.text == "samerole" || t.text == "samegroup") && what == "database":
		return fmt.Errorf("%s is not supported: the pooler does not know who is a member of what", t.text)
	case t.text[0] == '+':
		return fmt.Errorf("%s: groups are not supported: the pooler does not know who is a member of what", t.text)
	case t.text[0] == '/':
		return fmt.Errorf("%s: regular expressions are not supported", t.text)
	case t.text[0] == '@':
		return p.include(into, t.text[1:], what, depth+1)
	default:
		into.set[t.text] = struct{}{}
	}
	return nil
}

// include reads names from a file, whose path is relative to that of the HBA file.
func (p *ruleParser) include(into *names, path, what string, depth int) error {
	if path == "" || depth > includeDepthMax {
		return fmt.Errorf("@%s: no file, or files that refer to each other", path)
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(p.dir, path)
	}
	text, err := p.read(path)
	if err != nil {
		return fmt.Errorf("@%s: %w", path, err)
	}
	return eachLine(path, text, func(tokens []token) error {
		for _, t := range tokens {
			if err := p.name(into, t, what, depth); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *ruleParser) address() error {
	t, err := p.next("address")
	if err != nil {
		return err
	}
	if t.text == "all" && !t.quoted {
		p.rule.everywhere = true
		return nil
	}
	if t.text == "samehost" || t.text == "samenet" {
		return fmt.Errorf("%s is not supported: write the address", t.text)
	}
	if prefix, err := netip.ParsePrefix(t.text); err == nil {
		p.rule.network = prefix.Addr().AsSlice()
		p.rule.mask = make([]byte, len(p.rule.network))
		for i := range prefix.Bits() {
			p.rule.mask[i/8] |= 0x80 >> (i % 8)
		}
		return p.rule.fits(t.text)
	}
	address, err := netip.ParseAddr(t.text)
	if err != nil || address.Zone() != "" {
		return fmt.Errorf("%q is no address, and names of hosts are not supported", t.text)
	}
	mask, err := p.next("mask of " + t.text)
	if err != nil {
		return err
	}
	parsed, err := netip.ParseAddr(mask.text)
	if err != nil || parsed.Zone() != "" || parsed.BitLen() != address.BitLen() {
		return fmt.Errorf("%q is no mask of the address %s", mask.text, t.text)
	}
	p.rule.network, p.rule.mask = address.AsSlice(), parsed.AsSlice()
	return p.rule.fits(t.text + " " + mask.text)
}

// fits refuses an address with bits outside of its mask: PostgreSQL ignores them, PgBouncer then lets the rule fit nobody.
func (r *Rule) fits(text string) error {
	for i, b := range r.network {
		if b&^r.mask[i] != 0 {
			return fmt.Errorf("the address in %q has bits outside of its mask", text)
		}
	}
	return nil
}

func (p *ruleParser) method() error {
	t, err := p.next("method")
	if err != nil {
		return err
	}
	method, known := ruleMethods[t.text]
	if !known || t.quoted {
		return fmt.Errorf("the method %q is none of trust, reject, password, md5, scram-sha-256, cert, peer", t.text)
	}
	if method == MethodPeer && p.rule.over != overLocal {
		return errors.New("peer works on local connections only")
	}
	if method == MethodCert && (p.rule.over == overLocal || p.rule.over == overPlain) {
		return errors.New("cert works on connections with TLS only: hostssl, or host")
	}
	p.rule.Method = method
	for len(p.tokens) > 0 {
		option, err := p.next("option")
		if err != nil {
			return err
		}
		if err := p.option(option.text); err != nil {
			return err
		}
	}
	return nil
}

func (p *ruleParser) option(text string) error {
	name, value, _ := strings.Cut(text, "=")
	named := p.rule.Method == MethodCert || p.rule.Method == MethodPeer
	switch {
	case name == "map" && named && value != "" && p.rule.Map == "":
		if _, known := p.maps[value]; !known {
			return fmt.Errorf("map=%s: the ident file has no such map", value)
		}
		p.rule.Map = value
	case name == "clientname" && p.rule.Method == MethodCert && (value == "CN" || value == "DN"):
		p.rule.DN = value == "DN"
	default:
		return fmt.Errorf("the option %q is not supported here", text)
	}
	return nil
}

// Match returns the first rule that fits, or one that refuses.
func (rules Rules) Match(ask Request) Rule {
	for i := range rules {
		if rules[i].matches(ask) {
			return rules[i]
		}
	}
	return Rule{Method: MethodReject}
}

func (r *Rule) matches(ask Request) bool {
	from := ask.From
	local := !from.Address.IsValid()
	switch {
	case local != (r.over == overLocal), r.over == overTLS && !from.TLS, r.over == overPlain && from.TLS:
		return false
	case !local && !r.everywhere && !r.covers(from.Address.Unmap()):
		return false
	case ask.Replication && !r.databases.replication:
		return false // all and names are of databases: check_db in src/backend/libpq/hba.c
	case !ask.Replication && !r.databases.fit(ask.Database, ask.User):
		return false
	}
	return r.users.fit(ask.User, "")
}

func (r *Rule) covers(address netip.Addr) bool {
	octets := address.AsSlice()
	if len(octets) != len(r.network) {
		return false
	}
	for i := range octets {
		octets[i] &= r.mask[i]
	}
	return bytes.Equal(octets, r.network)
}

func (n *names) fit(name, user string) bool {
	_, listed := n.set[name]
	return n.all || listed || n.sameUser && name == user
}
