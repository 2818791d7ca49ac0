package pooler

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
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

// admitToSocket sets group and mode of a Unix socket. Abstract ones have neither.
func admitToSocket(path string, cfg config.Pooler) error {
	if strings.HasPrefix(path, "@") {
		return nil
	}
	if cfg.UnixSocketGroup != "" {
		group, err := user.LookupGroup(cfg.UnixSocketGroup)
		var id int
		if err == nil {
			id, err = strconv.Atoi(group.Gid)
		}
		if err == nil {
			err = os.Chown(path, -1, id)
		}
		if err != nil {
			return fmt.Errorf("pooler.unix_socket_group: %w", err)
		}
	}
	if cfg.UnixSocketMode == "" {
		return nil
	}
	mode, err := strconv.ParseUint(cfg.UnixSocketMode, 8, 9)
	if err == nil {
		err = os.Chmod(path, fs.FileMode(mode))
	}
	if err != nil {
		return fmt.Errorf("pooler.unix_socket_mode: %w", err)
	}
	return nil
}

// unixPort is the port in the name of the Unix socket: that of the first address.
func (p *Pooler) unixPort() int {
	if address, ok := p.Addr().(*net.TCPAddr); ok {
		return address.Port
	}
	return p.cfg.ListenPort
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
