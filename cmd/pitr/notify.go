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

// firstActivated is SD_LISTEN_FDS_START in sd_listen_fds(3).
const firstActivated = 3

// activatedSockets returns the listening sockets that systemd has opened for this process, if it has: sd_listen_fds(3).
func activatedSockets() (listeners []net.Listener, err error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 0 || n > activatedMax {
		return nil, fmt.Errorf("LISTEN_FDS: %q is no number of sockets", os.Getenv("LISTEN_FDS"))
	}
	for fd := firstActivated; fd < firstActivated+n; fd++ {
		file := os.NewFile(uintptr(fd), "LISTEN_FDS")
		listener, err := net.FileListener(file) // a copy, which no child gets
		file.Close()
		if err != nil {
			for _, one := range listeners {
				one.Close()
			}
			return nil, fmt.Errorf("LISTEN_FDS: descriptor %d is no listening socket: %w", fd, err)
		}
		listeners = append(listeners, listener)
	}
	return listeners, nil
}

// activatedMax is more than anybody listens on.
const activatedMax = 1000

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
