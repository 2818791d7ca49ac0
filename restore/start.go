package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"pitr/internal/postmaster"
)

// StartOptions says how a restored directory is started.
type StartOptions struct {
	Dir         string
	Port        int
	Log         string        // Postgres's output
	OpenTimeout time.Duration // restore.open_timeout
	Settings    []string
	Pause       bool                // the recovery stays at its target: wait until it is there
	Standby     bool                // it never ends: wait until the server can be read
	Progress    func(status string) // may be nil
}

// Opened is the proof of a finished recovery, as the server's own log tells it.
type Opened struct {
	Port         int           `json:"port"`
	Took         time.Duration `json:"took_ns"`
	Stopping     string        `json:"recovery_stopping"` // the server's line about where it stopped
	RedoDone     string        `json:"redo_done"`
	LastXactTime string        `json:"last_completed_transaction"`
	NewTimeline  string        `json:"new_timeline"`
}

// Start runs Postgres on a restored directory and waits until its recovery has ended at the target and it is open. The server goes
// on when this process ends.
func Start(ctx context.Context, install *postmaster.Install, opt StartOptions) (*postmaster.Server, Opened, error) {
	begin := time.Now()
	from, err := logEnd(opt.Log)
	if err != nil {
		return nil, Opened{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, opt.OpenTimeout)
	defer cancel()
	settings := append([]string{"lc_messages=C", "log_min_messages=log", "logging_collector=off", "log_destination=stderr"}, recoverySettings(ctx, install, opt.Dir)...)
	settings = append(settings, opt.Settings...) // the last one of a name counts
	server, err := install.StartDetached(ctx, postmaster.StartOptions{Dir: opt.Dir, Port: opt.Port, Log: opt.Log, Settings: settings})
	if err != nil {
		return nil, Opened{}, err
	}
	if err := waitOpen(ctx, server, opt, from); err != nil {
		return server, Opened{}, err
	}
	if !opt.Pause && !opt.Standby {
		if err := RemoveSpools(opt.Dir); err != nil {
			return server, Opened{}, err
		}
	}
	opened, err := readProof(opt.Log, from)
	opened.Port, opened.Took = opt.Port, time.Since(begin)
	return server, opened, err
}

// openPoll is how often the state of a recovering server is looked at; startGrace is how long it may take to write its pid file.
const (
	openPoll   = 25 * time.Millisecond
	startGrace = 10 * time.Second
)

func waitOpen(ctx context.Context, server *postmaster.Server, opt StartOptions, from int64) error {
	ticker := time.NewTicker(openPoll)
	defer ticker.Stop()
	begin, seen := time.Now(), false
	for {
		status := server.Status()
		open, err := opt.isOpen(status, from)
		if err != nil || open {
			return err
		}
		seen = seen || status != ""
		if status == "" && (seen || time.Since(begin) > startGrace) {
			return fmt.Errorf("the recovery failed: %s; the whole log is %s", fatalLines(opt.Log, from), opt.Log)
		}
		if opt.Progress != nil {
			opt.Progress(status)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the recovery did not finish: %w; the server goes on, its log is %s", ctx.Err(), opt.Log)
		case <-ticker.C:
		}
	}
}

// isOpen reports whether a server with this status in its pid file has come as far as it should. It is ready as soon as it can be read.
func (opt StartOptions) isOpen(status string, from int64) (bool, error) {
	if status != "ready" || opt.Standby {
		return status == "ready", nil
	}
	_, err := os.Stat(filepath.Join(opt.Dir, "recovery.signal"))
	ended := errors.Is(err, fs.ErrNotExist)
	if !opt.Pause {
		return ended, nil
	}
	if ended {
		return false, errNotPaused
	}
	content, err := readTail(opt.Log, from)
	return logPaused.Match(content), err
}

// errNotPaused says that Postgres could not be read yet when it came to the target: it does not pause then (recoveryPausesHere of
// src/backend/access/transam/xlogrecovery.c).
var errNotPaused = errors.New("the server was promoted at the target instead of pausing, since it could not be read yet; choose a later target, or an earlier backup")

var (
	logPaused   = regexp.MustCompile(`(?m)LOG:  +pausing at the end of recovery$`)
	logStopping = regexp.MustCompile(`(?m)LOG:  +(recovery stopping (?:before|after) .*)$`)
	logRedoDone = regexp.MustCompile(`(?m)LOG:  +redo done at (\S+)`)
	logLastXact = regexp.MustCompile(`(?m)LOG:  +last completed transaction was at log time (.*)$`)
	logTimeline = regexp.MustCompile(`(?m)LOG:  +selected new timeline ID: (\d+)`)
	logTrouble  = regexp.MustCompile(`(?m)^.*(?:FATAL|PANIC|pitr: error|pitr: hint):? +.*$`)
)

// logSizeMax bounds how much of the server's log is searched.
const logSizeMax = 64 << 20

// logEnd is where the output of a server that is about to start will begin: what stands before is another's, and proves nothing.
func logEnd(log string) (int64, error) {
	info, err := os.Stat(log)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("the server's log: %w", err)
	}
	return info.Size(), nil
}

func readProof(log string, from int64) (Opened, error) {
	content, err := readTail(log, from)
	if err != nil {
		return Opened{}, fmt.Errorf("read the server's log: %w", err)
	}
	last := func(re *regexp.Regexp) string {
		all := re.FindAllSubmatch(content, -1)
		if len(all) == 0 {
			return ""
		}
		return string(all[len(all)-1][1])
	}
	return Opened{Stopping: last(logStopping), RedoDone: last(logRedoDone), LastXactTime: last(logLastXact), NewTimeline: last(logTimeline)}, nil
}

func readTail(log string, from int64) ([]byte, error) {
	file, err := os.Open(log)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	content := make([]byte, min(max(0, info.Size()-from), logSizeMax))
	n, err := file.ReadAt(content, info.Size()-int64(len(content)))
	return content[:n], errors.Join(err, file.Close())
}

func fatalLines(log string, from int64) string {
	content, err := readTail(log, from)
	if err != nil {
		return err.Error()
	}
	all := logTrouble.FindAll(content, -1)
	if len(all) == 0 {
		return "its log names no error"
	}
	text := ""
	for _, line := range all[max(0, len(all)-3):] {
		if text != "" {
			text += " / "
		}
		text += string(line)
	}
	return text
}
