package archiver

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// pushRequest is the line with which a push over the socket begins. Then the archiver asks for what it wants: the hash of the file, or the
// content, which is the first page of the file, Before bytes of the segment before it, and the rest of the file: in this order it is read.
type pushRequest struct {
	Place    string         `json:"place"` // which repository of which store is meant
	Name     string         `json:"name"`
	Size     int64          `json:"size"`
	Before   int64          `json:"before"`
	SystemID pg.SystemID    `json:"system_identifier,string"`
	Segments pg.SegmentSize `json:"wal_segment_size"`
}

// What an archiver may want.
const (
	wantSum     = "sum"     // a line with the SHA-256 of the file in hexadecimal digits
	wantContent = "content" // Size + Before bytes
)

// pushAnswer is a line from the archiver. One that wants nothing ends the push.
type pushAnswer struct {
	Want      string `json:"want,omitempty"`
	Stored    bool   `json:"stored"`
	Elsewhere bool   `json:"elsewhere,omitempty"` // this archiver is one of another place
	Remark    string `json:"remark,omitempty"`
	Error     string `json:"error,omitempty"`
	Cause     string `json:"cause,omitempty"` // conflict, foreign, incomparable
}

// causes are the errors that are told apart on the other side of the socket.
var causes = map[string]error{"conflict": repo.ErrConflict, "foreign": repo.ErrForeign, "incomparable": repo.ErrIncomparable}

const (
	// pushLineMax bounds a line of the protocol.
	pushLineMax = 64 << 10
	// pushDial bounds connecting.
	pushDial = time.Second
)

// PushSocketOptions say where the two sides of a push socket meet.
type PushSocketOptions struct {
	Path      string
	Place     string        // the repository that pushes must mean
	Stall     time.Duration // how long the other side may do nothing while it is its turn
	PushesMax int           // how many pushes are served at a time
	Counts    *PushCounts   // of the side that serves
}

// PushCounts is what a push socket has served.
type PushCounts struct {
	Done    atomic.Uint64 // files that are stored, those included that were already
	Bytes   atomic.Uint64 // of these files
	Failed  atomic.Uint64
	Waited  atomic.Uint64 // pushes that had to wait because of PushesMax
	Stalled atomic.Uint64 // pushes that Stall has cut off
}

// PushSocket serves pushes on a Unix socket that only its owner and root may use.
type PushSocket struct {
	opt      PushSocketOptions
	pusher   *Pusher
	listener *net.UnixListener
}

// ListenPush makes the socket. A socket that somebody serves is left to him.
func ListenPush(opt PushSocketOptions, pusher *Pusher) (*PushSocket, error) {
	path := opt.Path
	if conn, err := net.DialTimeout("unix", path, pushDial); err == nil {
		return nil, errors.Join(fmt.Errorf("push socket %s: another archiver serves it", path), conn.Close())
	}
	// Under another name until nobody else may connect; the rename also replaces what a killed archiver has left.
	private := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Remove(private); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("push socket: %w", err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: private, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("push socket: %w; does the directory %s exist?", err, filepath.Dir(path))
	}
	listener.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(private, 0o600), os.Rename(private, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("push socket: %w", err), listener.Close())
	}
	return &PushSocket{opt: opt, pusher: pusher, listener: listener}, nil
}

// Run serves until ctx ends; what is under way then is cut off, and Postgres pushes it again.
func (s *PushSocket) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.listener.Close() })
	defer stop()
	var tasks sync.WaitGroup
	defer tasks.Wait()
	slots := make(chan struct{}, s.opt.PushesMax)
	for {
		conn, err := s.listener.AcceptUnix()
		if ctx.Err() != nil {
			return os.Remove(s.opt.Path)
		}
		if err != nil {
			return fmt.Errorf("push socket %s: %w", s.opt.Path, err)
		}
		select {
		case slots <- struct{}{}:
		default:
			s.opt.Counts.Waited.Add(1)
			slots <- struct{}{}
		}
		tasks.Go(func() {
			defer func() { <-slots }()
			s.serve(ctx, conn)
		})
	}
}

func (s *PushSocket) serve(ctx context.Context, conn *net.UnixConn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()
	stalling := stallingConn{conn, s.opt.Stall, &s.opt.Counts.Stalled}
	lines := bufio.NewReaderSize(stalling, pushLineMax)
	line, err := lines.ReadSlice('\n')
	if errors.Is(err, io.EOF) && len(line) == 0 {
		return // somebody has looked whether the socket is served: ListenPush
	}
	var q pushRequest
	if err == nil {
		err = json.Unmarshal(line, &q)
	}
	if err != nil || q.Size < 0 || q.Before < 0 {
		s.opt.Counts.Failed.Add(1)
		s.pusher.log.Warn("a push was not understood", "error", err)
		return
	}
	body := &pushBody{conn: stalling, lines: lines, left: io.LimitedReader{R: lines, N: q.Size + q.Before}}
	a := s.answer(ctx, q, body)
	// An answer that is sent while the other side is still sending would be lost with the connection.
	if err := body.drain(); err != nil {
		s.opt.Counts.Failed.Add(1)
		s.pusher.log.Warn("a push broke off", "file", q.Name, "error", err)
		return
	}
	s.opt.Counts.add(a, q.Size)
	if err := json.NewEncoder(stalling).Encode(a); err != nil {
		s.pusher.log.Warn("a push was not answered", "file", q.Name, "error", err)
	}
}

