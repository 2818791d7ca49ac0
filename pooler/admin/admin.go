// Package admin is the console: what an operator says to a pooler that runs, over the protocol that clients speak. It reads commands and prints answers; what
// they do is the business of whoever it is given. It owns no socket and decides about nobody's rights.
package admin

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/internal/pgwire"
)

// Database is the name under which clients reach the console, as in PgBouncer.
const Database = "pgbouncer"

// Steering is what commands do.
type Steering interface {
	// Pause returns when no server of the database is lent any more, or when ctx ends; then nothing has changed.
	Pause(ctx context.Context, database string) error
	Resume(database string) error
	// Move sends a paused database's connections elsewhere and returns where they went before.
	Move(database, host string, port int) (from string, err error)
}

// commandLenMax bounds a command, in bytes.
const commandLenMax = 8 << 10

// Console serves one operator.
type Console struct {
	In       *bufio.Reader
	Out      io.Writer
	Steering Steering
}

// Serve answers until the operator leaves, which is no error.
func (c *Console) Serve(ctx context.Context) error {
	welcome := []pgproto3.BackendMessage{&pgproto3.AuthenticationOk{}}
	for _, status := range [][2]string{{"server_version", "1.26.0/pitr"}, {"client_encoding", "UTF8"}, {"server_encoding", "UTF8"}, {"DateStyle", "ISO"}, {"TimeZone", "GMT"}, {"standard_conforming_strings", "on"}, {"is_superuser", "on"}} {
		welcome = append(welcome, &pgproto3.ParameterStatus{Name: status[0], Value: status[1]})
	}
	if err := c.send(append(welcome, &pgproto3.ReadyForQuery{TxStatus: pgwire.Idle})...); err != nil {
		return err
	}
	skipping := false // what follows an error of the extended protocol
	for {
		kind, body, err := c.read()
		if errors.Is(err, io.EOF) || err == nil && kind == pgwire.Terminate {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case kind == pgwire.Query:
			err = c.answer(ctx, body)
		case kind == pgwire.Sync:
			skipping = false
			err = c.send(&pgproto3.ReadyForQuery{TxStatus: pgwire.Idle})
		case !skipping:
			skipping = true
			err = c.send(failure("0A000", "the console takes simple queries only"))
		}
		if err != nil {
			return err
		}
	}
}

func (c *Console) read() (kind byte, body []byte, err error) {
	var head [pgwire.HeaderLen]byte
	if _, err := io.ReadFull(c.In, head[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(head[1:])
	if length < 4 || length > commandLenMax {
		return 0, nil, fmt.Errorf("console: a message of %d bytes", length)
	}
	body = make([]byte, length-4)
	_, err = io.ReadFull(c.In, body)
	return head[0], body, err
}

func (c *Console) send(messages ...pgproto3.BackendMessage) error {
	var out []byte
	var err error
	for _, message := range messages {
		if out, err = message.Encode(out); err != nil {
			return err
		}
	}
	_, err = c.Out.Write(out)
	return err
}

func failure(code, text string) *pgproto3.ErrorResponse {
	return &pgproto3.ErrorResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: code, Message: text}
}

// answer carries a command out. When the operator goes away meanwhile, a command that waits is given up.
func (c *Console) answer(ctx context.Context, body []byte) error {
	ctx, cancel := context.WithCancel(ctx)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if _, err := c.In.Peek(1); err != nil {
			cancel()
		}
	}()
	messages := c.run(ctx, string(body))
	err := c.send(append(messages, &pgproto3.ReadyForQuery{TxStatus: pgwire.Idle})...)
	<-gone // the next message is there, or none will be
	cancel()
	return err
}

// run returns what a command has to say.
func (c *Console) run(ctx context.Context, text string) []pgproto3.BackendMessage {
	words, err := split(text)
	if err != nil {
		return []pgproto3.BackendMessage{failure("42601", err.Error())}
	}
	if len(words) == 0 {
		return []pgproto3.BackendMessage{&pgproto3.EmptyQueryResponse{}}
	}
	done := func(tag string, err error) []pgproto3.BackendMessage {
		if err != nil {
			return []pgproto3.BackendMessage{failure("55000", err.Error())}
		}
		return []pgproto3.BackendMessage{&pgproto3.CommandComplete{CommandTag: []byte(tag)}}
	}
	switch {
	case words[0].is("PAUSE") && len(words) == 2:
		return done("PAUSE", c.Steering.Pause(ctx, words[1].text))
	case words[0].is("RESUME") && len(words) == 2:
		return done("RESUME", c.Steering.Resume(words[1].text))
	case words[0].is("MOVE") && len(words) == 5 && words[2].is("TO"):
		port, err := strconv.Atoi(words[4].text)
		if err != nil || port < 1 || port > 65535 {
			return []pgproto3.BackendMessage{failure("22023", fmt.Sprintf("%q is no port", words[4].text))}
		}
		from, err := c.Steering.Move(words[1].text, words[3].text, port)
		if err != nil {
			return done("", err)
		}
		return []pgproto3.BackendMessage{
			&pgproto3.RowDescription{Fields: []pgproto3.FieldDescription{{Name: []byte("moved_from"), DataTypeOID: textOID, DataTypeSize: -1, TypeModifier: -1}}},
			&pgproto3.DataRow{Values: [][]byte{[]byte(from)}},
			&pgproto3.CommandComplete{CommandTag: []byte("MOVE")}}
	}
	return []pgproto3.BackendMessage{failure("42601", "the console knows PAUSE database, RESUME database and MOVE database TO 'host' port")}
}

// textOID is TEXTOID of src/include/catalog/pg_type.dat.
const textOID = 25
