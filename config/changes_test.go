package config

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func mustParse(t *testing.T, text string) *Config {
	t.Helper()
	cfg, err := Parse("pitr.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestChangesTellWhatAndWhetherItTakesARestart(t *testing.T) {
	before := mustParse(t, "pooler: {default_pool_size: 5, users: {a: {password: one}}, databases: {d: {host: h}, old: {}}}")
	after := mustParse(t, "pooler: {default_pool_size: 6, workers: 2, admin_users: [a, b], users: {a: {password: two, query_timeout: 5s}}, databases: {d: {host: i, password: secret}, new: {port: 1}}}")
	var got []string
	for _, change := range Changes(before, after) {
		got = append(got, change.String())
	}
	want := []string{
		`pooler.admin_users: "[]" -> "[a, b]"`,
		`pooler.databases.d.host: h -> i`,
		`pooler.databases.d.password: "" -> "***"`,
		`pooler.databases.new: "" -> there`,
		`pooler.databases.new.port: "" -> 1`,
		`pooler.databases.old: there -> ""`,
		`pooler.default_pool_size: 5 -> 6`,
		`pooler.users.a.password: "***" -> "***"`,
		`pooler.users.a.query_timeout: 0s -> 5s`,
		`pooler.workers: 1 -> 2 needs a restart`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if again := Changes(after, after); len(again) > 0 {
		t.Errorf("a configuration differs from itself: %v", again)
	}
}

func TestWhatNeedsARestartStaysAsItWas(t *testing.T) {
	running := mustParse(t, "pooler: {default_pool_size: 5, users: {a: {password: one}, gone: {password: x}}}")
	next := mustParse(t, "cluster: other\npooler: {default_pool_size: 6, workers: 2, users: {a: {password: two, pool_size: 3}, come: {password: y}}}")
	got := InForce(running, next)
	if got.Cluster != "main" || got.Pooler.Workers != 1 || got.Pooler.DefaultPoolSize != 6 {
		t.Errorf("%+v", got.Pooler)
	}
	a := got.Pooler.Users["a"]
	_, still := got.Pooler.Users["gone"]
	if a.Password.Reveal() != "two" || a.PoolSize != 3 || still || got.Pooler.Users["come"].Password.Reveal() != "y" {
		t.Errorf("%+v", got.Pooler.Users)
	}
	if next.Pooler.Workers != 2 || running.Pooler.DefaultPoolSize != 5 {
		t.Error("an argument was changed")
	}
	// What is left to say is what needs the restart.
	for _, change := range Changes(got, next) {
		if change.Reload {
			t.Errorf("%s is not in force", change)
		}
	}
}

func TestSetPoolerTakesWhatPgBouncerTakes(t *testing.T) {
	cfg := *Default()
	for _, c := range []struct {
		name, value string
		check       func(*Pooler) bool
	}{
		{"query_timeout", "2.5", func(p *Pooler) bool { return p.QueryTimeout.D() == 2500*time.Millisecond }},
		{"query_timeout", "0", func(p *Pooler) bool { return p.QueryTimeout == 0 }},
		{"query_timeout", "1h", func(p *Pooler) bool { return p.QueryTimeout.D() == time.Hour }},
		{"max_client_conn", "7", func(p *Pooler) bool { return p.MaxClientConn == 7 }},
		{"stats_users", "a, b", func(p *Pooler) bool { return slices.Equal(p.StatsUsers, []string{"a", "b"}) }},
		{"server_check_query", "select 1", func(p *Pooler) bool { return p.ServerCheckQuery == "select 1" }},
	} {
		got, err := SetPooler(cfg, c.name, c.value)
		if err != nil || !c.check(&got.Pooler) {
			t.Errorf("%s = %s: %v", c.name, c.value, err)
		}
	}
	for name, want := range map[string]error{"workers": ErrNeedsRestart, "nothing": ErrUnknownSetting, "databases": ErrUnknownSetting, "databases.d.host": ErrUnknownSetting, "users.*.pool_size": ErrUnknownSetting, "": ErrUnknownSetting} {
		if _, err := SetPooler(cfg, name, "1"); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, value := range []string{"", "x", "-1", "1e9", "NaN", "31d"} {
		if _, err := SetPooler(cfg, "client_idle_timeout", value); err == nil {
			t.Errorf("client_idle_timeout = %q is taken", value)
		}
	}
	if cfg.Pooler.MaxClientConn != 10000 {
		t.Error("the argument was changed")
	}
}

func TestEverySettingOfThePoolerIsShown(t *testing.T) {
	cfg := Default()
	seen := map[string]PoolerSetting{}
	for _, s := range PoolerSettings(&cfg.Pooler) {
		seen[s.Name] = s
		if s.Value != s.Default {
			t.Errorf("%s is %q by default, not %q", s.Name, s.Value, s.Default)
		}
	}
	for name, want := range map[string]string{"query_wait_timeout": "120", "pkt_buf": "4096", "max_client_conn": "10000", "admin_users": "", "server_reset_query": "DISCARD ALL"} {
		if seen[name].Value != want {
			t.Errorf("%s is %q", name, seen[name].Value)
		}
	}
	if _, shown := seen["databases.*.host"]; shown || len(seen) < 56 {
		t.Errorf("%d settings", len(seen))
	}
}
