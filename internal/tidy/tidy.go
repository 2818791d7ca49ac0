// Package tidy holds the house rules that a machine can check: who may import whom, which package owns which third-party
// module, how long files and functions may be, and a few calls that have no place here. `go test ./internal/tidy` applies
// them to the whole repository. It reads sources, never changes them, and knows nothing of what they do.
package tidy

import (
	"cmp"
	"fmt"
	"io/fs"
	"slices"
)

// Problem is one place that breaks a rule.
type Problem struct {
	Rule string // name of the rule
	File string // path from the root of the repository
	Line int    // from 1
	Text string // what is wrong and what would be right
}

// String is the form in which editors and people find the place: file:line: text (rule).
func (p Problem) String() string {
	return fmt.Sprintf("%s:%d: %s (%s)", p.File, p.Line, p.Text, p.Rule)
}

// rule is one house rule. It reports nothing when the repository keeps it.
type rule struct {
	name  string
	check func(*house) []Problem
}

var rules = []rule{
	{"layers", checkLayers},
	{"modules", checkModules},
	{"pure", checkPure},
	{"file size", checkFileSize},
	{"function size", checkFunctionSize},
	{"package comment", checkPackageComment},
	{"package name", checkPackageName},
	{"exit", checkExit},
	{"sleep", checkSleep},
	{"skip", checkSkip},
	{"links", checkLinks},
	{"promises", checkPromises},
}

// Check applies every rule to the repository whose root is fsys and reports the problems in order of file and line. The
// error is about reading or parsing, which is not a question of tidiness.
func Check(fsys fs.FS) ([]Problem, error) {
	h, err := open(fsys)
	if err != nil {
		return nil, err
	}
	var problems []Problem
	for _, r := range rules {
		for _, p := range r.check(h) {
			p.Rule = r.name
			problems = append(problems, p)
		}
	}
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Rule, b.Rule))
	})
	return problems, nil
}
