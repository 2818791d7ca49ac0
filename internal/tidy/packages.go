package tidy

import (
	"slices"
	"strings"
)

// homeless are package names that say where code was put, not what it is.
var homeless = []string{"base", "common", "helper", "helpers", "misc", "models", "types", "util", "utils"}

func checkPackageName(h *house) []Problem {
	var problems []Problem
	for _, f := range h.files {
		if name := f.syntax.Name.Name; slices.Contains(homeless, name) {
			problems = append(problems, f.problem(f.syntax.Name.Pos(), "package %s names no concept: name the one that this code is about", name))
		}
	}
	return problems
}

// checkPackageComment wants a comment in one file of each package; a package of nothing but tests needs none.
func checkPackageComment(h *house) []Problem {
	first := map[string]*goFile{} // a package's first file, by directory
	commented := map[string]bool{}
	var dirs []string
	for _, f := range h.files {
		if strings.HasSuffix(f.path, "_test.go") {
			continue
		}
		if first[f.dir] == nil {
			first[f.dir] = f
			dirs = append(dirs, f.dir)
		}
		if f.syntax.Doc != nil && f.syntax.Doc.Text() != "" {
			commented[f.dir] = true
		}
	}
	var problems []Problem
	for _, dir := range dirs {
		if !commented[dir] {
			f := first[dir]
			problems = append(problems, f.problem(f.syntax.Package, "package %s has no comment that says what it owns and what it never does", f.syntax.Name.Name))
		}
	}
	return problems
}
