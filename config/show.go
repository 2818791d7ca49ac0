package config

import (
	"fmt"
	"reflect"
	"sort"
	"strconv"
	"strings"
)

// YAML prints the effective configuration, secrets hidden.
func (c *Config) YAML() string {
	var out strings.Builder
	writeStruct(&out, "", reflect.ValueOf(c).Elem())
	return out.String()
}

func writeStruct(out *strings.Builder, indent string, v reflect.Value) {
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("yaml")
		if name == "-" {
			continue
		}
		writeValue(out, indent, name, v.Field(i))
	}
}

func writeValue(out *strings.Builder, indent, name string, v reflect.Value) {
	switch {
	case v.Kind() == reflect.Struct:
		fmt.Fprintf(out, "%s%s:\n", indent, name)
		writeStruct(out, indent+"  ", v)
	case v.Kind() == reflect.Map && v.Len() == 0:
		fmt.Fprintf(out, "%s%s: {}\n", indent, name)
	case v.Kind() == reflect.Map:
		fmt.Fprintf(out, "%s%s:\n", indent, name)
		keys := v.MapKeys()
		sort.Slice(keys, func(i, j int) bool { return keys[i].String() < keys[j].String() })
		for _, key := range keys {
			writeValue(out, indent+"  ", strconv.Quote(key.String()), v.MapIndex(key))
		}
	case v.Kind() == reflect.Slice:
		texts := make([]string, v.Len())
		for i := range texts {
			texts[i] = scalarYAML(v.Index(i))
		}
		fmt.Fprintf(out, "%s%s: [%s]\n", indent, name, strings.Join(texts, ", "))
	default:
		fmt.Fprintf(out, "%s%s: %s\n", indent, name, scalarYAML(v))
	}
}

func scalarYAML(v reflect.Value) string {
	if v.Kind() == reflect.Int {
		return strconv.FormatInt(v.Int(), 10)
	}
	return quoteYAML(fmt.Sprint(v.Interface()))
}

// quoteYAML quotes what would not read back as the same string.
func quoteYAML(text string) string {
	plain := text != "" && strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/:") == "" && !strings.HasSuffix(text, ":")
	if plain {
		return text
	}
	return strconv.Quote(text)
}

// Markdown is docs/CONFIG.md.
func Markdown() string {
	var out strings.Builder
	out.WriteString("# Settings of pitr.yaml\n\nGenerated from the table in `config/settings.go`; do not edit. Durations are written with a unit (`250ms`, `30s`, `5m`, `1h`, `7d`),\n" +
		"sizes too (`512B`, `64KiB`, `16MiB`, `1GiB`). `${NAME}` takes a value from the environment, in secrets only; `$${` is `${` itself.\n" +
		"pitr reads the file of `-c`, else `$PITR_CONFIG`, else `./pitr.yaml`, else `/etc/pitr/pitr.yaml`. A change takes a restart unless it says `reload`.\n\n" +
		"| key | default | range | meaning |\n|---|---|---|---|\n")
	for _, s := range settings {
		doc := s.Doc
		if s.Reload {
			doc += " (reload)"
		}
		fmt.Fprintf(&out, "| `%s` | %s | %s | %s |\n", s.Key, code(s.Default), code(strings.ReplaceAll(s.Range, "|", " , ")), doc)
	}
	return out.String()
}

func code(text string) string {
	if text == "" {
		return ""
	}
	return "`" + text + "`"
}
