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

// unixPath is the name of the Unix socket, which libpq makes of directory and port: UNIXSOCK_PATH in src/include/libpq/pqcomm.h.
func unixPath(cfg config.Pooler, port int) string {
	return cfg.UnixSocketDir + "/.s.PGSQL." + strconv.Itoa(port)
}

// listenUnix opens a Unix socket. One that nobody listens on any more, since its process was killed, is replaced.
func listenUnix(path string) (net.Listener, error) {
	listener, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EADDRINUSE) && !strings.HasPrefix(path, "@") {
		if err := removeStale(path); err != nil {
			return nil, fmt.Errorf("pooler.unix_socket_dir: %w", err)
		}
		listener, err = net.Listen("unix", path)
	}
	if err != nil {
		return nil, fmt.Errorf("pooler.unix_socket_dir: %w", err)
	}
	return listener, nil
}

// setUnixMode gives the file of a Unix socket its mode. Abstract ones have none.
func setUnixMode(path, octal string) error {
	if strings.HasPrefix(path, "@") || octal == "" {
		return nil
	}
	mode, err := strconv.ParseUint(octal, 8, 9)
	if err == nil {
		err = os.Chmod(path, fs.FileMode(mode))
	}
	if err != nil {
		return fmt.Errorf("pooler.unix_socket_mode: %w", err)
	}
	return nil
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
