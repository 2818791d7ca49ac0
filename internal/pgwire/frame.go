package pgwire

import (
	"encoding/binary"
	"fmt"
)

// HeaderLen is the length of a message's header: one byte of type and four of length, which counts itself but not the type.
const HeaderLen = 5

const (
	// largeMessageMax is PQ_LARGE_MESSAGE_LIMIT in src/include/libpq/libpq.h: MaxAllocSize (src/include/utils/memutils.h) minus one.
	largeMessageMax = 0x3fffffff - 1
	// smallMessageMax is PQ_SMALL_MESSAGE_LIMIT in src/include/libpq/libpq.h.
	smallMessageMax = 10_000
)

// Header is the header of one message. Body is the number of bytes that follow it.
type Header struct {
	Type byte
	Body int
}

// ProtocolError says that the other side broke the framing; the connection cannot be used any more.
type ProtocolError struct{ Reason string }

func (e *ProtocolError) Error() string { return e.Reason }

// ClientHeader reads the header at the beginning of in, as a server reads it from a client. ok is false while in is shorter than
// a header. Types and lengths are those that SocketBackend in src/backend/tcop/postgres.c accepts.
func ClientHeader(in []byte) (h Header, ok bool, err error) {
	if len(in) == 0 {
		return Header{}, false, nil
	}
	limit := clientLimit(in[0])
	if limit == 0 {
		return Header{}, false, &ProtocolError{fmt.Sprintf("invalid frontend message type %d", in[0])}
	}
	return header(in, limit)
}

// ServerHeader reads the header at the beginning of in, as a client reads it from a server. ok is false while in is shorter than
// a header. Any letter is accepted as a type: which of them fit is for the caller to say.
func ServerHeader(in []byte) (h Header, ok bool, err error) {
	if len(in) == 0 {
		return Header{}, false, nil
	}
	if c := in[0] | 0x20; (c < 'a' || c > 'z') && (in[0] < '1' || in[0] > '3') {
		return Header{}, false, &ProtocolError{fmt.Sprintf("invalid backend message type %d", in[0])}
	}
	return header(in, largeMessageMax)
}

func header(in []byte, limit int) (Header, bool, error) {
	if len(in) < HeaderLen {
		return Header{}, false, nil
	}
	length := binary.BigEndian.Uint32(in[1:])
	if length < 4 || length > uint32(limit) {
		return Header{}, false, &ProtocolError{fmt.Sprintf("invalid length %d of message type %q", length, in[0])}
	}
	return Header{Type: in[0], Body: int(length) - 4}, true, nil
}

// clientLimit is the largest length of a client's message of this type, zero for a type that does not exist: the switch of
// SocketBackend in src/backend/tcop/postgres.c.
func clientLimit(kind byte) int {
	switch kind {
	case Query, FunctionCall, Bind, Parse, CopyData:
		return largeMessageMax
	case Terminate, Close, Describe, Execute, Flush, Sync, CopyDone, CopyFail:
		return smallMessageMax
	}
	return 0
}

// Scanner walks over one message's body in chunks of any size. It holds no bytes, only how many are still to come, so that a
// message of a gigabyte costs no more than an empty one.
type Scanner struct{ rest int }

// Open begins a body of n bytes. The previous one must be complete.
func (s *Scanner) Open(n int) {
	if s.rest != 0 || n < 0 {
		panic("pgwire: message opened inside another")
	}
	s.rest = n
}

// Inside reports whether a body is not complete.
func (s *Scanner) Inside() bool { return s.rest > 0 }

// Take returns how many of the bytes at the beginning of in belong to the body, and counts them as seen.
func (s *Scanner) Take(in []byte) int {
	n := min(s.rest, len(in))
	s.rest -= n
	return n
}
