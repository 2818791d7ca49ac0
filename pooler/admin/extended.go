package admin

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/internal/pgwire"
)

// portal is a command that was bound: it runs at its first Execute.
type portal struct {
	plan    *plan // nil for an empty text
	formats []int16
	ran     bool
	rows    [][]any // that were not fetched yet
}

// extended answers one message of the extended protocol. After an error everything up to Sync is skipped.
func (c *Console) extended(ctx context.Context, one request) ([]pgproto3.BackendMessage, error) {
	switch one.kind {
	case pgwire.Parse:
		return c.parse(one.body)
	case pgwire.Bind:
		return c.bind(one.body)
	case pgwire.Describe:
		return c.describe(one.body)
	case pgwire.Execute:
		return c.execute(ctx, one.body)
	case pgwire.Close:
		var message pgproto3.Close
		if err := message.Decode(one.body); err != nil {
			return nil, malformed("CLOSE")
		}
		if message.ObjectType == 'S' {
			delete(c.statements, message.Name)
		} else {
			delete(c.portals, message.Name)
		}
		return []pgproto3.BackendMessage{&pgproto3.CloseComplete{}}, nil
	case pgwire.Flush:
		return nil, nil // every answer has been sent
	}
	return nil, &refusal{"08P01", fmt.Sprintf("the console does not take a message %q", one.kind)}
}

func malformed(what string) error { return &refusal{"08P01", "invalid " + what + " message"} }

func (c *Console) parse(body []byte) ([]pgproto3.BackendMessage, error) {
	var message pgproto3.Parse
	if err := message.Decode(body); err != nil {
		return nil, malformed("PARSE")
	}
	if _, exists := c.statements[message.Name]; message.Name != "" && exists {
		return nil, &refusal{"42P05", fmt.Sprintf("prepared statement %q already exists", message.Name)}
	}
	if len(c.statements) >= statementsMax {
		return nil, &refusal{"53400", fmt.Sprintf("the console keeps no more than %d prepared statements", statementsMax)}
	}
	p, err := c.allowed(message.Query)
	if err != nil {
		return nil, err
	}
	c.statements[message.Name] = p
	return []pgproto3.BackendMessage{&pgproto3.ParseComplete{}}, nil
}

func (c *Console) bind(body []byte) ([]pgproto3.BackendMessage, error) {
	var message pgproto3.Bind
	if err := message.Decode(body); err != nil {
		return nil, malformed("BIND")
	}
	p, exists := c.statements[message.PreparedStatement]
	if !exists {
		return nil, &refusal{"26000", fmt.Sprintf("prepared statement %q does not exist", message.PreparedStatement)}
	}
	if len(message.Parameters) > 0 {
		return nil, &refusal{"08P01", "commands of the console take no parameters"}
	}
	if len(c.portals) >= statementsMax {
		return nil, &refusal{"53400", fmt.Sprintf("the console keeps no more than %d portals", statementsMax)}
	}
	c.portals[message.DestinationPortal] = &portal{plan: p, formats: message.ResultFormatCodes}
	return []pgproto3.BackendMessage{&pgproto3.BindComplete{}}, nil
}

func (c *Console) describe(body []byte) ([]pgproto3.BackendMessage, error) {
	var message pgproto3.Describe
	if err := message.Decode(body); err != nil {
		return nil, malformed("DESCRIBE")
	}
	var p *plan
	var formats []int16
	var out []pgproto3.BackendMessage
	switch message.ObjectType {
	case 'S':
		statement, exists := c.statements[message.Name]
		if !exists {
			return nil, &refusal{"26000", fmt.Sprintf("prepared statement %q does not exist", message.Name)}
		}
		p, out = statement, append(out, &pgproto3.ParameterDescription{})
	case 'P':
		bound := c.portals[message.Name]
		if bound == nil {
			return nil, &refusal{"34000", fmt.Sprintf("portal %q does not exist", message.Name)}
		}
		p, formats = bound.plan, bound.formats
	default:
		return nil, malformed("DESCRIBE")
	}
	if p == nil || p.columns == nil {
		return append(out, &pgproto3.NoData{}), nil
	}
	return append(out, description(p.columns, formats)), nil
}

func (c *Console) execute(ctx context.Context, body []byte) ([]pgproto3.BackendMessage, error) {
	var message pgproto3.Execute
	if err := message.Decode(body); err != nil {
		return nil, malformed("EXECUTE")
	}
	bound := c.portals[message.Portal]
	if bound == nil {
		return nil, &refusal{"34000", fmt.Sprintf("portal %q does not exist", message.Portal)}
	}
	if bound.plan == nil {
		return []pgproto3.BackendMessage{&pgproto3.EmptyQueryResponse{}}, nil
	}
	var out []pgproto3.BackendMessage
	if !bound.ran {
		got, err := c.carryOut(ctx, bound.plan)
		if err != nil {
			return nil, err
		}
		bound.ran, bound.rows, c.after = true, got.rows, got.after
		for _, n := range got.notices {
			out = append(out, n)
		}
	}
	n := len(bound.rows)
	if message.MaxRows > 0 {
		n = min(n, int(message.MaxRows))
	}
	for _, row := range bound.rows[:n] {
		out = append(out, dataRow(bound.plan.columns, row, bound.formats))
	}
	bound.rows = bound.rows[n:]
	if len(bound.rows) > 0 {
		return append(out, &pgproto3.PortalSuspended{}), nil
	}
	return append(out, &pgproto3.CommandComplete{CommandTag: []byte(bound.plan.tag)}), nil
}
