package tidy

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// house is the repository, read and parsed.
type house struct {
	fsys  fs.FS
	files []*goFile
	docs  []*document
}

// goFile is one Go source file.
type goFile struct {
	path      string // from the root
	dir       string // the package's path from the root, without the module's
	test      bool   // compiled into tests only: _test.go, or a package such as storetest
	generated bool
	lines     int
	fset      *token.FileSet
	syntax    *ast.File
}

// document is one Markdown file.
type document struct {
	path string
	text string
}

// open reads all Go and Markdown files but those that are not ours to judge: hidden and build directories, and testdata.
func open(fsys fs.FS) (*house, error) {
	h := &house{fsys: fsys}
	err := fs.WalkDir(fsys, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if base := path.Base(name); name != "." && strings.HasPrefix(base, ".") || base == "testdata" || name == "bin" {
				return fs.SkipDir
			}
			return nil
		}
		return h.read(name)
	})
	if err != nil {
		return nil, fmt.Errorf("read the repository: %w", err)
	}
	return h, nil
}

func (h *house) read(name string) error {
	ext := path.Ext(name)
	if ext != ".go" && ext != ".md" {
		return nil
	}
	src, err := fs.ReadFile(h.fsys, name)
	if err != nil {
		return err
	}
	if ext == ".md" {
		h.docs = append(h.docs, &document{path: name, text: string(src)})
		return nil
	}
	fset := token.NewFileSet()
	syntax, err := parser.ParseFile(fset, name, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	h.files = append(h.files, &goFile{
		path:      name,
		dir:       path.Dir(name),
		test:      strings.HasSuffix(name, "_test.go") || testSupport(path.Dir(name)),
		generated: ast.IsGenerated(syntax),
		lines:     bytes.Count(src, []byte("\n")),
		fset:      fset,
		syntax:    syntax,
	})
	return nil
}

// testSupport tells whether a package exists for tests alone, which it says by its name: storetest, postmastertest.
func testSupport(dir string) bool {
	base := path.Base(dir)
	return strings.HasSuffix(base, "test") && base != "test"
}

func (f *goFile) problem(pos token.Pos, format string, args ...any) Problem {
	return Problem{File: f.path, Line: f.fset.Position(pos).Line, Text: fmt.Sprintf(format, args...)}
}

// importPath is what an import declaration names.
func importPath(spec *ast.ImportSpec) string {
	name, err := strconv.Unquote(spec.Path.Value)
	if err != nil {
		panic("tidy: the parser let through the import " + spec.Path.Value)
	}
	return name
}

// localName is the name by which the file speaks of an imported package, or "" when it does not import it.
func (f *goFile) localName(imported string) string {
	for _, spec := range f.syntax.Imports {
		if importPath(spec) != imported {
			continue
		}
		if spec.Name != nil {
			return spec.Name.Name
		}
		return path.Base(imported)
	}
	return ""
}

// uses reports each mention of one of a package's functions, whether it is called or passed on.
func (f *goFile) uses(imported string, functions ...string) []*ast.SelectorExpr {
	local := f.localName(imported)
	if local == "" {
		return nil
	}
	var found []*ast.SelectorExpr
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		selector, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := selector.X.(*ast.Ident); ok && x.Name == local {
			for _, function := range functions {
				if selector.Sel.Name == function {
					found = append(found, selector)
				}
			}
		}
		return true
	})
	return found
}

// within tells whether a package or import path is tree or lies below it.
func within(name, tree string) bool {
	return name == tree || strings.HasPrefix(name, tree+"/")
}
