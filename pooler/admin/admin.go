// Package admin is the console: what an operator says to a pooler that runs, over the protocol that clients speak. It reads commands, decides who may say
// which, and prints answers in PgBouncer's columns; what commands do is the business of whoever it is given. It owns no socket and dials nobody.
package admin

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/internal/pgwire"
)

// Database is the name under which clients reach the console, as in PgBouncer.
const Database = "pgbouncer"

// Alias is another name of it, for operators only, since a database may be called so.
const Alias = "pitr"

// Version is what clients are told; tools read PgBouncer's number in front.
const Version = "1.26.1/pitr"

const (
	// commandLenMax bounds a message, in bytes.
	commandLenMax = 8 << 10
	// pipelineMax is how many messages are read ahead of the answers.
	pipelineMax = 64
	// statementsMax bounds the prepared statements of one console, and its portals.
	statementsMax = 100
)

// Console serves one operator.
type Console struct {
	In       *bufio.Reader
	Out      io.WriteCloser // closed when Serve returns, which must end a read of In
	Role     Role
	Steering Steering
	Process  uint32
	// Published with Secret is what the operator's cancel requests carry.
	Published uint32
	Secret    []byte // 4 bytes, or 32 for an operator who speaks protocol 3.2

	statements map[string]*plan
	portals    map[string]*portal
	after      func() // see answer

	// mu guards interrupt.
	mu        sync.Mutex
	interrupt context.CancelFunc // ends the command that is carried out; nil while there is none
}

// Interrupt ends the command that is carried out, if one waits. It may be called by anybody.
func (c *Console) Interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.interrupt != nil {
		c.interrupt()
	}
}

// carryOut does what a command says.
func (c *Console) carryOut(ctx context.Context, p *plan) (answer, error) {
	inner, done := context.WithCancel(ctx)
	defer done()
	c.mu.Lock()
	c.interrupt = done
	c.mu.Unlock()
	got, err := p.run(inner, c.Steering)
	c.mu.Lock()
	c.interrupt = nil
	c.mu.Unlock()
	if err != nil && inner.Err() != nil && ctx.Err() == nil {
		return got, &refusal{"57014", "canceling statement due to user request: " + err.Error()} // ERRCODE_QUERY_CANCELED, as ProcessInterrupts in src/backend/tcop/postgres.c
	}
	return got, err
}

// request is a message that has arrived.
type request struct {
	kind byte
	body []byte
}

// Serve answers until the operator leaves, which is no error.
func (c *Console) Serve(ctx context.Context) error {
	ctx, leave := context.WithCancel(ctx)
	c.statements, c.portals = map[string]*plan{}, map[string]*portal{}
	requests := make(chan request, pipelineMax)
	ended := make(chan error, 1)
	go func() { ended <- c.receive(ctx, leave, requests) }()
	err := c.welcome()
	if err == nil {
		err = c.converse(ctx, requests)
	}
	leave()
	closed := c.Out.Close()
	if lost := <-ended; err == nil {
		err = lost
	}
	if err == nil && !errors.Is(closed, io.ErrClosedPipe) {
		err = closed
	}
	return err
}

// receive reads messages until the operator leaves. A command that waits is then given up.
func (c *Console) receive(ctx context.Context, leave context.CancelFunc, requests chan<- request) error {
	defer close(requests)
	defer leave()
	for {
		one, err := c.read()
		if errors.Is(err, io.EOF) || err == nil && one.kind == pgwire.Terminate || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case requests <- one:
		case <-ctx.Done():
			return nil
		}
	}
}

func (c *Console) welcome() error {
	messages := []pgproto3.BackendMessage{&pgproto3.AuthenticationOk{}}
	for _, status := range [][2]string{{"server_version", Version}, {"client_encoding", "UTF8"}, {"server_encoding", "UTF8"}, {"DateStyle", "ISO"}, {"TimeZone", "GMT"},
		{"standard_conforming_strings", "on"}, {"is_superuser", "on"}, {"integer_datetimes", "on"}} {
		messages = append(messages, &pgproto3.ParameterStatus{Name: status[0], Value: status[1]})
	}
	messages = append(messages, &pgproto3.BackendKeyData{ProcessID: c.Published, SecretKey: c.Secret})
	return c.send(append(messages, &pgproto3.ReadyForQuery{TxStatus: pgwire.Idle})...)
}

