package auth

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pitr/config"
)

// noFiles has but the file of names that the tests refer to.
func noFiles(path string) ([]byte, error) {
	switch path {
	case "/etc/pitr/names":
		return []byte("# who\nalice, bob\n\n\"all\" @/etc/pitr/more"), nil
	case "/etc/pitr/more":
		return []byte("carol"), nil
	case "/etc/pitr/loop":
		return []byte("@loop"), nil
	}
	return nil, fs.ErrNotExist
}

func TestFirstRuleThatFitsDecides(t *testing.T) {
	maps, err := ParseIdents("ident", []byte("m root alice\n"))
	if err != nil {
		t.Fatal(err)
	}
	rules, err := ParseRules("/etc/pitr/hba", []byte(`
# comment
local   all             postgres                        peer map=m   # behind a rule
local   all             all                             scram-sha-256
host    replication     all         all                 trust
host    "replication"   all         10.9.0.0/16         password
hostssl app,"all"       +not        0.0.0.0/0           reject
`), noFiles, maps)
	if err == nil || !strings.Contains(err.Error(), "/etc/pitr/hba:7: +not: groups") {
		t.Fatalf("a group gave %v, %v", rules, err)
	}
	rules, err = ParseRules("/etc/pitr/hba", []byte(`
local   all             postgres                        peer map=m   # behind a rule
local   all             all                             scram-sha-256
host    replication     all         all                 trust
host    "replication"   all         10.9.0.0/16         password
hostssl app, "all"      @names      10.0.0.0 255.0.255.0  cert clientname=DN
hostnossl all           all         10.1.0.0/16         reject
host    sameuser        all         10.1.2.3/32         md5
host    all             "quo""ted"  2001:db8::/32       trust
host    all             all         ::1/128             password
`), noFiles, maps)
	if err != nil {
		t.Fatal(err)
	}
	check := func(want Method, database, user, address string, tls, replication bool) Rule {
		t.Helper()
		ask := Request{User: user, Database: database, Replication: replication, From: Origin{TLS: tls}}
		if address != "" {
			ask.From.Address = netip.MustParseAddr(address)
		}
		got := rules.Match(ask)
		if got.Method != want {
			t.Errorf("%s@%s from %q, TLS %v, replication %v: method %d, want %d", user, database, address, tls, replication, got.Method, want)
		}
		return got
	}
	if got := check(MethodPeer, "x", "postgres", "", false, false); got.Map != "m" {
		t.Errorf("the map is %q", got.Map)
	}
	check(MethodSCRAM, "x", "alice", "", false, false)
	check(MethodReject, "x", "alice", "", false, true) // all is no word for replication
	check(MethodTrust, "x", "alice", "192.0.2.1", false, true)
	check(MethodPassword, "replication", "alice", "10.9.1.1", false, false)
	check(MethodReject, "replication", "alice", "10.8.1.1", false, false)
	if got := check(MethodCert, "app", "alice", "10.77.0.9", true, false); !got.DN {
		t.Error("clientname=DN was lost")
	}
	check(MethodCert, "all", "carol", "10.77.0.9", true, false)
	check(MethodCert, "all", "all", "10.77.0.9", true, false) // a quoted all is a name
	check(MethodReject, "app", "dave", "10.77.0.9", true, false)
	check(MethodReject, "app", "alice", "10.77.1.9", true, false)
	check(MethodReject, "app", "alice", "10.77.0.9", false, false)
	check(MethodReject, "alice", "alice", "10.1.2.3", false, false)
	check(MethodMD5, "alice", "alice", "10.1.2.3", true, false)
	check(MethodReject, "app", "alice", "10.1.2.3", true, false)
	check(MethodMD5, "alice", "alice", "::ffff:10.1.2.3", true, false)
	check(MethodTrust, "app", `quo"ted`, "2001:db8::7", false, false)
	check(MethodReject, "app", "quoted", "2001:db8::7", false, false)
	check(MethodPassword, "app", "alice", "::1", false, false)
	check(MethodReject, "app", "alice", "::2", false, false)
	check(MethodReject, "app", "alice", "127.0.0.1", false, false)
}

