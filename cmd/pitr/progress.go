package main

import (
	"io"
	"os"
	"sync"
)

// eraseLine goes to the begin of the terminal's line and clears it.
const eraseLine = "\r\x1b[K"

// statusLine is standard error with one line at its end that replaces itself, if it is a terminal. What is logged meanwhile stands above that line.
type statusLine struct {
	mu   sync.Mutex // guards what follows
	out  io.Writer
	text string
}

// stderr is where logs and progress go.
var stderr = &statusLine{out: os.Stderr}

// Write implements io.Writer.
func (s *statusLine) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.text == "" {
		return s.out.Write(p)
	}
	if _, err := io.WriteString(s.out, eraseLine); err != nil {
		return 0, err
	}
	n, err := s.out.Write(p)
	if err == nil {
		_, err = io.WriteString(s.out, s.text)
	}
	return n, err
}

// show replaces the line; an empty text removes it. A terminal that is gone is no reason to stop what is shown on it.
func (s *statusLine) show(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if text != "" || s.text != "" {
		_, _ = io.WriteString(s.out, eraseLine+text)
	}
	s.text = text
}

// progress shows how far something is, on a terminal only.
type progress struct {
	line *statusLine // nil: nobody looks
}

func newProgress() *progress {
	info, err := os.Stderr.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return &progress{}
	}
	return &progress{stderr}
}

func (p *progress) show(text string) {
	if p.line != nil {
		p.line.show(text)
	}
}

func (p *progress) done() {
	if p.line != nil {
		p.line.show("")
	}
}
