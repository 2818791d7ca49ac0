package tidy

import (
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"regexp"
	"strings"
	"unicode"
)

var (
	inlineLink    = regexp.MustCompile(`\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)`)
	referenceLink = regexp.MustCompile(`^\s{0,3}\[[^\]]+\]:\s+<?([^\s>]+)>?`)
	codeSpan      = regexp.MustCompile("`+[^`]*`+")
	fence         = regexp.MustCompile("^\\s*(```|~~~)")
	heading       = regexp.MustCompile(`^#{1,6}\s+(.*?)\s*#*$`)
)

// checkLinks follows the links that stay inside the repository, to the file and to the heading in it.
func checkLinks(h *house) []Problem {
	var problems []Problem
	for _, d := range h.docs {
		for number, line := range d.prose() {
			for _, target := range targets(line) {
				if trouble := h.follow(d, target); trouble != "" {
					problems = append(problems, Problem{File: d.path, Line: number + 1, Text: fmt.Sprintf("link to %s: %s", target, trouble)})
				}
			}
		}
	}
	return problems
}

// prose is the document's lines, those of code blocks blanked.
func (d *document) prose() []string {
	lines := strings.Split(d.text, "\n")
	inside := false
	for i, line := range lines {
		marks := fence.MatchString(line)
		if marks || inside {
			lines[i] = ""
		}
		if marks {
			inside = !inside
		}
	}
	return lines
}

// targets lists where the links of a line lead.
func targets(line string) []string {
	line = codeSpan.ReplaceAllString(line, "")
	var found []string
	for _, expression := range []*regexp.Regexp{inlineLink, referenceLink} {
		for _, match := range expression.FindAllStringSubmatch(line, -1) {
			found = append(found, match[1])
		}
	}
	return found
}

// follow says what is wrong with a link of d, or nothing.
func (h *house) follow(d *document, target string) string {
	to, err := url.Parse(target)
	if err != nil {
		return "it does not parse"
	}
	if to.Scheme != "" || to.Host != "" {
		return "" // elsewhere
	}
	name := d.path
	switch {
	case strings.HasPrefix(to.Path, "/"):
		name = path.Clean(strings.TrimLeft(to.Path, "/"))
	case to.Path != "":
		name = path.Join(path.Dir(d.path), to.Path)
	}
	if name == ".." || strings.HasPrefix(name, "../") {
		return "it leaves the repository"
	}
	if _, err := fs.Stat(h.fsys, name); err != nil {
		return "there is no such file"
	}
	if to.Fragment == "" || path.Ext(name) != ".md" {
		return ""
	}
	for _, other := range h.docs {
		if other.path == name && !other.hasAnchor(to.Fragment) {
			return "there is no such heading"
		}
	}
	return ""
}

// hasAnchor tells whether one of the document's headings is known by the given fragment. Of equal headings the second is
// called heading-1, the third heading-2.
func (d *document) hasAnchor(fragment string) bool {
	seen := map[string]int{}
	for _, line := range d.prose() {
		match := heading.FindStringSubmatch(line)
		if match == nil {
			continue
		}
		slug := anchor(match[1])
		name := slug
		if n := seen[slug]; n > 0 {
			name = fmt.Sprintf("%s-%d", slug, n)
		}
		seen[slug]++
		if name == fragment {
			return true
		}
	}
	return false
}

// anchor is how GitHub and its like turn a heading into a fragment.
func anchor(title string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(inlineLink.ReplaceAllString(title, "]")) {
		switch {
		case r == ' ':
			b.WriteByte('-')
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			b.WriteRune(r)
		}
	}
	return b.String()
}
