package tidy

import (
	"fmt"
	"go/ast"
	"regexp"
	"strings"
)

var namedTest = regexp.MustCompile("`(Test[A-Z][A-Za-z0-9]*)`")

// checkPromises holds that a test which a document names, as the owner of a law for example, exists.
func checkPromises(h *house) []Problem {
	tests := map[string]bool{}
	for _, f := range h.files {
		for _, decl := range f.syntax.Decls {
			if fn, isFunc := decl.(*ast.FuncDecl); isFunc && f.test {
				tests[fn.Name.Name] = true
			}
		}
	}
	var problems []Problem
	for _, d := range h.docs {
		for number, line := range strings.Split(d.text, "\n") {
			for _, m := range namedTest.FindAllStringSubmatch(line, -1) {
				if !tests[m[1]] {
					problems = append(problems, Problem{File: d.path, Line: number + 1, Text: fmt.Sprintf("there is no test %s", m[1])})
				}
			}
		}
	}
	return problems
}
