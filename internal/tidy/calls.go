package tidy

import (
	"go/ast"
	"slices"
)

// checkExit: only the programs cmd/pitr and bench exit. Everybody else returns an error, so that what was started is also stopped.
func checkExit(h *house) []Problem {
	var problems []Problem
	for _, f := range h.files {
		if f.test || within(f.dir, "cmd/pitr") || f.dir == "bench" {
			continue
		}
		uses := append(f.uses("os", "Exit"), f.uses("log", "Fatal", "Fatalf", "Fatalln")...)
		for _, use := range append(uses, f.uses("syscall", "Exit")...) {
			problems = append(problems, f.problem(use.Pos(), "only cmd/pitr exits: return an error instead of %s", use.Sel.Name))
		}
	}
	return problems
}

// checkSleep: a test that sleeps is either slow or flaky, mostly both.
func checkSleep(h *house) []Problem {
	var problems []Problem
	for _, f := range h.files {
		if !f.test {
			continue
		}
		for _, use := range f.uses("time", "Sleep") {
			problems = append(problems, f.problem(use.Pos(), "no time.Sleep in tests: wait for the event, or use testing/synctest"))
		}
	}
	return problems
}

// checkSkip: a test that is skipped is not run, and nobody notices. What a test needs is installed by `make test`.
func checkSkip(h *house) []Problem {
	var problems []Problem
	for _, f := range h.files {
		if !f.test {
			continue
		}
		for _, decl := range f.syntax.Decls {
			if function, ok := decl.(*ast.FuncDecl); ok && function.Body != nil {
				s := skips{file: f, testing: f.localName("testing")}
				s.function(function.Type, function.Body, nil)
				problems = append(problems, s.problems...)
			}
		}
	}
	return problems
}

// skips looks for calls of Skip on a testing.T and its kind. Other types have a Skip too (rapid.T discards a sample with it),
// so it keeps track of which parameter names stand for what.
type skips struct {
	file     *goFile
	testing  string // local name of package testing
	problems []Problem
}

// function looks through a function's body; outer tells for each name in scope whether it is a testing.T.
func (s *skips) function(signature *ast.FuncType, body *ast.BlockStmt, outer map[string]bool) {
	scope := map[string]bool{}
	for name, is := range outer {
		scope[name] = is
	}
	for _, field := range signature.Params.List {
		for _, name := range field.Names {
			scope[name.Name] = s.isTesting(field.Type)
		}
	}
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			s.function(n.Type, n.Body, scope)
			return false
		case *ast.CallExpr:
			s.call(n, scope)
		}
		return true
	})
}

func (s *skips) call(call *ast.CallExpr, scope map[string]bool) {
	selector, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, selector.Sel.Name) {
		return
	}
	if x, ok := selector.X.(*ast.Ident); ok && scope[x.Name] {
		s.problems = append(s.problems, s.file.problem(call.Pos(), "no %s.%s: a test that cannot run fails", x.Name, selector.Sel.Name))
	}
}

func (s *skips) isTesting(t ast.Expr) bool {
	if star, ok := t.(*ast.StarExpr); ok {
		t = star.X
	}
	selector, ok := t.(*ast.SelectorExpr)
	if !ok || !slices.Contains([]string{"T", "B", "F", "TB"}, selector.Sel.Name) {
		return false
	}
	x, ok := selector.X.(*ast.Ident)
	return ok && s.testing != "" && x.Name == s.testing
}
