package pooler

import (
	"context"
	"fmt"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pitr/config"
)

func TestPgxWorks(t *testing.T) {
	pg := server(t)
	for _, mode := range []string{"session", "transaction"} {
		for _, protocol := range []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"} {
			t.Run(mode+"/"+protocol, func(t *testing.T) {
				r := start(t, pg, func(cfg *config.Config) { cfg.Pooler.PoolMode = mode; cfg.Pooler.DefaultPoolSize = 4 })
				ctx := t.Context()
				one := pgxConnect(t, r.dsn("default_query_exec_mode="+protocol))
				table := pgx.Identifier{fmt.Sprintf("pgx_%s_%s", mode, protocol)}
				for _, sql := range []string{"drop table if exists " + table.Sanitize(), "create table " + table.Sanitize() + " (client int, n int)"} {
					if _, err := one.Exec(ctx, sql); err != nil {
						t.Fatal(err)
					}
				}
				crowd(t, 8, func(client int) error {
					conn := pgxConnect(t, r.dsn("default_query_exec_mode="+protocol))
					defer conn.Close(ctx)
					return pgxClient(ctx, conn, table, client)
				})
				var n, sum int
				if err := one.QueryRow(ctx, "select count(*), sum(n) from "+table.Sanitize()).Scan(&n, &sum); err != nil || n != 8*70 || sum != 8*(45+20*19/2+40*39/2) {
					t.Errorf("%d rows with sum %d are in the table, err %v", n, sum, err)
				}
			})
		}
	}
}

// pgxClient inserts 10 rows one by one, 20 in a batch, 40 by COPY, and rolls some back.
func pgxClient(ctx context.Context, clients *pgx.Conn, table pgx.Identifier, client int) error {
	insert := "insert into " + table.Sanitize() + " values ($1, $2)"
	for n := range 10 {
		var got int
		if err := clients.QueryRow(ctx, "select $1::int + 1", n).Scan(&got); err != nil || got != n+1 {
			return fmt.Errorf("select %d + 1 = %d: %w", n, got, err)
		}
		if _, err := clients.Exec(ctx, insert, client, n); err != nil {
			return fmt.Errorf("insert: %w", err)
		}
		if _, err := clients.Exec(ctx, "select 1/$1::int", 0); err == nil {
			return fmt.Errorf("a division by zero worked")
		}
	}
	batch := &pgx.Batch{}
	for n := range 20 {
		batch.Queue(insert, client, n)
	}
	if err := clients.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("batch: %w", err)
	}
	rows := pgx.CopyFromSlice(40, func(n int) ([]any, error) { return []any{client, n}, nil })
	if n, err := clients.CopyFrom(ctx, table, []string{"client", "n"}, rows); err != nil || n != 40 {
		return fmt.Errorf("copy of %d rows: %w", n, err)
	}
	bad := pgx.CopyFromSlice(5, func(n int) ([]any, error) { return nil, fmt.Errorf("no row %d", n) })
	if _, err := clients.CopyFrom(ctx, table, []string{"client", "n"}, bad); err == nil {
		return fmt.Errorf("a COPY without rows worked")
	}
	tx, err := clients.Begin(ctx)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, insert, client, 1000); err != nil {
		return err
	}
	return tx.Rollback(ctx)
}

// TestPreparedStatementsFollowTheirClient uses more statements than a server may keep, over servers that change all the time.
func TestPreparedStatementsFollowTheirClient(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) { cfg.Pooler.DefaultPoolSize = 3; cfg.Pooler.MaxPreparedStatements = 5 })
	ctx := t.Context()
	crowd(t, 10, func(client int) error {
		conn := pgxConnect(t, r.dsn(""))
		for n := range 12 {
			// Clients share some texts and have some of their own, all under the same names.
			if _, err := conn.Prepare(ctx, fmt.Sprintf("s%d", n), fmt.Sprintf("select %d + $1::int", n+client%2*100)); err != nil {
				return fmt.Errorf("prepare: %w", err)
			}
		}
		for i := range 200 {
			n := i % 12
			var got int
			if err := conn.QueryRow(ctx, fmt.Sprintf("s%d", n), 1000).Scan(&got); err != nil || got != 1000+n+client%2*100 {
				return fmt.Errorf("client %d: statement %d returned %d: %w", client, n, got, err)
			}
		}
		if err := conn.Deallocate(ctx, "s1"); err != nil {
			return fmt.Errorf("deallocate: %w", err)
		}
		return conn.DeallocateAll(ctx)
	})
	for _, one := range r.Stats().Pools {
		if one.Active+one.Idle+one.Cleaning > 3 {
			t.Errorf("the pool of 3 has %+v", one)
		}
	}
}

