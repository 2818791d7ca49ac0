package pooler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// marked looks for the marks of clients in all that is read from a connection: <c0000> to <c9999>.
type marked struct {
	net.Conn
	client *stressed
	last   []byte // the end of what was read before, shorter than a mark
}

const markLen = len("<c0000>")

func (c *stressed) dial(ctx context.Context, network, address string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &marked{Conn: conn, client: c}, nil
}

// Read implements net.Conn.
func (m *marked) Read(out []byte) (int, error) {
	n, err := m.Conn.Read(out)
	m.client.counts.bytes.Add(int64(n))
	seen := append(m.last, out[:n]...)
	for rest := seen; ; {
		i := bytes.Index(rest, []byte("<c"))
		if i < 0 || len(rest)-i < markLen {
			break
		}
		if mark := rest[i:][:markLen]; mark[markLen-1] == '>' && string(mark) != m.client.mark {
			m.client.counts.foreign.Add(int64(markLen))
		}
		rest = rest[i+2:]
	}
	m.last = append(m.last[:0], seen[max(0, len(seen)-markLen+1):]...)
	return n, err
}

// transaction sets something, which must be there until the end and not after.
func (c *stressed) transaction() error {
	c.counts.transactions.Add(1)
	ctx, want := context.Background(), c.want()
	tx, err := c.conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }()
	if c.random.IntN(4) == 0 {
		_, err = tx.Exec(ctx, "set my.mark = '"+want+"'")
	} else {
		_, err = tx.Exec(ctx, "select set_config('my.mark', $1, true)", want)
	}
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "insert into owned values ($1, $2, $3)", c.client, c.mark, c.random.IntN(100)); err != nil {
		return err
	}
	var got, app string
	if err := tx.QueryRow(ctx, "select current_setting('my.mark'), current_setting('application_name')").Scan(&got, &app); err != nil {
		return err
	}
	if err := c.check(got, app, want); err != nil || c.random.IntN(3) == 0 {
		return err
	}
	var foreign int
	if err := tx.QueryRow(ctx, "select count(*) from owned where xmin::text = txid_current()::text and client <> $1", c.client).Scan(&foreign); err != nil || foreign != 0 {
		return fmt.Errorf("%d foreign rows: %w", foreign, err)
	}
	if c.random.IntN(4) == 0 {
		if _, err := tx.Exec(ctx, "select 1/0 as \""+c.mark+"\""); err == nil {
			return errors.New("a division by zero worked")
		} else if c.conn.IsClosed() {
			return err
		}
		return nil
	}
	return tx.Commit(ctx)
}

