package tidy

import "strings"

// owner says which packages may import a third-party package and those below it, so that each can be replaced in an
// afternoon. Test files may import any module.
type owner struct {
	imported string
	trees    []string // nil: tests only
}

// owners has the longest fitting path decide, so that pgx itself is not open to those who own one of its parts.
var owners = []owner{
	{"filippo.io/age", []string{"internal/repo"}},
	{"github.com/goccy/go-yaml", []string{"config"}},
	{"github.com/jackc/pgx/v5", []string{"cmd/pitr"}},
	{"github.com/jackc/pgx/v5/pgconn", []string{"archiver/replication", "pooler/pool", "cmd/pitr"}},
	{"github.com/jackc/pgx/v5/pgproto3", []string{"archiver/replication", "pooler"}},
	{"github.com/jedib0t/go-pretty/v6", []string{"cmd/pitr"}},
	{"github.com/klauspost/compress", []string{"internal/repo"}},
	{"github.com/minio/minio-go/v7", []string{"internal/store/s3"}},
	{"github.com/prometheus/client_golang", []string{"internal/monitor"}},
	{"github.com/robfig/cron/v3", []string{"archiver"}},
	{"github.com/spf13/cobra", []string{"bench", "cmd/pitr"}},
	{"github.com/spf13/pflag", []string{"bench", "cmd/pitr"}},
	{"github.com/vbauerster/mpb/v8", []string{"cmd/pitr"}},
	{"github.com/xdg-go/scram", []string{"pooler/auth"}},

	{"github.com/Shopify/toxiproxy/v2", nil},
	{"github.com/chromedp/chromedp", nil},
	{"github.com/cockroachdb/datadriven", nil},
	{"github.com/google/go-cmp", nil},
	{"github.com/rogpeppe/go-internal", nil},
	{"go.uber.org/goleak", nil},
	{"pgregory.net/rapid", nil},
}

func ownerOf(imported string) *owner {
	var found *owner
	for i := range owners {
		o := &owners[i]
		if within(imported, o.imported) && (found == nil || len(o.imported) > len(found.imported)) {
			found = o
		}
	}
	return found
}

func (o *owner) allows(dir string) bool {
	for _, tree := range o.trees {
		if within(dir, tree) {
			return true
		}
	}
	return false
}

func checkModules(h *house) []Problem {
	var problems []Problem
	for _, f := range h.files {
		if f.test {
			continue
		}
		for _, spec := range f.syntax.Imports {
			imported := importPath(spec)
			if standard(imported) || within(imported, module) {
				continue
			}
			o := ownerOf(imported)
			switch {
			case o == nil:
				problems = append(problems, f.problem(spec.Pos(), "%s has no owner: a new module is a commit of its own and a row in internal/tidy/modules.go", imported))
			case o.trees == nil:
				problems = append(problems, f.problem(spec.Pos(), "only tests may import %s", imported))
			case !o.allows(f.dir):
				problems = append(problems, f.problem(spec.Pos(), "%s is owned by %s", imported, strings.Join(o.trees, ", ")))
			}
		}
	}
	return problems
}

// standard tells whether an import is of the standard library: its first element has no dot, and is not ours.
func standard(imported string) bool {
	first, _, _ := strings.Cut(imported, "/")
	return !strings.Contains(first, ".") && first != module
}
