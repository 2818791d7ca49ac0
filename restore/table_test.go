package restore

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestNamesOfTablesAreReadAsSQLReadsThem(t *testing.T) {
	for text, want := range map[string]Relation{"public.orders": {"public", "orders"}, "Public.Orders": {"public", "orders"}, `"My Schema"."T.a""b"`: {"My Schema", `T.a"b`},
		`public."Orders"`: {"public", "Orders"}} {
		got, err := ParseRelation(text)
		if err != nil || got != want {
			t.Errorf("%s is %q (%v), want %q", text, got, err, want)
		}
		if again, err := ParseRelation(got.String()); err != nil || again != want {
			t.Errorf("%s does not come back from %s: %v", text, got, err)
		}
	}
	for _, text := range []string{"", "orders", "public.", ".orders", "a.b.c", `"public.orders`, `public."orders`, `"".x`, `public.orders"x"`, `public"x".y`} {
		if got, err := ParseRelation(text); err == nil {
			t.Errorf("%q is taken for %s", text, got)
		}
	}
}

func TestARestoredTableIsNamedByTheTimeOfItsTarget(t *testing.T) {
	at := time.Date(2026, 11, 20, 14, 3, 59, 0, time.UTC)
	if got := RestoredName("orders", at); got != "orders_restored_20261120_1403" {
		t.Error(got)
	}
	long := RestoredName(strings.Repeat("ü", 31), at)
	if len(long) > identifierMax || !utf8.ValidString(long) || !strings.HasSuffix(long, "ü_restored_20261120_1403") {
		t.Errorf("%q has %d bytes", long, len(long))
	}
}

func TestPasswordsAreNoArguments(t *testing.T) {
	for dsn, want := range map[string][2]string{"postgres://u:p%40ss@h:1,i:2/d?x=y": {"postgres://u@h:1,i:2/d?x=y", "p@ss"}, "postgres://u@h/d": {"postgres://u@h/d", ""},
		"host=h user=u": {"host=h user=u", ""}, "postgres://": {"postgres://", ""},
		"postgres://u@h/d?password=p%26q&sslmode=require": {"postgres://u@h/d?sslmode=require", "p&q"}, "postgresql://u:x@h/d?password=y": {"postgresql://u@h/d", "y"},
		"host=h password=secret user=u": {"host=h user=u", "secret"}, `password = 'it\'s \\ it' host=h`: {"host=h", `it's \ it`},
		`user='a password=b' host=h`: {`user='a password=b' host=h`, ""}, `host=h password=a\ b`: {"host=h", "a b"}} {
		if rest, password := withoutPassword(dsn); rest != want[0] || password != want[1] {
			t.Errorf("%s: %q and %q", dsn, rest, password)
		}
	}
}