func TestLineThatIsNotUnderstoodIsAnError(t *testing.T) {
	check := func(line, want string) {
		t.Helper()
		_, err := ParseRules("/etc/pitr/hba", []byte("local all all trust\n"+line), noFiles, Idents{"m": nil})
		if err == nil || !strings.HasPrefix(err.Error(), "/etc/pitr/hba:2: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", line, err)
		}
	}
	check("lokal all all trust", "none of local")
	check(`"local" all all trust`, "none of local")
	check("local", "before the database")
	check("local all", "before the user")
	check("local all all", "before the method")
	check("local all all 127.0.0.1/32 trust", "the method")
	check("host all all trust", "is no address")
	check("host all all 127.0.0.1", "before the mask")
	check("host all all 127.0.0.1 trust", "no mask")
	check("host all all 127.0.0.1 ffff:: trust", "no mask")
	check("host all all 127.0.0.1/33 trust", "no address")
	check("host all all 10.0.0.1/8 trust", "outside of its mask")
	check("host all all fe80::1%eth0/64 trust", "no address")
	check("host all all example.org trust", "names of hosts")
	check("host all all .example.org trust", "names of hosts")
	check("host all all samehost trust", "samehost")
	check("host all all samenet trust", "samenet")
	check("host samerole all all trust", "samerole")
	check("host all +dba all trust", "groups")
	check("host /^db all all trust", "regular expressions")
	check("host all @missing all trust", "not exist")
	check("host all @loop all trust", "refer to each other")
	check("host all @ all trust", "no file")
	check("host all all all ldap", "none of trust")
	check("host all all all any", "none of trust")
	check("host all all all \"trust\"", "none of trust")
	check("host all all all peer", "local connections")
	check("local all all cert", "TLS")
	check("hostnossl all all all cert", "TLS")
	check("hostssl all all all cert map=other", "no such map")
	check("hostssl all all all cert map=m map=m", "not supported")
	check("hostssl all all all cert clientname=xx", "not supported")
	check("hostssl all all all md5 map=m", "not supported")
	check("host all all all trust,reject", "list")
	check("host all all all trust extra", "not supported")
	check("host all, all trust", "before the address")
	check("host , all all trust", "is a list")
	check("host all,,x all all trust", "comma without a word")
	check("local all all trust,", "comma without a word")
	check(`local "all all trust`, "closing double quote")
	check(`local "" all trust`, "empty name")
	check(`local a"b" all trust`, "neither quoted nor")
	check(`local "a"b all trust`, "neither quoted nor")
	check("local "+strings.Repeat("x", 1025)+" all trust", "more than 1024")
	check("include other", "none of local")
	if _, err := ParseRules("f", []byte(strings.Repeat("#\n", 1<<19+1)), noFiles, nil); err == nil || !strings.Contains(err.Error(), "more than 1048576 bytes") {
		t.Errorf("a huge file: %v", err)
	}
}

func TestIdentMapsSayWhoMayBeWhom(t *testing.T) {
	maps, err := ParseIdents("ident", []byte("m root postgres\nm \"CN=app,O=x\" app # note\nn root all\no root \"all\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	check := func(want bool, name, system, user string) {
		t.Helper()
		if got := maps.allows(name, system, user); got != want {
			t.Errorf("map %q lets %q in as %q: %v", name, system, user, got)
		}
	}
	check(true, "", "root", "root")
	check(false, "", "root", "postgres")
	check(false, "", "", "")
	check(true, "m", "root", "postgres")
	check(false, "m", "root", "root")
	check(true, "m", "CN=app,O=x", "app")
	check(true, "n", "root", "anybody")
	check(false, "n", "other", "anybody")
	check(false, "o", "root", "anybody")
	check(true, "o", "root", "all")
	check(false, "missing", "root", "root")
	refuse := func(line, want string) {
		t.Helper()
		if _, err := ParseIdents("ident", []byte("m a b\n"+line)); err == nil || !strings.Contains(err.Error(), "ident:2: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", line, err)
		}
	}
	refuse("m root", "three words")
	refuse("m root a b", "three words")
	refuse("m root, a", "three words")
	refuse("m /^(.*)$ all", "regular expressions")
	refuse("m root +dba", "groups")
	refuse("@file a b", "groups and files")
}

