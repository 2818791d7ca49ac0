package replication

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// messageReader reads messages of the server from a connection that it has to itself. What a CopyData message carries is read straight into
// the reader's buffer, not message by message: a base backup is much to carry, and in messages of 32 KiB (SINK_BUFFER_LENGTH of
// src/backend/backup/basebackup.c).
type messageReader struct {
	source *bufio.Reader
	left   int // bytes of the current message that were not read
}

const (
	// readAhead is how much is read from the socket at once.
	readAhead = 256 << 10
	// messageMax bounds a message that is read as a whole: none of those that go with a base backup is large.
	messageMax = 1 << 20
)

func newMessageReader(r io.Reader) messageReader {
	return messageReader{source: bufio.NewReaderSize(r, readAhead)}
}

// next passes over what is left of a message and returns the kind of the next one. An error of the server is an error; notices and changed
// parameters are passed over.
func (m *messageReader) next() (kind byte, err error) {
	for {
		if _, err := m.source.Discard(m.left); err != nil {
			return 0, err
		}
		m.left = 0
		head, err := m.source.Peek(5)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF // a server says good bye
			}
			return 0, err
		}
		kind, length := head[0], int(binary.BigEndian.Uint32(head[1:]))
		if length < 4 {
			return 0, fmt.Errorf("message %q says that it has %d bytes", kind, length)
		}
		if _, err := m.source.Discard(len(head)); err != nil {
			return 0, err
		}
		m.left = length - 4
		switch kind {
		case 'N', 'S': // NoticeResponse, ParameterStatus
		case 'E':
			return 0, m.serverError()
		default:
			return kind, nil
		}
	}
}

func (m *messageReader) serverError() error {
	body, err := m.rest()
	if err != nil {
		return err
	}
	var response pgproto3.ErrorResponse
	if err := response.Decode(body); err != nil {
		return err
	}
	return pgconn.ErrorResponseToPgError(&response)
}

// first reads the first byte of the current message.
func (m *messageReader) first() (byte, error) {
	if m.left == 0 {
		return 0, errors.New("empty message")
	}
	m.left--
	return m.source.ReadByte()
}

// rest reads what is left of the current message.
func (m *messageReader) rest() ([]byte, error) {
	if m.left > messageMax {
		return nil, fmt.Errorf("a message of %d bytes", m.left)
	}
	body := make([]byte, m.left)
	m.left = 0
	_, err := io.ReadFull(m.source, body)
	return body, err
}

// read reads from the current message, which has bytes left.
func (m *messageReader) read(p []byte) (int, error) {
	n, err := m.source.Read(p[:min(len(p), m.left)])
	m.left -= n
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// row reads a DataRow.
func (m *messageReader) row() ([]string, error) {
	body, err := m.rest()
	if err != nil {
		return nil, err
	}
	var data pgproto3.DataRow
	if err := data.Decode(body); err != nil {
		return nil, err
	}
	row := make([]string, len(data.Values))
	for i, value := range data.Values {
		row[i] = string(value)
	}
	return row, nil
}
