// Package takeover carries listening sockets from a process to the one that takes its place, over a Unix socket (SCM_RIGHTS in unix(7)). It owns the words that the two
// exchange, and knows nothing of poolers: what the sockets are for is said by their names. See docs/decisions/0026-takeover.md.
//
//	successor                                   predecessor
//	takeover 1                      →
//	                                ←           socket NAME, with the descriptor; once for each
//	                                ←           end PID, or: refused WHY
//	serving                         →           it serves; without it everything stays as it was
//	                                ←           released: it does not accept any more
//	cancel ID PROCESS SECRET        ⇄           a cancel request for one of the other's clients
//	canceled ID                     ⇄           it was dealt with
//
// Each message is a packet of its own (SOCK_SEQPACKET).
package takeover

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	greeting   = "takeover 1" // the version of what is said here
	messageMax = 4096         // bytes
	// socketsMax is more than anybody listens on.
	socketsMax = 1024
	// patience bounds each message of the beginning. A successor that stays away for longer between its sockets and "serving" has startPatience.
	patience      = 10 * time.Second
	startPatience = time.Minute
)

// ErrNobody is returned by Ask when nobody listens on the socket.
var ErrNobody = errors.New("nobody listens there")

// Socket is a listening socket and what it is for.
type Socket struct {
	Name string
	net.Listener
}

// Link is the connection between a process and its successor.
type Link struct {
	conn *net.UnixConn
	Peer int // the process id of the other side
	calls
}

// Ask asks the process that listens on the Unix socket of that path for its sockets. Nothing changes for it until Serving is called. The caller closes the sockets that it
// does not want only after that, since closing one may remove its file.
func Ask(path string) (*Link, []Socket, error) {
	conn, err := (&net.Dialer{Timeout: patience}).Dial("unixpacket", path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil, ErrNobody
	}
	if err != nil {
		return nil, nil, err
	}
	l, err := newLink(conn.(*net.UnixConn))
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	sockets, err := l.ask()
	if err != nil {
		for _, socket := range sockets {
			socket.Close()
		}
		return nil, nil, errors.Join(err, l.Close())
	}
	return l, sockets, nil
}

// newLink makes sure that the process at the other end is of our own user.
func newLink(conn *net.UnixConn) (*Link, error) {
	uid, pid, err := peer(conn)
	if err == nil && uid != os.Getuid() {
		err = fmt.Errorf("process %d belongs to the user with the id %d, not to ours", pid, uid)
	}
	return &Link{conn: conn, Peer: pid, calls: calls{waiting: map[uint64]chan struct{}{}}}, err
}

func (l *Link) ask() (sockets []Socket, err error) {
	if err := l.send(greeting, nil); err != nil {
		return nil, err
	}
	for len(sockets) < socketsMax {
		text, file, err := l.receive(patience)
		if err != nil {
			return sockets, fmt.Errorf("receive sockets: %w", err)
		}
		word, rest, _ := strings.Cut(text, " ")
		switch {
		case word == "end" && file == nil:
			// What the kernel tells is the process that has opened the socket first, which may have been another.
			l.Peer, err = strconv.Atoi(rest)
			return sockets, err
		case word == "refused" && file == nil:
			return sockets, errors.New("refused: " + rest)
		case word != "socket" || file == nil:
			closeFile(file)
			return sockets, fmt.Errorf("receive sockets: unexpected %q", text)
		}
		listener, err := net.FileListener(file)
		closeFile(file) // the listener has a copy
		if err != nil {
			return sockets, fmt.Errorf("socket %s: %w", rest, err)
		}
		sockets = append(sockets, Socket{rest, listener})
	}
	return sockets, errors.New("receive sockets: there is no end of them")
}

// Offer gives the sockets to a successor that has connected, unless why says that it may not have them. It returns once the successor serves, with nil; after an error there is none.
func Offer(conn *net.UnixConn, sockets []Socket, why error) (*Link, error) {
	l, err := newLink(conn)
	if err == nil {
		err = l.offer(sockets, why)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return l, nil
}

func (l *Link) offer(sockets []Socket, why error) error {
	text, file, err := l.receive(patience)
	closeFile(file)
	if err == nil && text != greeting {
		why = fmt.Errorf("the successor speaks another language: %.40q", text)
	}
	switch {
	case err != nil:
		return err
	case why != nil:
		return errors.Join(why, l.send("refused "+why.Error(), nil))
	}
	for _, socket := range sockets {
		if err := l.send("socket "+socket.Name, socket.Listener); err != nil {
			return fmt.Errorf("hand over %s: %w", socket.Name, err)
		}
	}
	if err := l.send("end "+strconv.Itoa(os.Getpid()), nil); err != nil {
		return err
	}
	text, file, err = l.receive(startPatience)
	closeFile(file)
	if err == nil && text != "serving" {
		err = fmt.Errorf("unexpected %.40q", text)
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("the successor has gone before it served")
	}
	return err
}

// Serving tells the predecessor that its place is taken, and waits until it has stopped to accept.
func (l *Link) Serving() error {
	if err := l.send("serving", nil); err != nil {
		return err
	}
	text, file, err := l.receive(startPatience)
	closeFile(file)
	if err == nil && text != "released" {
		err = fmt.Errorf("unexpected %.40q", text)
	}
	return err
}

// Released tells the successor that nobody else accepts any more.
func (l *Link) Released() error { return l.send("released", nil) }

// Close ends the link. The other side goes on by itself.
func (l *Link) Close() error { return l.conn.Close() }

// send sends a message, with the descriptor of a listener if there is one.
func (l *Link) send(text string, listener net.Listener) error {
	if len(text) > messageMax {
		return fmt.Errorf("message of %d bytes", len(text))
	}
	if err := l.conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if listener == nil {
		_, _, err := l.conn.WriteMsgUnix([]byte(text), nil, nil)
		return err
	}
	socket, has := listener.(syscall.Conn)
	if !has {
		return errors.New("it is no socket")
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		_, _, failed = l.conn.WriteMsgUnix([]byte(text), syscall.UnixRights(int(fd)), nil)
	})
	return errors.Join(err, failed)
}

// receive waits for a message, for ever if limit is zero. The file, if one came along, is the caller's.
func (l *Link) receive(limit time.Duration) (string, *os.File, error) {
	var deadline time.Time
	if limit > 0 {
		deadline = time.Now().Add(limit)
	}
	if err := l.conn.SetReadDeadline(deadline); err != nil {
		return "", nil, err
	}
	buf, control := make([]byte, messageMax), make([]byte, syscall.CmsgSpace(4))
	n, controls, flags, _, err := l.conn.ReadMsgUnix(buf, control)
	if err != nil {
		return "", nil, err
	}
	file, err := attached(control[:controls])
	if err == nil && flags&(syscall.MSG_TRUNC|syscall.MSG_CTRUNC) != 0 {
		err = errors.New("a message is too long")
	}
	if err != nil {
		closeFile(file)
		return "", nil, err
	}
	return string(buf[:n]), file, nil
}

// attached returns the descriptor that came with a message, nil if there was none.
func attached(control []byte) (*os.File, error) {
	if len(control) == 0 {
		return nil, nil
	}
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil || len(messages) != 1 {
		return nil, errors.Join(err, errors.New("what came along is no descriptor"))
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(err, errors.New("what came along is no descriptor"))
	}
	return os.NewFile(uintptr(fds[0]), "listener"), nil
}

func closeFile(file *os.File) {
	if file != nil {
		file.Close()
	}
}
