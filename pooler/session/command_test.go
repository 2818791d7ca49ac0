package session

import (
	"fmt"
	"strings"
	"testing"
)

func TestStatementsAreUnderstoodAsPostgresReadsThem(t *testing.T) {
	check := func(text, want string) {
		t.Helper()
		got := "nothing"
		if does := scriptOf([]byte(text)); does != nil {
			var all []string
			for _, c := range does.commands {
				all = append(all, fmt.Sprintf("%d %s%v", c.kind, c.name, c.sets))
			}
			got = strings.Join(all, "; ")
			if does.lost {
				got = "lost"
			}
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
	kind := func(kind commandKind, more string) string { return fmt.Sprintf("%d %s", kind, more) }
	check("select 1", "nothing")
	check("select 'a;set b = 1;'", "nothing")
	check("select $$;$$, $x$;set a=1$x$, E'\\';set a=1', \"a;set b=1\" -- ;set c=1\n/* ; /* ; */ set */;", "nothing")
	check("SET a.b TO x", kind(commandSet, "[{a.b x false}]"))
	check("set Search_Path = x, \"Y z\", 'q''r'", kind(commandSet, "[{search_path x, \"Y z\", \"q'r\" false}]"))
	check("set work_mem = +64", kind(commandSet, "[{work_mem 64 false}]"))
	check("set x.y = -1.5, on", kind(commandSet, "[{x.y -1.5, on false}]"))
	check("set x.y = 007", kind(commandUnclear, "[]"))
	check("set x.y = E'a'", kind(commandUnclear, "[]"))
	check("set x.y = 'a' 'b'", kind(commandUnclear, "[]"))
	check("set x.y = 'a\\'", "lost")
	check("set x.y from current", kind(commandUnclear, "[]"))
	check("set local x.y = 1", kind(commandSetLocal, "[{x.y 1 false}]"))
	check("set session x.y to default", kind(commandReset, "[{x.y  true}]"))
	check("select 1; set x.y = 1;; select 2", "0 []; "+kind(commandSet, "[{x.y 1 false}]")+"; 0 []")
	check("create rule r as on insert to t do (set x.y = 1; select 1)", "nothing")
	check("create function f() returns int begin atomic; select 1; end; set x.y = 1", "lost")
	check("rollback to savepoint \"A b\"", kind(commandRollbackTo, "A b[]"))
	check("rollback and no chain", kind(commandRollback, "[]"))
	check("commit prepared 'x'", "nothing")
	check("prepare transaction 'x'", "nothing")
	check("set constraints all deferred", "nothing")
	check("deallocate prepare all", kind(commandDeallocateAll, "[]"))
}

func FuzzScript(f *testing.F) {
	f.Add([]byte("set a.b = 'c', \"d\""))                       // a list
	f.Add([]byte("begin isolation level read committed, read")) // cut off
	f.Add([]byte("prepare x (int) as select $1; execute x(1)")) // two
	f.Add([]byte("select $a$ $b$ $a$; /* /* */ set"))           // quotes that are open
	f.Fuzz(func(t *testing.T, text []byte) {
		does := scriptOf(text)
		if does != nil && !does.lost && len(does.commands) == 0 {
			t.Error("a script of nothing")
		}
		localConfig(text)
		objectsOf(text, does)
	})
}
