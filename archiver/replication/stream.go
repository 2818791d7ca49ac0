package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/internal/pg"
)

// StreamOptions says from where WAL is streamed.
type StreamOptions struct {
	Slot     string
	Timeline pg.Timeline
	Start    pg.LSN

	// Pause says how long to wait before it is looked for more when everything has been read.
	Pause func() time.Duration
}

// Stream is WAL on its way. One goroutine calls Receive; any may call SendStatus; Close makes Receive return.
type Stream struct {
	net      net.Conn
	frontend *pgproto3.Frontend
	paced    *pacedReader

	interrupted atomic.Bool

	writeMu sync.Mutex // guards writes to net; held over one write
	buf     []byte
}

// Event is what Receive returns: WAL, a keepalive, or the end of the timeline.
type Event struct {
	WAL     []byte    // valid until the next Receive; nil for a keepalive
	Start   pg.LSN    // of WAL
	Arrived time.Time // nothing of WAL has come before

	Sent           time.Time // of WAL: when, by the server's clock
	ServerEnd      pg.LSN    // how far the server has written its WAL
	ReplyRequested bool

	TimelineEnded bool // the server has switched; Next and Switch say to what and where
	Next          pg.Timeline
	Switch        pg.LSN
}

// ErrInterrupted is what Receive returns after Interrupt.
var ErrInterrupted = errors.New("receiving was interrupted")

// ErrServerClosed says that the server ended the stream in order: it is shutting down.
var ErrServerClosed = errors.New("the server has ended the stream")