// converse answers one message after the other. What the operator has asked before leaving is carried out.
func (c *Console) converse(ctx context.Context, requests <-chan request) error {
	skipping := false // what follows an error of the extended protocol
	for one := range requests {
		var answers []pgproto3.BackendMessage
		ready := &pgproto3.ReadyForQuery{TxStatus: pgwire.Idle}
		switch {
		case one.kind == pgwire.Query:
			skipping = false
			answers = append(c.simple(ctx, string(one.body)), ready)
		case one.kind == pgwire.Sync:
			skipping = false
			clear(c.portals)
			answers = []pgproto3.BackendMessage{ready}
		case skipping:
			continue
		default:
			var err error
			if answers, err = c.extended(ctx, one); err != nil {
				skipping = true
				answers = []pgproto3.BackendMessage{failure(err)}
			}
		}
		err := c.send(answers...)
		if after := c.after; after != nil && (one.kind == pgwire.Query || one.kind == pgwire.Sync) {
			c.after = nil
			after()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *Console) read() (request, error) {
	var head [pgwire.HeaderLen]byte
	if _, err := io.ReadFull(c.In, head[:]); err != nil {
		return request{}, err
	}
	length := binary.BigEndian.Uint32(head[1:])
	if length < 4 || length > commandLenMax {
		return request{}, fmt.Errorf("console: a message of %d bytes", length)
	}
	body := make([]byte, length-4)
	_, err := io.ReadFull(c.In, body)
	return request{head[0], body}, err
}

func (c *Console) send(messages ...pgproto3.BackendMessage) error {
	var out []byte
	var err error
	for _, message := range messages {
		if out, err = message.Encode(out); err != nil {
			return err
		}
	}
	if len(out) == 0 {
		return nil
	}
	_, err = c.Out.Write(out)
	return err
}

// failure is an error as a message. What is no refusal of ours is what a command has ended with.
func failure(err error) *pgproto3.ErrorResponse {
	code := "55000"
	var refused *refusal
	if errors.As(err, &refused) {
		code = refused.code
	}
	return &pgproto3.ErrorResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: code, Message: err.Error()}
}

// allowed returns the plan of a command if this operator may have it carried out.
func (c *Console) allowed(text string) (*plan, error) {
	p, err := understand(text)
	if p != nil && c.Role < p.role {
		return nil, &refusal{"42501", p.verb + ": admin access needed (pooler.admin_users)"}
	}
	if c.Role == RoleNone {
		return nil, &refusal{"42501", "not allowed"}
	}
	return p, err
}

// simple answers a simple query but for its ReadyForQuery.
func (c *Console) simple(ctx context.Context, text string) []pgproto3.BackendMessage {
	p, err := c.allowed(text)
	if err != nil {
		return []pgproto3.BackendMessage{failure(err)}
	}
	if p == nil {
		return []pgproto3.BackendMessage{&pgproto3.EmptyQueryResponse{}}
	}
	got, err := c.carryOut(ctx, p)
	if err != nil {
		return []pgproto3.BackendMessage{failure(err)}
	}
	c.after = got.after
	var out []pgproto3.BackendMessage
	for _, n := range got.notices {
		out = append(out, n)
	}
	if p.columns != nil {
		out = append(out, description(p.columns, nil))
	}
	for _, row := range got.rows {
		out = append(out, dataRow(p.columns, row, nil))
	}
	return append(out, &pgproto3.CommandComplete{CommandTag: []byte(p.tag)})
}

// description says what the rows are. formats are the wanted ones, see formatOf.
func description(columns []Column, formats []int16) *pgproto3.RowDescription {
	out := &pgproto3.RowDescription{}
	for i, column := range columns {
		size := int16(-1)
		if column.OID == int4OID {
			size = 4
		}
		out.Fields = append(out.Fields, pgproto3.FieldDescription{Name: []byte(column.Name), DataTypeOID: column.OID, DataTypeSize: size, TypeModifier: -1, Format: formatOf(formats, i)})
	}
	return out
}

// formatOf is the format of a column by the rule of Bind: none is text, one is that of all, otherwise each has its own.
func formatOf(formats []int16, i int) int16 {
	switch {
	case len(formats) == 1:
		return formats[0]
	case i < len(formats):
		return formats[i]
	}
	return 0
}

func dataRow(columns []Column, row []any, formats []int16) *pgproto3.DataRow {
	if len(row) != len(columns) {
		panic(fmt.Sprintf("admin: a row of %d values for %d columns", len(row), len(columns)))
	}
	out := &pgproto3.DataRow{Values: make([][]byte, len(row))}
	for i, value := range row {
		out.Values[i] = encode(value, columns[i].OID, formatOf(formats, i) == 1)
	}
	return out
}