// TestRulesAreReadFromFiles goes the way of the pooler's start.
func TestRulesAreReadFromFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	hba, ident := write("hba", "local all @names peer map=m\nhost all all 127.0.0.1/32 trust\n"), write("ident", "m system alice\n")
	write("names", "alice")
	users := load(t, config.Auth{Type: "hba", HBAFile: hba, IdentFile: ident}, map[string]config.User{"alice": {}})
	check := func(ask Request, want string) {
		t.Helper()
		_, err := users.Begin(t.Context(), ask)
		var denial *Denial
		if want == "" && err != nil || want != "" && (!errors.As(err, &denial) || denial.Code != "28000" || !strings.Contains(denial.Text, want)) {
			t.Errorf("%v: %v", ask, err)
		}
	}
	local := netip.MustParseAddr("127.0.0.1")
	check(Request{User: "alice", From: Origin{SystemUser: "system"}}, "")
	check(Request{User: "alice", From: Origin{SystemUser: "alice"}}, "Peer authentication failed")
	check(Request{User: "alice", From: Origin{}}, "Peer authentication failed")
	check(Request{User: "alice", From: Origin{Address: local}}, "")
	check(Request{User: "nobody", From: Origin{Address: local}}, "may not log in")
	check(Request{User: "alice", From: Origin{Address: netip.MustParseAddr("127.0.0.2")}}, "rejected by the pooler's rules")
	for _, cfg := range []config.Auth{
		{Type: "hba"}, {Type: "hba", HBAFile: dir}, {Type: "hba", HBAFile: hba + "x"}, {Type: "hba", HBAFile: hba}, {Type: "hba", HBAFile: hba, IdentFile: hba + "x"},
		{Type: "hba", HBAFile: hba, IdentFile: write("bad", "m")}, {Type: "ldap"},
	} {
		if _, err := Load(cfg, nil, nil); err == nil {
			t.Errorf("%v is no error", cfg)
		}
	}
}

func TestCertificatesAreNames(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hba")
	if err := os.WriteFile(path, []byte("hostssl dn all all cert clientname=DN map=m\nhost all all all cert\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ident := filepath.Join(dir, "ident")
	if err := os.WriteFile(ident, []byte(`m "CN=alice,O=house" boss`), 0o600); err != nil {
		t.Fatal(err)
	}
	users := load(t, config.Auth{Type: "hba", HBAFile: path, IdentFile: ident}, nil)
	shown := Origin{Address: netip.MustParseAddr("127.0.0.1"), TLS: true, Verified: true, CommonName: "alice", DN: "CN=alice,O=house"}
	nothing, nameless := shown, shown
	nothing.Verified, nameless.CommonName = false, ""
	check := func(database, user string, from Origin, want string) {
		t.Helper()
		_, err := users.Begin(t.Context(), Request{Database: database, User: user, From: from})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s as %s: %v", database, user, err)
		}
	}
	check("any", "alice", shown, "")
	check("any", "bob", shown, "certificate authentication failed")
	check("any", "alice", nothing, "valid client certificate")
	check("any", "", nameless, "certificate authentication failed")
	check("dn", "boss", shown, "")
	check("dn", "alice", shown, "certificate authentication failed")
}

func FuzzRules(f *testing.F) {
	f.Add("local all all trust", "postgres", "alice")                        // the simplest
	f.Add("host a,\"b\"\"c\" @names 10.0.0.0 255.0.0.0 md5 # x", "a", "bob") // lists, quotes, a file, a mask
	f.Add("hostssl all all ::/0 cert map=m clientname=DN", "a", "b")         // options
	f.Add("host all \"", "a", "b")                                           // an open quote
	f.Add(",,,", "", "")                                                     // nothing but commas
	f.Fuzz(func(t *testing.T, text, database, user string) {
		maps, err := ParseIdents("ident", []byte(text))
		if err == nil {
			maps.allows("m", database, user)
		}
		rules, err := ParseRules("/etc/pitr/hba", []byte(text), noFiles, Idents{"m": nil})
		if err != nil {
			if !strings.HasPrefix(err.Error(), "/etc/pitr/hba:") {
				t.Errorf("%q: the error names no line: %v", text, err)
			}
			return
		}
		for _, address := range []netip.Addr{{}, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::1")} {
			ask := Request{Database: database, User: user, From: Origin{Address: address}}
			if got := rules.Match(ask); got.Method != MethodReject && len(rules) == 0 {
				t.Errorf("%q lets %v in without a rule", text, ask)
			}
		}
	})
}
