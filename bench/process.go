package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	stopGrace   = 3 * time.Second // between the polite signal and the other one
	outputKept  = 16 << 10        // bytes of a process's output that are kept, the last ones
	messageKept = 300             // bytes of it that an error quotes
)

// process is a program that we started and that we end.
type process struct {
	name   string
	cmd    *exec.Cmd
	output *output
	done   chan struct{} // closed when it has ended
	err    error         // valid after done
}

// launch is what a process is started from.
type launch struct {
	name string
	args []string // the program and its arguments
	dir  string   // working directory
	env  []string // besides our own environment
	as   *syscall.Credential
}

// start runs the program in a process group of its own, so that Ctrl-C reaches us and nobody else. Should we be killed, the kernel
// ends it.
func start(l launch) (*process, error) {
	p := &process{name: l.name, cmd: l.command(), output: &output{}, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", l.name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (l launch) command() *exec.Cmd {
	cmd := exec.Command(l.args[0], l.args[1:]...)
	cmd.Dir = l.dir
	cmd.Env = append(os.Environ(), l.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: l.as}
	return cmd
}

// run waits for the program to end, and ends it when ctx does. Its output is the result.
func run(ctx context.Context, l launch) (string, error) {
	var out bytes.Buffer
	cmd := l.command()
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("start %s: %w", l.name, err)
	}
	ended := context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	err := cmd.Wait()
	ended()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil {
		return out.String(), fmt.Errorf("%s: %w%s", l.name, err, said(out.String()))
	}
	return out.String(), nil
}

// stop ends the process with the given signal, and with SIGKILL when it does not heed it.
func (p *process) stop(signal syscall.Signal) {
	_ = p.cmd.Process.Signal(signal) // it may have ended
	select {
	case <-p.done:
	case <-time.After(stopGrace):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
	}
}

// ended is why the process runs no more, or nil while it runs.
func (p *process) ended() error {
	select {
	case <-p.done:
		err := p.err
		if err == nil {
			err = errors.New("it has ended")
		}
		return fmt.Errorf("%s: %w%s", p.name, err, said(p.output.String()))
	default:
		return nil
	}
}

// output keeps the end of what a process prints.
type output struct {
	mu   sync.Mutex // guards kept
	kept []byte
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.kept = append(o.kept, b...)
	if over := len(o.kept) - outputKept; over > 0 {
		o.kept = append(o.kept[:0], o.kept[over:]...)
	}
	return len(b), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.kept)
}

// said is what an error quotes of a program's output, if there is any.
func said(out string) string {
	if message := lastMessage(out); message != "" {
		return ": " + message
	}
	return ""
}

// lastMessage is the end of a program's output, on one line: the lines that speak of an error if there are any.
func lastMessage(out string) string {
	lines := strings.FieldsFunc(out, func(r rune) bool { return r == '\n' || r == '\r' })
	var errorLines []string
	for _, line := range lines {
		lower := strings.ToLower(line)
		if strings.Contains(lower, "error") || strings.Contains(lower, "fatal") || strings.Contains(lower, "panic") {
			errorLines = append(errorLines, line)
		}
	}
	if len(errorLines) == 0 {
		errorLines = lines
	}
	if n := len(errorLines); n > 2 {
		errorLines = errorLines[n-2:]
	}
	message := strings.Join(errorLines, "; ")
	if len(message) > messageKept {
		message = message[:messageKept] + "…"
	}
	return message
}

// unprivileged is as whom servers run: as ourselves, or as postgres when we are root, since Postgres and PgBouncer refuse root.
func unprivileged() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	who, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("root cannot run Postgres: %w", err)
	}
	uid, err := strconv.ParseUint(who.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user postgres: %w", err)
	}
	gid, err := strconv.ParseUint(who.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user postgres: %w", err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// raiseOpenFiles lifts the limit of open files as far as we may, for us and (since it is set here, by hand) for what we start.
func raiseOpenFiles() (uint64, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("limit of open files: %w", err)
	}
	if limit.Max < openFilesWanted {
		more := syscall.Rlimit{Cur: openFilesWanted, Max: openFilesWanted}
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &more) == nil {
			return more.Cur, nil
		}
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("limit of open files: %w", err)
	}
	return limit.Cur, nil
}

// openFilesWanted suffices for a pooler with 10,000 clients and some.
const openFilesWanted = 20_000