// batch sends several statements behind one Sync.
func (c *stressed) batch() error {
	c.counts.pipelines.Add(1)
	var got, app string
	want := c.want()
	batch := &pgx.Batch{}
	batch.Queue("select 1")
	batch.Queue("select $1::text, current_setting('application_name')", want)
	results := c.conn.SendBatch(context.Background(), batch)
	_, _ = results.Exec()
	err := results.QueryRow().Scan(&got, &app)
	if err := firstOf(err, results.Close()); err != nil {
		return err
	}
	return c.check(got, app, want)
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// pipeline has many Syncs in flight, of which some end a batch that fails, and statements with a name that all clients use.
func (c *stressed) pipeline() error {
	c.counts.pipelines.Add(1)
	p := c.conn.PgConn().StartPipeline(context.Background())
	depth := 1 + c.random.IntN(20)
	name := fmt.Sprintf("s%d", c.random.IntN(5))
	p.SendDeallocate(name)
	p.SendPrepare(name, "select '"+c.mark+"' || $1", nil)
	err := p.Sync()
	for i := range depth {
		if i%5 == 4 {
			p.SendQueryParams("select 1/0 as \""+c.mark+"\"", nil, nil, nil, nil)
		}
		p.SendQueryPrepared(name, [][]byte{fmt.Append(nil, i)}, nil, nil)
		err = firstOf(err, p.Sync())
	}
	if err != nil {
		return err
	}
	return firstOf(c.results(p, depth), p.Close())
}

func (c *stressed) results(p *pgconn.Pipeline, depth int) error {
	batch, failed := -1, false
	for batch < depth {
		result, err := p.GetResults()
		var told *pgconn.PgError
		switch {
		case errors.As(err, &told) && told.Code == "22012" && batch%5 == 4:
			failed = true
		case err != nil:
			return err
		}
		switch result := result.(type) {
		case *pgconn.PipelineSync:
			if batch >= 0 && failed != (batch%5 == 4) {
				return fmt.Errorf("batch %d: failed is %v", batch, failed)
			}
			batch, failed = batch+1, false
		case *pgconn.ResultReader:
			rows := result.Read()
			if errors.As(rows.Err, &told) && told.Code == "22012" && batch%5 == 4 {
				failed = true
				continue
			}
			if rows.Err != nil {
				return rows.Err
			}
			if want := fmt.Sprintf("%s%d", c.mark, batch); len(rows.Rows) != 1 || string(rows.Rows[0][0]) != want {
				return fmt.Errorf("got %q, want %q", rows.Rows, want)
			}
		}
	}
	return nil
}

// copyBoth copies rows in and out, and sometimes gives up.
func (c *stressed) copyBoth() error {
	c.counts.copies.Add(1)
	ctx, conn := context.Background(), c.conn.PgConn()
	rows := strings.Repeat(fmt.Sprintf("%d\t%s\t1\n", c.client, c.mark), 1+c.random.IntN(300))
	var in io.Reader = strings.NewReader(rows)
	gives := c.random.IntN(4) == 0
	if gives {
		in = io.MultiReader(in, failing{})
	}
	tag, err := conn.CopyFrom(ctx, in, "copy copied from stdin")
	var told *pgconn.PgError
	switch {
	case gives && errors.As(err, &told) && told.Code == "57014":
	case err != nil:
		return err
	case gives || tag.RowsAffected() != int64(strings.Count(rows, "\n")):
		return fmt.Errorf("COPY of %d rows said %s", strings.Count(rows, "\n"), tag)
	}
	var out bytes.Buffer
	if _, err := conn.CopyTo(ctx, &out, fmt.Sprintf("copy (select '%s' from generate_series(1, 500)) to stdout", c.mark)); err != nil {
		return err
	}
	if out.String() != strings.Repeat(c.mark+"\n", 500) {
		return fmt.Errorf("COPY gave %d bytes that are not those that were asked for", out.Len())
	}
	return nil
}

type failing struct{}

// Read implements io.Reader.
func (failing) Read([]byte) (int, error) { return 0, errors.New("no more") }

// set changes the application name for good.
func (c *stressed) set() error {
	c.counts.settings.Add(1)
	app := c.want()
	if _, err := c.conn.Exec(context.Background(), "set application_name = '"+app+"'"); err != nil {
		return err
	}
	c.app = app
	var got string
	if err := c.conn.QueryRow(context.Background(), "show application_name").Scan(&got); err != nil {
		return err
	}
	return c.check(got, c.conn.PgConn().ParameterStatus("application_name"), app)
}

// temporaryTable has one for a transaction, with the name that all use.
func (c *stressed) temporaryTable() error {
	c.counts.temporary.Add(1)
	ctx, want := context.Background(), c.want()
	tx, err := c.conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }()
	if _, err := tx.Exec(ctx, "create temp table own on commit drop as select '"+want+"' as mark"); err != nil {
		return err
	}
	var got, app string
	const read = "select mark, current_setting('application_name') from own"
	if err := tx.QueryRow(ctx, read, pgx.QueryExecModeSimpleProtocol).Scan(&got, &app); err != nil {
		return err
	}
	return firstOf(c.check(got, app, want), tx.Commit(ctx))
}

// leaveBehind leaves a temporary table for whoever has the server next, and goes. If there is one already it has to be the client's own.
func (c *stressed) leaveBehind() error {
	c.counts.temporary.Add(1)
	ctx := context.Background()
	var foreign bool
	if err := c.conn.QueryRow(ctx, "select to_regclass('left_behind') is not null").Scan(&foreign); err != nil || foreign {
		return firstOf(err, errors.New("somebody's temporary table is there"))
	}
	if _, err := c.conn.Exec(ctx, "create temp table left_behind as select '"+c.mark+"' as mark"); err != nil {
		return err
	}
	return errGone
}

// cancel sends cancel requests while it asks, which may hit that and nothing else.
func (c *stressed) cancel() error {
	c.counts.cancels.Add(1)
	ctx, want := context.Background(), c.want()
	answered, sent := make(chan struct{}), make(chan error, 1)
	go func() {
		for pause := 5 * time.Millisecond; ; pause *= 2 { // it may have to wait for a server, where no request reaches it
			select {
			case <-answered:
				sent <- nil
				return
			case <-time.After(pause):
			}
			if err := c.conn.PgConn().CancelRequest(ctx); err != nil {
				sent <- err
				return
			}
		}
	}()
	var got, app string
	err := c.conn.QueryRow(ctx, "select $1::text, current_setting('application_name') from pg_sleep(0.03)", want).Scan(&got, &app)
	close(answered)
	if err := <-sent; err != nil {
		return fmt.Errorf("cancel request: %w", err)
	}
	var told *pgconn.PgError
	if errors.As(err, &told) && told.Code == "57014" {
		c.counts.cancelled.Add(1)
		return nil
	}
	if err != nil {
		return err
	}
	return c.check(got, app, want)
}

// vanish closes the connection in the middle of something.
func (c *stressed) vanish() error {
	c.counts.kills.Add(1)
	conn := c.conn.PgConn()
	if text := []string{"", "begin; select pg_sleep(0.001), '" + c.mark + "'", "copy copied from stdin", "select '" + c.mark + "' from generate_series(1, 100000)",
		"begin; insert into owned values (-1, '" + c.mark + "', 0)"}[c.random.IntN(5)]; text != "" {
		conn.Frontend().SendQuery(&pgQuery{String: text})
		_ = conn.Frontend().Flush()
	}
	_ = conn.Conn().Close()
	return errGone
}
