package main

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestWhatIsLoggedStandsAboveTheLineOfProgress(t *testing.T) {
	var out strings.Builder
	line := &statusLine{out: &out}
	p := &progress{line}
	log := slog.New(slog.NewTextHandler(line, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	log.Info("before")
	p.show("1 % done")
	log.Info("meanwhile")
	p.show("2 % done")
	p.done()
	log.Info("after")
	want := "level=INFO msg=before\n" + eraseLine + "1 % done" + eraseLine + "level=INFO msg=meanwhile\n1 % done" + eraseLine + "2 % done" + eraseLine + "level=INFO msg=after\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	if _, err := fmt.Fprint(&statusLine{out: failingWriter{}, text: "x"}, "y"); err == nil {
		t.Error("an error of the terminal is lost")
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, fmt.Errorf("it is gone") }
