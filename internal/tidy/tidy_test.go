package tidy

import (
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func TestTheHouseIsTidy(t *testing.T) {
	problems, err := Check(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Error(p)
	}
}

func TestEachRuleFailsWhereItShould(t *testing.T) {
	seen := map[string]bool{}
	// The closure takes files, each a path and its text, and the problems that Check must find in them.
	expect := func(name string, files map[string]string, want ...string) {
		t.Helper()
		fsys := fstest.MapFS{}
		for path, text := range files {
			fsys[path] = &fstest.MapFile{Data: []byte(text)}
		}
		problems, err := Check(fsys)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		var got []string
		for _, p := range problems {
			seen[p.Rule] = true
			got = append(got, p.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s:\n got %s\nwant %s", name, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
		}
	}

	expect("a tidy house", map[string]string{
		"internal/pg/lsn.go":            "// Package pg.\npackage pg\n\nimport \"fmt\"\n",
		"internal/pg/lsn_test.go":       "package pg\n\nimport (\n\t\"os\"\n\t\"pgregory.net/rapid\"\n\t\"pitr/internal/repo\"\n)\n",
		"internal/store/storetest/s.go": "// Package storetest.\npackage storetest\n\nimport \"pitr/internal/repo\"\n",
		"internal/store/s3/s3.go":       "// Package s3.\npackage s3\n\nimport (\n\t\"pitr/internal/store\"\n\t\"github.com/minio/minio-go/v7/pkg/credentials\"\n)\n",
		"restore/restore.go":            "// Package restore.\npackage restore\n\nimport \"pitr/internal/postmaster\"\n",
		"cmd/pitr/main.go":              "// Command pitr.\npackage main\n\nimport (\n\t\"os\"\n\t\"github.com/jackc/pgx/v5\"\n\t\"pitr/pooler\"\n)\n\nfunc main() { os.Exit(0) }\n",
		"testdata/broken.go":            "package",
		".tools/broken.go":              "package",
	})

	expect("layers", map[string]string{
		"pooler/pooler.go":       "// Package pooler.\npackage pooler\n\nimport (\n\t\"pitr/config\"\n\t\"pitr/internal/store\"\n\t\"pitr/pooler/pool\"\n)\n",
		"pooler/session/s.go":    "// Package session.\npackage session\n\nimport \"pitr/config\"\n",
		"internal/pg/lsn.go":     "// Package pg.\npackage pg\n\nimport \"pitr/internal/wal\"\n",
		"restore/restore.go":     "// Package restore.\npackage restore\n\nimport (\n\t\"pitr/internal/store\"\n\t\"pitr/internal/store/storetest\"\n)\n",
		"newroom/newroom.go":     "// Package newroom.\npackage newroom\n",
		"poolerish/poolerish.go": "// Package poolerish.\npackage poolerish\n",
	},
		"internal/pg/lsn.go:4: internal/pg may not import internal/wal: it imports nothing of ours (layers)",
		"newroom/newroom.go:2: package newroom has no row in the table of layers: add it to internal/tidy/layers.go (layers)",
		"pooler/pooler.go:6: pooler may not import internal/store: of ours it imports only internal/pgwire, config (layers)",
		"pooler/session/s.go:4: pooler/session may not import config: of ours it imports only internal/pgwire (layers)",
		"poolerish/poolerish.go:2: package poolerish has no row in the table of layers: add it to internal/tidy/layers.go (layers)",
		"restore/restore.go:5: restore may not import internal/store: of ours it imports only internal/repo, internal/pg, internal/wal, config, internal/postmaster (layers)",
		"restore/restore.go:6: only tests may import internal/store/storetest (layers)",
	)

	expect("modules", map[string]string{
		"archiver/archiver.go": "// Package archiver.\npackage archiver\n\nimport (\n\t\"github.com/jackc/pgx/v5\"\n\t\"github.com/jackc/pgx/v5/pgconn\"\n\t\"go.uber.org/goleak\"\n\t\"example.org/new\"\n\t\"github.com/robfig/cron/v3\"\n)\n",
	},
		"archiver/archiver.go:5: github.com/jackc/pgx/v5 is owned by cmd/pitr (modules)",
		"archiver/archiver.go:6: github.com/jackc/pgx/v5/pgconn is owned by archiver/replication, pooler/pool, cmd/pitr (modules)",
		"archiver/archiver.go:7: only tests may import go.uber.org/goleak (modules)",
		"archiver/archiver.go:8: example.org/new has no owner: a new module is a commit of its own and a row in internal/tidy/modules.go (modules)",
	)

	expect("pure code", map[string]string{
		"internal/wal/wal.go": "// Package wal.\npackage wal\n\nimport (\n\t\"net/netip\"\n\t\"os\"\n\t\"sync/atomic\"\n\t\"log/slog\"\n\tclock \"time\"\n)\n\nvar start = clock.Now()\nvar now = clock.Now\nvar zero clock.Time\n",
		"pooler/session/s.go": "// Package session.\npackage session\n\nimport (\n\t\"github.com/jackc/pgx/v5/pgproto3\"\n\t\"sync\"\n)\n",
		"internal/pg/lsn.go":  "// Package pg.\npackage pg\n\nimport \"github.com/jackc/pgx/v5/pgproto3\"\n",
	},
		"internal/pg/lsn.go:4: github.com/jackc/pgx/v5/pgproto3 is owned by archiver/replication, pooler (modules)",
		"internal/pg/lsn.go:4: internal/pg is a leaf and imports only the standard library, not github.com/jackc/pgx/v5/pgproto3 (pure)",
		"internal/wal/wal.go:5: internal/wal is pure and may not import net/netip: take what is needed as a value (pure)",
		"internal/wal/wal.go:6: internal/wal is pure and may not import os: take what is needed as a value (pure)",
		"internal/wal/wal.go:7: internal/wal is pure and may not import sync/atomic: take what is needed as a value (pure)",
		"internal/wal/wal.go:8: internal/wal is pure and may not import log/slog: take what is needed as a value (pure)",
		"internal/wal/wal.go:12: internal/wal is pure and may not use time.Now: take the instant as a value (pure)",
		"internal/wal/wal.go:13: internal/wal is pure and may not use time.Now: take the instant as a value (pure)",
		"pooler/session/s.go:6: pooler/session is pure and may not import sync: take what is needed as a value (pure)",
	)

	function := func(lines int) string { return "func f() {\n" + strings.Repeat("\tf()\n", lines-2) + "}\n" }
	expect("sizes", map[string]string{
		"config/config.go":      "// Package config.\npackage config\n\n" + function(70),
		"config/long.go":        "package config\n\n" + function(71),
		"config/long_test.go":   "package config\n\n" + function(598),
		"config/longer_test.go": "package config\n\n" + function(599),
		"config/generated.go":   "// Code generated by hand. DO NOT EDIT.\n\npackage config\n\n" + function(700),
	},
		"config/long.go:3: f has 71 lines, the limit is 70: keep branches and state in it, move what computes out (function size)",
		"config/longer_test.go:601: the file has 601 lines, the limit is 600: name the second concept in it and give it a file (file size)",
	)

	expect("packages", map[string]string{
		"config/config.go":        "package config\n",
		"config/errors.go":        "//go:build linux\n\npackage config\n",
		"internal/store/a.go":     "package store\n",
		"internal/store/z.go":     "// Package store.\npackage store\n",
		"internal/repo/r_test.go": "package repo\n",
		"pooler/util/util.go":     "// Package util.\npackage util\n",
	},
		"config/config.go:1: package config has no comment that says what it owns and what it never does (package comment)",
		"pooler/util/util.go:2: package util names no concept: name the one that this code is about (package name)",
	)

	expect("calls", map[string]string{
		"config/config.go":      "// Package config.\npackage config\n\nimport (\n\t\"log\"\n\t\"os\"\n)\n\nfunc f() {\n\tlog.Fatalf(\"no\")\n\tos.Exit(1)\n\tdefer os.Remove(\"x\")\n}\n",
		"config/config_test.go": "package config\n\nimport (\n\t\"os\"\n\t\"testing\"\n\t\"time\"\n\t\"pgregory.net/rapid\"\n)\n\nfunc TestMain(m *testing.M) { os.Exit(m.Run()) }\n\nfunc TestX(t *testing.T) {\n\ttime.Sleep(time.Second)\n\tt.Skip(\"no\")\n\trapid.Check(t, func(t *rapid.T) { t.Skip() })\n\tt.Run(\"x\", func(b *testing.T) { b.SkipNow() })\n}\n\nfunc need(tb testing.TB) { tb.Skipf(\"no\") }\n",
	},
		"config/config.go:10: only cmd/pitr exits: return an error instead of Fatalf (exit)",
		"config/config.go:11: only cmd/pitr exits: return an error instead of Exit (exit)",
		"config/config_test.go:13: no time.Sleep in tests: wait for the event, or use testing/synctest (sleep)",
		"config/config_test.go:14: no t.Skip: a test that cannot run fails (skip)",
		"config/config_test.go:16: no b.SkipNow: a test that cannot run fails (skip)",
		"config/config_test.go:19: no tb.Skipf: a test that cannot run fails (skip)",
	)

	expect("links", map[string]string{
		"README.md":    "# pitr\n\n## What it is, and how\n\n[a](docs/A.md) [b](docs/B.md) ![c](/docs/A.md#top) [d](#what-it-is-and-how) [e](#nowhere)\n`[f](code)` [g](https://example.org/x) [h](../x.md)\n\n```\n[i](block)\n```\n[j]: docs/C.md \"title\"\n[k](docs) [l](docs/A.md#again-1) [m](docs/A.md#again-2)\n",
		"docs/A.md":    "# Top\n## Again\n## `Again`\n[up](../README.md)\n",
		"docs/x/ok.md": "[up](../../README.md#pitr)\n",
	},
		"README.md:5: link to docs/B.md: there is no such file (links)",
		"README.md:5: link to #nowhere: there is no such heading (links)",
		"README.md:6: link to ../x.md: it leaves the repository (links)",
		"README.md:11: link to docs/C.md: there is no such file (links)",
		"README.md:12: link to docs/A.md#again-2: there is no such heading (links)",
	)

	expect("promises", map[string]string{
		"docs/A.md":             "Held by `TestHeld` and `TestBroken`; `TestX.txt` is a file.\n",
		"internal/pg/a_test.go": "package pg\n\nfunc TestHeld() {}\n",
	},
		"docs/A.md:1: there is no test TestBroken (promises)",
	)

	for _, r := range rules {
		if !seen[r.name] {
			t.Errorf("no case here breaks the rule %q", r.name)
		}
	}
}

func TestSourceThatDoesNotParseIsAnError(t *testing.T) {
	_, err := Check(fstest.MapFS{"a.go": &fstest.MapFile{Data: []byte("package")}})
	if err == nil || !strings.Contains(err.Error(), "a.go:1") {
		t.Errorf("got %v, want an error that names the place", err)
	}
}
