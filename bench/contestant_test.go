package main

import (
	"strings"
	"testing"
)

func TestEveryPoolerIsGivenTheSame(t *testing.T) {
	for name, arrange := range map[string]func(arrangement) (string, []string){pitr: arrangePitr, pgbouncer: arrangePgBouncer, odyssey: arrangeOdyssey} {
		a := arrangement{
			file: "/tmp/x.conf", listen: address{host: loopback, port: 20001}, metrics: 20002, server: address{host: loopback, port: 20003},
			secret: "SCRAM-SHA-256$4096:c2FsdA==$a:b", cert: "/tmp/x.crt", key: "/tmp/x.key", workers: 2,
		}
		plain, args := arrange(a)
		a.listen.tls = true
		encrypted, _ := arrange(a)
		for _, want := range []string{"20001", "20003", "transaction", "scram-sha-256", " 20\n"} {
			if !strings.Contains(plain, want) {
				t.Errorf("%s: no %q in its configuration:\n%s", name, want, plain)
			}
		}
		if args[len(args)-1] != a.file {
			t.Errorf("%s: started with %v", name, args)
		}
		if strings.Contains(plain, "x.crt") || !strings.Contains(encrypted, "x.crt") || !strings.Contains(encrypted, "x.key") {
			t.Errorf("%s: the certificate belongs into the configuration of TLS runs alone", name)
		}
	}
}

func TestVersionsOfPrograms(t *testing.T) {
	expect := func(want, out string) {
		t.Helper()
		if got := versionIn(out); got != want {
			t.Errorf("versionIn(%q) = %q, want %q", out, got, want)
		}
	}
	expect("1.26.1", "PgBouncer 1.26.1\nlibevent 2.1.13-stable\n")
	expect("1.5.2", "odyssey 1.5.2 release +pam -ldap +systemd -prom\ncompiled by gcc-16.2.0, 64-bit\n")
}

func TestWorkloadsAreChosenByName(t *testing.T) {
	expect := func(want string, names ...string) {
		t.Helper()
		chosen, err := choose(names)
		if err != nil {
			t.Error(err)
		}
		var got []string
		for _, w := range chosen {
			got = append(got, w.name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%v chose %v, want %s", names, got, want)
		}
	}
	expect("simple prepared", "prepared", "simple")
	expect("copy_out copy_select copy_in", "copy")
	expect("tls tls_prepared", "tls")
	expect("copy_in", "copy_in")
	if all, err := choose(nil); err != nil || len(all) != len(workloads) {
		t.Errorf("nothing chose %d, %v", len(all), err)
	}
	if _, err := choose([]string{"simple", "smiple"}); err == nil || !strings.Contains(err.Error(), `"smiple"`) {
		t.Errorf("a misspelt name: %v", err)
	}
}

func TestErrorLinesAreWhatIsQuoted(t *testing.T) {
	expect := func(want, out string) {
		t.Helper()
		if got := lastMessage(out); got != want {
			t.Errorf("lastMessage(%q) = %q, want %q", out, got, want)
		}
	}
	expect("pitr: error: no", "starting\npitr: error: no\nbye\n")
	expect("two; three", "one\ntwo\nthree\n")
	expect("", "")
}
