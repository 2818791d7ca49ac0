package tidy

import "go/ast"

const (
	fileLinesMax     = 600
	functionLinesMax = 70 // in code that is not a test
)

func checkFileSize(h *house) []Problem {
	var problems []Problem
	for _, f := range h.files {
		if !f.generated && f.lines > fileLinesMax {
			p := f.problem(f.syntax.Package, "the file has %d lines, the limit is %d: name the second concept in it and give it a file", f.lines, fileLinesMax)
			p.Line = fileLinesMax + 1
			problems = append(problems, p)
		}
	}
	return problems
}

func checkFunctionSize(h *house) []Problem {
	var problems []Problem
	for _, f := range h.files {
		if f.test || f.generated {
			continue
		}
		for _, decl := range f.syntax.Decls {
			function, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			lines := f.fset.Position(function.End()).Line - f.fset.Position(function.Pos()).Line + 1
			if lines > functionLinesMax {
				problems = append(problems, f.problem(function.Pos(), "%s has %d lines, the limit is %d: keep branches and state in it, move what computes out",
					function.Name.Name, lines, functionLinesMax))
			}
		}
	}
	return problems
}