// StartStream begins to stream and takes the connection over: c must not be used any more.
func (c *Conn) StartStream(ctx context.Context, opt StreamOptions) (*Stream, error) {
	command := fmt.Sprintf("START_REPLICATION SLOT %s PHYSICAL %s TIMELINE %d", opt.Slot, opt.Start, opt.Timeline)
	hijacked, err := c.takeOver(ctx)
	if err != nil {
		return nil, fmt.Errorf("start streaming: %w", err)
	}
	s := &Stream{net: hijacked.Conn, frontend: hijacked.Frontend, paced: c.paced}
	stop := context.AfterFunc(ctx, func() { _ = s.net.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	s.frontend.SendQuery(&pgproto3.Query{String: command})
	if err := s.frontend.Flush(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", command, err), s.Close())
	}
	for {
		message, err := s.frontend.Receive()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", command, err), s.Close())
		}
		switch m := message.(type) {
		case *pgproto3.CopyBothResponse:
			s.paced.begin(s.net, opt.Pause)
			return s, nil
		case *pgproto3.ErrorResponse:
			return nil, errors.Join(fmt.Errorf("%s: %w", command, pgconn.ErrorResponseToPgError(m)), s.Close())
		case *pgproto3.NoticeResponse, *pgproto3.ParameterStatus:
		case *pgproto3.RowDescription:
			// Nothing to stream: the start is the end of a timeline that the server has left. The row says what follows.
			return nil, errors.Join(fmt.Errorf("%s: there is nothing behind that position on that timeline", command), s.Close())
		default:
			return nil, errors.Join(fmt.Errorf("%s: unexpected %T", command, message), s.Close())
		}
	}
}

// Close drops the connection. The server keeps the slot.
func (s *Stream) Close() error { return s.net.Close() }

// Interrupt makes a Receive that waits, and every later one, fail.
func (s *Stream) Interrupt() {
	s.interrupted.Store(true)
	s.paced.interrupt()                        // before the deadline: whoever has just set a later one looks again behind it, or we set ours behind that
	_ = s.net.SetReadDeadline(time.Unix(1, 0)) // fails only on a closed connection, whose Receive fails anyway
}

// Receive waits for the next message.
func (s *Stream) Receive() (Event, error) {
	if s.interrupted.Load() {
		return Event{}, ErrInterrupted
	}
	event, err := s.receive()
	if err != nil && s.interrupted.Load() {
		err = ErrInterrupted
	}
	return event, err
}

func (s *Stream) receive() (Event, error) {
	for {
		message, err := s.frontend.Receive()
		if err != nil {
			return Event{}, fmt.Errorf("receive WAL: %w", err)
		}
		switch m := message.(type) {
		case *pgproto3.CopyData:
			event, err := parseCopyData(m.Data)
			event.Arrived = s.paced.arrived
			return event, err
		case *pgproto3.CopyDone:
			return s.timelineEnd()
		case *pgproto3.ErrorResponse:
			return Event{}, fmt.Errorf("receive WAL: %w", pgconn.ErrorResponseToPgError(m))
		case *pgproto3.NoticeResponse, *pgproto3.ParameterStatus:
		case *pgproto3.CommandComplete:
			return Event{}, ErrServerClosed
		default:
			return Event{}, fmt.Errorf("receive WAL: unexpected %T", message)
		}
	}
}

// serverTime reads a TimestampTz: microseconds since 2000-01-01 UTC, src/include/datatype/timestamp.h.
func serverTime(b []byte) time.Time {
	return time.UnixMicro(int64(binary.BigEndian.Uint64(b))).Add(epoch2000)
}

// epoch2000 is from 1970 to 2000.
const epoch2000 = 946_684_800 * time.Second

// parseCopyData reads XLogData ('w') and primary keepalive ('k') messages.
func parseCopyData(b []byte) (Event, error) {
	const walHeader, keepaliveSize = 1 + 8 + 8 + 8, 1 + 8 + 8 + 1
	switch {
	case len(b) >= walHeader && b[0] == 'w':
		return Event{
			Start:     pg.LSN(binary.BigEndian.Uint64(b[1:])),
			ServerEnd: pg.LSN(binary.BigEndian.Uint64(b[9:])),
			Sent:      serverTime(b[17:]),
			WAL:       b[walHeader:],
		}, nil
	case len(b) == keepaliveSize && b[0] == 'k':
		return Event{
			ServerEnd:      pg.LSN(binary.BigEndian.Uint64(b[1:])),
			ReplyRequested: b[17] == 1,
		}, nil
	}
	return Event{}, fmt.Errorf("receive WAL: a message of %d bytes is neither WAL nor keepalive", len(b))
}

// timelineEnd answers the server's CopyDone and reads the row that names the next timeline.
func (s *Stream) timelineEnd() (Event, error) {
	s.writeMu.Lock()
	encoded, err := (&pgproto3.CopyDone{}).Encode(nil)
	if err == nil {
		_, err = s.net.Write(encoded)
	}
	s.writeMu.Unlock()
	if err != nil {
		return Event{}, fmt.Errorf("end of timeline: %w", err)
	}
	event := Event{}
	for {
		message, err := s.frontend.Receive()
		if err != nil {
			return Event{}, fmt.Errorf("end of timeline: %w", err)
		}
		switch m := message.(type) {
		case *pgproto3.DataRow:
			if len(m.Values) < 2 {
				return Event{}, fmt.Errorf("end of timeline: the server's row has %d columns", len(m.Values))
			}
			next, err1 := strconv.ParseUint(string(m.Values[0]), 10, 32)
			at, err2 := pg.ParseLSN(string(m.Values[1]))
			if err := errors.Join(err1, err2); err != nil {
				return Event{}, fmt.Errorf("end of timeline: %w", err)
			}
			event = Event{TimelineEnded: true, Next: pg.Timeline(next), Switch: at}
		case *pgproto3.ReadyForQuery:
			if !event.TimelineEnded {
				return Event{}, ErrServerClosed
			}
			return event, nil
		case *pgproto3.ErrorResponse:
			return Event{}, fmt.Errorf("end of timeline: %w", pgconn.ErrorResponseToPgError(m))
		}
	}
}

// Status is what the archiver reports. Written is how far it has received, Flushed how far the store durably holds (law 1); what is
// applied is reported as flushed too, since nothing is applied here.
type Status struct {
	Written, Flushed pg.LSN
	Now              time.Time
	AskReply         bool // the server answers with a keepalive, which carries its clock
}

// SendStatus sends a standby status update.
func (s *Stream) SendStatus(st Status) error {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	b := append(s.buf[:0], 'd', 0, 0, 0, 4+34, 'r')
	b = binary.BigEndian.AppendUint64(b, uint64(st.Written))
	b = binary.BigEndian.AppendUint64(b, uint64(st.Flushed))
	b = binary.BigEndian.AppendUint64(b, uint64(st.Flushed))
	b = binary.BigEndian.AppendUint64(b, uint64(pg.Micros(st.Now)))
	b = append(b, map[bool]byte{true: 1}[st.AskReply])
	s.buf = b
	if err := s.net.SetWriteDeadline(st.Now.Add(statusWriteTimeout)); err != nil {
		return fmt.Errorf("report status: %w", err)
	}
	if _, err := s.net.Write(b); err != nil {
		return fmt.Errorf("report status: %w", err)
	}
	return nil
}

// statusWriteTimeout is how long a server may refuse to read 39 bytes before the connection is given up.
const statusWriteTimeout = 30 * time.Second
