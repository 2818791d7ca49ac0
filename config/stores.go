package config

import (
	"fmt"
	"net/url"
	"strings"
)

// copiesMax is one less than the largest archive.quorum.
const copiesMax = 15

// validateStores checks the stores one by one, and that they are different ones.
func validateStores(a Archive) []Problem {
	var problems []Problem
	note := func(key, text string) { problems = append(problems, Problem{Key: key, Text: text}) }
	keys := map[string]string{} // by place
	for i, text := range append([]string{a.Store}, a.Copies...) {
		key := "archive.store"
		if i > 0 {
			key = fmt.Sprintf("archive.copies[%d]", i-1)
		}
		if text == "" && i == 0 {
			continue
		}
		if problem := storeProblem(text); problem != "" {
			note(key, problem)
			continue
		}
		place := StoreName(text)
		if other, taken := keys[place]; taken {
			note(key, "is the same place as "+other)
		}
		keys[place] = key
	}
	switch stores := 1 + len(a.Copies); {
	case a.Store == "" && len(a.Copies) > 0:
		note("archive.copies", "are copies of archive.store, which is not set")
	case len(a.Copies) > copiesMax:
		note("archive.copies", fmt.Sprintf("are %d, at most %d are possible", len(a.Copies), copiesMax))
	case a.Quorum > stores:
		note("archive.quorum", fmt.Sprintf("is %d, but there are only %d stores: archive.store and archive.copies", a.Quorum, stores))
	}
	return problems
}

// storeProblem says what is wrong with a store's URL; "" when nothing is.
func storeProblem(text string) string {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return "is no URL"
	case u.Scheme == "file" && (u.Host != "" || !strings.HasPrefix(u.Path, "/")):
		return "needs an absolute path: file:///directory"
	case u.Scheme == "s3" && u.Host == "":
		return "needs a bucket: s3://bucket/prefix"
	case u.Scheme != "file" && u.Scheme != "s3":
		return "must begin with file:// or s3://"
	}
	return ""
}

// StoreName is a store's URL without what does not tell places apart, and without credentials: for logs, metrics and comparison.
func StoreName(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "store"
	}
	name := u.Scheme + "://" + u.Host + "/" + strings.Trim(u.Path, "/")
	if endpoint, err := url.Parse(u.Query().Get("endpoint")); err == nil && endpoint.Host != "" {
		name += "?endpoint=" + endpoint.Host
	}
	return name
}
