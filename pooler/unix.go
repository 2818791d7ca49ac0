package pooler

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"pitr/config"
)

// staleTimeout bounds the question whether somebody listens on a socket that is there already.
const staleTimeout = time.Second

// listenUnix opens the Unix socket, whose name libpq makes of directory and port: UNIXSOCK_PATH in src/include/libpq/pqcomm.h. One that
// nobody listens on any more, since its process was killed, is replaced.
func listenUnix(cfg config.Pooler, port int) (net.Listener, error) {
	path := cfg.UnixSocketDir + "/.s.PGSQL." + strconv.Itoa(port)
	abstract := strings.HasPrefix(path, "@")
	listener, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EADDRINUSE) && !abstract {
		if err := removeStale(path); err != nil {
			return nil, fmt.Errorf("pooler.unix_socket_dir: %w", err)
		}
		listener, err = net.Listen("unix", path)
	}
	if err != nil {
		return nil, fmt.Errorf("pooler.unix_socket_dir: %w", err)
	}
	if abstract || cfg.UnixSocketMode == "" {
		return listener, nil
	}
	mode, err := strconv.ParseUint(cfg.UnixSocketMode, 8, 9)
	if err == nil {
		err = os.Chmod(path, fs.FileMode(mode))
	}
	if err != nil {
		listener.Close()
		return nil, fmt.Errorf("pooler.unix_socket_mode: %w", err)
	}
	return listener, nil
}

// removeStale removes a socket that nobody listens on, and nothing else.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is no socket", path)
	}
	conn, err := net.DialTimeout("unix", path, staleTimeout)
	if err == nil {
		conn.Close()
		return fmt.Errorf("%s: somebody else listens there", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}