func TestPipelinesKeepTheirOrder(t *testing.T) {
	pg := server(t)
	for _, mode := range []string{"session", "transaction"} {
		r := start(t, pg, func(cfg *config.Config) { cfg.Pooler.PoolMode = mode; cfg.Pooler.MaxPipelineMessages = 100 })
		conn := connect(t, r.dsn(""))
		pipeline := conn.StartPipeline(t.Context())
		const queries = 500
		for n := range queries {
			pipeline.SendQueryParams("select $1::text", [][]byte{fmt.Append(nil, n)}, nil, nil, nil)
			if n%7 == 0 {
				if err := pipeline.Sync(); err != nil {
					t.Fatal(err)
				}
			}
			if n == queries/2 {
				pipeline.SendQueryParams("select 1/0", nil, nil, nil, nil)
				if err := pipeline.Sync(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := pipeline.Sync(); err != nil {
			t.Fatal(err)
		}
		seen, failed := readPipeline(t, pipeline, queries)
		if failed != 1 || len(seen) != queries {
			t.Errorf("%s mode: %d answers, %d errors", mode, len(seen), failed)
		}
		for n, got := range seen {
			if got != fmt.Sprint(n) {
				t.Fatalf("%s mode: answer %d is %q", mode, n, got)
			}
		}
	}
}

// readPipeline reads what comes until there were so many answers, and closes the pipeline.
func readPipeline(t *testing.T, pipeline *pgconn.Pipeline, answers int) (seen []string, failed int) {
	t.Helper()
	for len(seen) < answers {
		results, err := pipeline.GetResults()
		if err != nil {
			failed++
			continue
		}
		if reader, ok := results.(*pgconn.ResultReader); ok {
			result := reader.Read()
			if result.Err != nil {
				failed++
				continue
			}
			seen = append(seen, string(result.Rows[0][0]))
		}
	}
	if err := pipeline.Close(); err != nil {
		t.Fatal(err)
	}
	return seen, failed
}

func pgxConnect(t *testing.T, dsn string) *pgx.Conn {
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Error(err)
		t.FailNow()
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// crowd runs n clients at the same time and reports their errors.
func crowd(t testing.TB, n int, client func(int) error) {
	t.Helper()
	failures := make(chan error, n)
	for i := range n {
		go func() { failures <- client(i) }()
	}
	for range n {
		if err := <-failures; err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

// TestStatementsSurviveDDL alters what prepared statements read, which Postgres answers with 0A000, and drops them behind the
// client's back, which it answers with 26000.
func TestStatementsSurviveDDL(t *testing.T) {
	pg := server(t)
	r := start(t, pg, onePerPool)
	conn, other := connect(t, r.dsn("")), connect(t, r.dsn(""))
	mustQuery(t, other, "drop table if exists altered; create table altered (a int); insert into altered values (1)")
	if _, err := conn.Prepare(t.Context(), "s1", "select * from altered", nil); err != nil {
		t.Fatal(err)
	}
	columns := func() int {
		t.Helper()
		result := conn.ExecPrepared(t.Context(), "s1", nil, nil, nil).Read()
		if result.Err != nil {
			t.Fatal(result.Err)
		}
		return len(result.FieldDescriptions)
	}
	if n := columns(); n != 1 {
		t.Errorf("%d columns", n)
	}
	for n := 2; n < 6; n++ {
		mustQuery(t, other, "alter table altered add column b"+strconv.Itoa(n)+" int")
		if got := columns(); got != n {
			t.Errorf("%d columns after the table has got %d", got, n)
		}
	}
	mustQuery(t, other, "deallocate all")
	mustQuery(t, other, "discard all")
	if got := columns(); got != 5 {
		t.Errorf("%d columns after all statements were dropped", got)
	}
}
