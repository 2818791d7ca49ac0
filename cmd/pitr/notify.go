package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"pitr/pooler"
)

// notifyTimeout bounds what telling the supervisor may take, whose socket may be full.
const notifyTimeout = time.Second

// notifySupervisor tells systemd, or whoever is behind $NOTIFY_SOCKET, of a state: lines of sd_notify(3). Without such a socket it does nothing.
func notifySupervisor(lines ...string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	if !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "@") { // @ is the abstract namespace, for systemd as for Go
		return fmt.Errorf("NOTIFY_SOCKET: %q is no Unix socket", path)
	}
	conn, err := net.DialTimeout("unixgram", path, notifyTimeout)
	if err != nil {
		return fmt.Errorf("NOTIFY_SOCKET: %w", err)
	}
	err = conn.SetWriteDeadline(time.Now().Add(notifyTimeout))
	if err == nil {
		_, err = conn.Write([]byte(strings.Join(lines, "\n")))
	}
	return errors.Join(err, conn.Close())
}

// poolerEvents tell the supervisor what becomes of a pooler. A supervisor that is not to be reached stops nothing.
func poolerEvents(log *slog.Logger) pooler.Events {
	say := func(lines ...string) {
		if err := notifySupervisor(lines...); err != nil {
			log.Warn("supervisor not notified", "state", lines[0], "error", err)
		}
	}
	return pooler.Events{
		Serving:   func() { say("READY=1") },
		Reloading: func() { say("RELOADING=1", monotonicMicroseconds()) },
		Reloaded:  func() { say("READY=1") },
		Succeeded: func(pid int) { say("MAINPID=" + strconv.Itoa(pid)) },
		Stopping:  func() { say("STOPPING=1") },
	}
}