func (c *PushCounts) add(a pushAnswer, size int64) {
	switch {
	case a.Stored:
		c.Done.Add(1)
		c.Bytes.Add(uint64(size))
	case !a.Elsewhere:
		c.Failed.Add(1)
	}
}

// pushBody asks for what it is asked for.
type pushBody struct {
	conn  io.Writer
	lines *bufio.Reader
	left  io.LimitedReader
	begun bool
}

func (b *pushBody) Read(p []byte) (int, error) {
	if !b.begun {
		b.begun = true
		if err := json.NewEncoder(b.conn).Encode(pushAnswer{Want: wantContent}); err != nil {
			return 0, err
		}
	}
	return b.left.Read(p)
}

func (b *pushBody) sum() (sum [sha256.Size]byte, err error) {
	if err := json.NewEncoder(b.conn).Encode(pushAnswer{Want: wantSum}); err != nil {
		return sum, err
	}
	line, err := b.lines.ReadSlice('\n')
	if err != nil {
		return sum, err
	}
	raw, err := hex.DecodeString(string(bytes.TrimSpace(line)))
	if err != nil || len(raw) != len(sum) {
		return sum, fmt.Errorf("%q is no hash", line)
	}
	return [sha256.Size]byte(raw), nil
}

func (b *pushBody) drain() error {
	if !b.begun {
		return nil
	}
	_, err := io.Copy(io.Discard, &b.left)
	if err == nil && b.left.N > 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (s *PushSocket) answer(ctx context.Context, q pushRequest, body *pushBody) pushAnswer {
	if q.Place != s.opt.Place {
		return pushAnswer{Elsewhere: true}
	}
	f := PushFile{Name: q.Name, Size: q.Size, SystemID: q.SystemID, Segments: q.Segments, Content: body, Sum: body.sum}
	if q.Before > 0 {
		f.Before = io.LimitReader(body, q.Before)
	}
	begin := time.Now()
	remark, err := s.pusher.Push(ctx, f)
	if err == nil {
		s.pusher.log.Info("file pushed", "file", q.Name, "took", time.Since(begin).Round(time.Microsecond), "remark", remark)
		return pushAnswer{Stored: true, Remark: remark}
	}
	s.pusher.log.Error("a push failed; Postgres keeps the file and pushes it again", "file", q.Name, "error", err)
	a := pushAnswer{Error: err.Error()}
	for cause, known := range causes {
		if errors.Is(err, known) {
			a.Cause = cause
		}
	}
	return a
}

// stallingConn is a connection on which each read and write must get on.
type stallingConn struct {
	net.Conn
	stall time.Duration
	hits  *atomic.Uint64
}

func (c stallingConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	return n, c.count(err)
}

func (c stallingConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	return n, c.count(err)
}

func (c stallingConn) count(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.hits.Add(1)
		return fmt.Errorf("nothing for %s (archive.push_stall): %w", c.stall, err)
	}
	return err
}

// ErrNoSocket says that nobody has answered on the socket: the file may be pushed another way.
var ErrNoSocket = errors.New("no archiver answers on the push socket")

// pushError is what the archiver on the other side has said.
type pushError struct {
	text  string
	cause error
}

func (e *pushError) Error() string { return e.text }
func (e *pushError) Unwrap() error { return e.cause }

// PushThrough pushes a file through the archiver that serves the socket. beforeSize is that of f.Before.
func PushThrough(ctx context.Context, opt PushSocketOptions, f PushFile, beforeSize int64) (remark string, err error) {
	conn, err := net.DialTimeout("unix", opt.Path, pushDial)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoSocket, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()
	q := pushRequest{Place: opt.Place, Name: f.Name, Size: f.Size, SystemID: f.SystemID, Segments: f.Segments}
	var body io.Reader = io.LimitReader(f.Content, f.Size)
	if f.Before != nil {
		q.Before = beforeSize
		body = io.MultiReader(io.LimitReader(body, wal.PageSize), io.LimitReader(f.Before, beforeSize), body)
	}
	if err = json.NewEncoder(conn).Encode(q); err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoSocket, err)
	}
	var a pushAnswer
	for answers := json.NewDecoder(io.LimitReader(conn, pushLineMax)); ; {
		a = pushAnswer{}
		if err = answers.Decode(&a); err == nil && a.Want != "" {
			err = give(stallingConn{conn, opt.Stall, new(atomic.Uint64)}, a.Want, f, body)
		}
		if err != nil || a.Want == "" {
			break
		}
	}
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil:
		return "", fmt.Errorf("%w: %w", ErrNoSocket, err)
	case a.Elsewhere:
		return "", fmt.Errorf("%w: its archiver writes to another place", ErrNoSocket)
	case !a.Stored:
		return "", &pushError{a.Error, causes[a.Cause]}
	default:
		return a.Remark, nil
	}
}

// give sends what the archiver wants.
func give(conn io.Writer, want string, f PushFile, body io.Reader) error {
	if want != wantSum {
		_, err := io.CopyBuffer(onlyWriter{conn}, body, make([]byte, pushPiece))
		return err
	}
	if f.Sum == nil {
		return errors.New("the archiver wants a hash of what has none")
	}
	sum, err := f.Sum()
	if err == nil {
		_, err = fmt.Fprintf(conn, "%x\n", sum)
	}
	return err
}
