package pgbouncer

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func write(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEntriesAreReadInOrderWithTheirPlaces(t *testing.T) {
	more := write(t, "more.ini", "; included\npool_mode = transaction\n[databases]\n\"a \"\"b\"\"\" = host=x\n")
	path := write(t, "pgbouncer.ini", "# comment\n\n[pgbouncer]\nlisten_port=6432 ; not a comment\n auth_query = SELECT '#' = $1\n%include "+more+"\n* = port=1\n")
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	want := []Entry{
		{sectionMain, "listen_port", "6432 ; not a comment", path, 4},
		{sectionMain, "auth_query", "SELECT '#' = $1", path, 5},
		{sectionMain, "pool_mode", "transaction", more, 2},
		{sectionDatabases, `a "b"`, "host=x", more, 4},
		{sectionDatabases, "*", "port=1", path, 7},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWhatIsNoIniIsRefusedWithItsLine(t *testing.T) {
	self := write(t, "self.ini", "")
	if err := os.WriteFile(self, []byte("[pgbouncer]\n%include "+self+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for content, line := range map[string]string{
		"a = b":                         ":1:",
		"[pgbouncer]\na":                ":2:",
		"[pgbouncer]\n= b":              ":2:",
		"[pgbouncer":                    ":1:",
		"[pgbouncer] x":                 ":1:",
		"[bouncer]":                     ":1:",
		"[pgbouncer]\n%include":         ":2:",
		"[pgbouncer]\n%includex":        ":2:",
		"[databases]\n\"a = b":          ":2:",
		"[databases]\n\"\" = b":         ":2:",
		"[pgbouncer]\n\na\x00b = c":     ":3:",
		"[pgbouncer]\n%include " + self: ":2:",
	} {
		_, err := Read(write(t, "a.ini", content))
		if !errors.Is(err, ErrSyntax) || !strings.Contains(err.Error(), line) {
			t.Errorf("%q: %v", content, err)
		}
	}
	if _, err := Read(write(t, "a.ini", "[pgbouncer]\n%include /nowhere/at/all.ini")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestConnectionStringsAreReadAsPgBouncerDoes(t *testing.T) {
	for text, want := range map[string][]Pair{
		"":                                   nil,
		"host=a port = 5432":                 {{"host", "a"}, {"port", "5432"}},
		"password='it''s a secret' dbname=b": {{"password", "it's a secret"}, {"dbname", "b"}},
		"user=":                              {{"user", ""}},
		"user='' dbname=x":                   {{"user", ""}, {"dbname", "x"}},
	} {
		got, err := parsePairs(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: %s", text, diff)
		}
	}
	for _, text := range []string{"host", "=a", "password='x", "password='x'y", "a b=c"} {
		if got, err := parsePairs(text); err == nil {
			t.Errorf("%q was read as %v", text, got)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add("[pgbouncer]\na = b\n[databases]\n\"x\" = host='a b' port=1")
	f.Fuzz(func(t *testing.T, content string) {
		if strings.Contains(content, "%") {
			return // it might include any file of the machine
		}
		entries, err := Read(write(t, "a.ini", content))
		if err != nil {
			return
		}
		for _, e := range entries {
			if e.Key == "" || e.Section == "" || e.Line == 0 {
				t.Errorf("%+v", e)
			}
			if _, err := parsePairs(e.Value); err != nil {
				continue
			}
		}
	})
}
