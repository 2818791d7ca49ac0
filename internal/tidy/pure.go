package tidy

// pureTrees take values and return values: no sockets, files, clocks, locks or logs. Their drivers own those.
var pureTrees = append([]string{"pooler/session"}, leaves...)

// impure are the packages, with all below them, that pure code does not import.
var impure = []string{"log", "net", "os", "sync"}

// clock are the functions of package time that ask what time it is, or wait.
var clock = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}

func checkPure(h *house) []Problem {
	var problems []Problem
	for _, f := range h.files {
		if f.test || !isPure(f.dir) {
			continue
		}
		for _, spec := range f.syntax.Imports {
			imported := importPath(spec)
			for _, tree := range impure {
				if within(imported, tree) {
					problems = append(problems, f.problem(spec.Pos(), "%s is pure and may not import %s: take what is needed as a value", f.dir, imported))
				}
			}
			if !standard(imported) && !within(imported, module) && !within(f.dir, "pooler") {
				problems = append(problems, f.problem(spec.Pos(), "%s is a leaf and imports only the standard library, not %s", f.dir, imported))
			}
		}
		for _, use := range f.uses("time", clock...) {
			problems = append(problems, f.problem(use.Pos(), "%s is pure and may not use time.%s: take the instant as a value", f.dir, use.Sel.Name))
		}
	}
	return problems
}

func isPure(dir string) bool {
	for _, tree := range pureTrees {
		if within(dir, tree) {
			return true
		}
	}
	return false
}
