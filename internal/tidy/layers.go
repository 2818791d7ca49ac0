package tidy

import "strings"

// module is the path in go.mod.
const module = "pitr"

// layer says what the packages of one tree may import from this module, besides packages of the same tree.
type layer struct {
	tree    string
	imports []string // trees; "*" is every one
}

var leaves = []string{"internal/pg", "internal/pgwire", "internal/wal"}

// layers is the law of the house: the tree with the longest path that fits a package decides. Test files are free.
var layers = []layer{
	{"internal/pg", nil},
	{"internal/pgwire", nil},
	{"internal/wal", []string{"internal/pg"}}, // what it decodes are positions, and these are pg's
	{"internal/postmaster", nil},
	{"internal/tidy", nil},

	{"config", leaves},
	{"internal/store", leaves},
	{"internal/monitor", leaves},
	{"internal/repo", []string{"internal/pg", "internal/wal", "internal/store"}},

	{"pooler/session", []string{"internal/pgwire"}},
	{"pooler/loop", nil},
	{"pooler/takeover", nil},
	{"pooler/pool", []string{"internal/pgwire", "config", "pooler/session"}},
	{"pooler/auth", []string{"internal/pgwire", "config", "pooler/session"}},
	{"pooler/admin", []string{"internal/pgwire", "config", "pooler/session"}},
	{"pooler", []string{"internal/pgwire", "config"}},

	{"archiver", []string{"internal/repo", "internal/pg", "internal/wal", "config"}},
	{"restore", []string{"internal/repo", "internal/pg", "internal/wal", "config", "internal/postmaster"}},

	{"bench", nil}, // it drives binaries
	{"cmd/pitr", []string{"*"}},
}

// layerOf finds the row that decides about a package, or nil.
func layerOf(dir string) *layer {
	var found *layer
	for i := range layers {
		l := &layers[i]
		if within(dir, l.tree) && (found == nil || len(l.tree) > len(found.tree)) {
			found = l
		}
	}
	return found
}

func (l *layer) allows(dir string) bool {
	for _, tree := range append([]string{l.tree}, l.imports...) {
		if tree == "*" || within(dir, tree) {
			return true
		}
	}
	return false
}

func checkLayers(h *house) []Problem {
	var problems []Problem
	for _, f := range h.files {
		if f.test {
			continue
		}
		l := layerOf(f.dir)
		if l == nil {
			problems = append(problems, f.problem(f.syntax.Package, "package %s has no row in the table of layers: add it to internal/tidy/layers.go", f.dir))
			continue
		}
		for _, spec := range f.syntax.Imports {
			dir, ours := strings.CutPrefix(importPath(spec), module+"/")
			switch {
			case !ours:
			case testSupport(dir):
				problems = append(problems, f.problem(spec.Pos(), "only tests may import %s", dir))
			case !l.allows(dir):
				problems = append(problems, f.problem(spec.Pos(), "%s may not import %s: %s", l.tree, dir, l.wording()))
			}
		}
	}
	return problems
}

// wording says what the packages of a layer may import.
func (l *layer) wording() string {
	if len(l.imports) == 0 {
		return "it imports nothing of ours"
	}
	return "of ours it imports only " + strings.Join(l.imports, ", ")
}
