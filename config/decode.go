package config

import (
	"fmt"
	"reflect"
	"sort"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// setter is implemented by the types that read themselves from text.
type setter interface{ set(text string) error }

// decoder walks the syntax tree and the struct side by side and notes every problem instead of stopping at the first.
type decoder struct {
	problems []Problem
	lines    map[string]int // of the keys that were set
}

// Parse checks content as a whole and returns the configuration with defaults filled in. path is for messages only.
func Parse(path string, content []byte) (*Config, error) {
	cfg := Default()
	file, err := parser.ParseBytes(content, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return nil, &Error{path, []Problem{syntaxProblem(err)}}
	}
	d := decoder{lines: map[string]int{}}
	if len(file.Docs) > 1 {
		d.note(file.Docs[1], "", "a second document begins; there may be one")
	}
	if len(file.Docs) > 0 && file.Docs[0].Body != nil {
		d.value(file.Docs[0].Body, "", reflect.ValueOf(cfg).Elem())
	}
	for _, problem := range validate(cfg) {
		key, _, _ := strings.Cut(problem.Key, "[")
		problem.Line = d.lines[key]
		d.problems = append(d.problems, problem)
	}
	if len(d.problems) > 0 {
		sort.SliceStable(d.problems, func(i, j int) bool { return d.problems[i].Line < d.problems[j].Line })
		return nil, &Error{path, d.problems}
	}
	return cfg, nil
}

// syntaxProblem keeps the parser's message, whose first line looks like "[3:5] text".
func syntaxProblem(err error) Problem {
	first, _, _ := strings.Cut(err.Error(), "\n")
	var line, column int
	if _, scanErr := fmt.Sscanf(first, "[%d:%d]", &line, &column); scanErr != nil {
		return Problem{Text: first}
	}
	_, text, _ := strings.Cut(first, "] ")
	return Problem{Line: line, Text: text}
}

func (d *decoder) note(node ast.Node, key, text string) {
	line := 0
	if token := node.GetToken(); token != nil && token.Position != nil {
		line = token.Position.Line
	}
	d.problems = append(d.problems, Problem{line, key, text})
}

func (d *decoder) value(node ast.Node, key string, into reflect.Value) {
	if _, isSetter := into.Addr().Interface().(setter); isSetter {
		d.scalar(node, key, into)
		return
	}
	switch into.Kind() {
	case reflect.Struct:
		d.mapping(node, key, into)
	case reflect.Map:
		d.names(node, key, into)
	case reflect.Slice:
		d.sequence(node, key, into)
	default:
		d.scalar(node, key, into)
	}
}

// entries are the pairs of a mapping; a mapping of one pair is a node of its own kind.
func (d *decoder) entries(node ast.Node, key string) []*ast.MappingValueNode {
	var entries []*ast.MappingValueNode
	switch node := node.(type) {
	case *ast.MappingNode:
		entries = node.Values
	case *ast.MappingValueNode:
		entries = []*ast.MappingValueNode{node}
	case *ast.NullNode: // a section whose lines are all commented out
	default:
		d.note(node, key, "expected a section of keys and values")
	}
	seen := map[string]bool{}
	unique := entries[:0:0]
	for _, entry := range entries {
		name := entry.Key.GetToken().Value
		if seen[name] {
			d.note(entry.Key, join(key, name), "is set twice")
			continue
		}
		seen[name] = true
		unique = append(unique, entry)
	}
	return unique
}

func (d *decoder) mapping(node ast.Node, key string, into reflect.Value) {
	fields := map[string]int{}
	for i := range into.NumField() {
		if name := into.Type().Field(i).Tag.Get("yaml"); name != "-" {
			fields[name] = i
		}
	}
	for _, entry := range d.entries(node, key) {
		name := entry.Key.GetToken().Value
		index, known := fields[name]
		if !known {
			d.note(entry.Key, join(key, name), "unknown key"+didYouMean(name, fields))
			continue
		}
		d.lines[join(key, name)] = entry.Key.GetToken().Position.Line
		d.value(entry.Value, join(key, name), into.Field(index))
	}
}

func (d *decoder) names(node ast.Node, key string, into reflect.Value) {
	into.Set(reflect.MakeMap(into.Type()))
	for _, entry := range d.entries(node, key) {
		name := entry.Key.GetToken().Value
		d.lines[join(key, name)] = entry.Key.GetToken().Position.Line
		element := reflect.New(into.Type().Elem()).Elem()
		d.value(entry.Value, join(key, name), element)
		into.SetMapIndex(reflect.ValueOf(name), element)
	}
}

func (d *decoder) sequence(node ast.Node, key string, into reflect.Value) {
	list, isList := node.(*ast.SequenceNode)
	if !isList {
		d.note(node, key, "expected a list, for example [one, two]")
		return
	}
	into.Set(reflect.MakeSlice(into.Type(), len(list.Values), len(list.Values)))
	for i, element := range list.Values {
		d.value(element, key, into.Index(i))
	}
}

func (d *decoder) scalar(node ast.Node, key string, into reflect.Value) {
	text, isScalar := scalarText(node)
	if !isScalar {
		d.note(node, key, "expected a single value")
		return
	}
	_, isSecret := into.Addr().Interface().(interface{ Reveal() string })
	if !isSecret && envReference.MatchString(text) {
		d.note(node, key, "refers to the environment; only secrets may")
		return
	}
	err := setScalar(into, text)
	if err == nil && text != "" {
		err = checkRange(key, text)
	}
	if err != nil {
		shown := fmt.Sprintf("%q ", text)
		if isSecret {
			shown = ""
		}
		d.note(node, key, shown+err.Error())
	}
}

func scalarText(node ast.Node) (string, bool) {
	switch node := node.(type) {
	case *ast.StringNode:
		return node.Value, true
	case *ast.LiteralNode:
		return strings.TrimRight(node.Value.Value, "\n"), true
	case *ast.NullNode:
		return "", true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return node.GetToken().Value, true
	default:
		return "", false
	}
}

func setScalar(into reflect.Value, text string) error {
	if s, isSetter := into.Addr().Interface().(setter); isSetter {
		return s.set(text)
	}
	switch into.Kind() {
	case reflect.String:
		into.SetString(text)
	case reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("is not a whole number")
		}
		into.SetInt(int64(n))
	default:
		panic("config: a field has a type that no setting may have")
	}
	return nil
}

func join(section, name string) string {
	if section == "" {
		return name
	}
	return section + "." + name
}
