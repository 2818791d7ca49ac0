package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// tortureSchema makes the tables of the workload. Every change is a row of the journal: a trigger writes it into the WAL as a message, which
// pg_waldump prints, and carries it out. The message has the id of the subtransaction that wrote it, so that pg_waldump alone
// decides what is in the tables at an instant. A client's transactions are serialized by a lock that precedes their xid: the order of their
// xids is the order in which their changes came.
const tortureSchema = `
create table journal (client int, seq int, part int, xid bigint, op text, key int, value bigint, primary key (client, seq, part));
create table state (key int primary key, value bigint not null, xid bigint not null);
create table counter (key int primary key, total bigint not null);
insert into counter select i, 0 from generate_series(0, 63) i;
create function carry_out() returns trigger language plpgsql as $$
declare side text := 'side_' || new.client;
begin
  perform pg_advisory_xact_lock(new.client);
  new.xid := pg_current_xact_id()::text::bigint;
  perform pg_logical_emit_message(true, 'torture', concat_ws(' ', new.client, new.seq, new.part, new.xid, new.op, new.key, new.value));
  case new.op
  when 'put' then insert into state values (new.key, new.value, new.xid) on conflict (key) do update set value = excluded.value, xid = excluded.xid;
  when 'del' then delete from state where key = new.key;
  when 'add' then update counter set total = total + new.value where key = new.key;
  when 'create' then
    if to_regclass(side) is null then execute format('create table %s (key int, value bigint)', side); end if;
  when 'fill' then
    if to_regclass(side) is not null then execute format('insert into %s values ($1, $2)', side) using new.key, new.value; end if;
  when 'truncate' then
    if to_regclass(side) is not null then execute format('truncate %s', side); end if;
  when 'drop' then
    if to_regclass(side) is not null then execute format('drop table %s', side); end if;
  end case;
  return new;
end $$;
create trigger carry_out before insert on journal for each row execute function carry_out();`

// Sizes of the workload.
const (
	tortureWriters  = 16
	tortureKeys     = 50 // of state, of each client
	tortureCounters = 64 // shared by all
)

// entry is a row of the journal.
type entry struct {
	Client, Seq, Part int
	XID               uint64
	Op                string
	Key               int
	Value             int64
}

// transactionID names a transaction by its client and its place in what the client did.
type transactionID struct{ Client, Seq int }

// acknowledged is a transaction whose commit the client was told of.
type acknowledged struct {
	at    time.Time // by the monotonic clock of the client
	parts []int     // that were not rolled back to a savepoint
}

// tortureLoad is clients that write at full rate until they are told to stop.
type tortureLoad struct {
	connect func(context.Context) (*pgx.Conn, error)
	stop    atomic.Bool
	clients sync.WaitGroup

	mu    sync.Mutex // guards what follows
	acked map[transactionID]acknowledged
	kinds map[string]int // acknowledged transactions by kind
}

func startWorkload(ctx context.Context, rng *rand.Rand, connect func(context.Context) (*pgx.Conn, error)) *tortureLoad {
	w := &tortureLoad{connect: connect, acked: map[transactionID]acknowledged{}, kinds: map[string]int{}}
	for n := range tortureWriters {
		c := &client{tortureLoad: w, number: n, rng: rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))}
		w.clients.Go(func() {
			for !w.stop.Load() && ctx.Err() == nil {
				c.connection(ctx)
			}
		})
	}
	return w
}

// end stops the clients. One that waits for a commit that does not come back is cut off.
func (w *tortureLoad) end() {
	w.stop.Store(true)
	w.clients.Wait()
}

func (w *tortureLoad) ack(id transactionID, kind string, parts []int) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acked[id] = acknowledged{at: now, parts: parts}
	w.kinds[kind]++
}

// acknowledgedSoFar copies what was acknowledged.
func (w *tortureLoad) acknowledgedSoFar() map[transactionID]acknowledged {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make(map[transactionID]acknowledged, len(w.acked))
	for id, a := range w.acked {
		all[id] = a
	}
	return all
}

// client is one of them.
type client struct {
	*tortureLoad
	number int
	seq    int // of the next transaction; one that broke is never used again
	rng    *rand.Rand
}

// answerMax bounds how long a client waits for one answer: commits wait for as long as the store is away.
const answerMax = 20 * time.Second

// connection writes over one connection until it breaks.
func (c *client) connection(ctx context.Context) {
	begin, cancel := context.WithTimeout(ctx, answerMax)
	defer cancel()
	conn, err := c.connect(begin)
	if err != nil {
		waitFor(ctx, 20*time.Millisecond)
		return
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing)
	}()
	if err := c.resolve(begin, conn); err != nil {
		waitFor(ctx, 20*time.Millisecond)
		return
	}
	for ; !c.stop.Load(); c.seq++ {
		once, cancel := context.WithTimeout(ctx, answerMax)
		err := c.transaction(once, conn)
		cancel()
		if err != nil {
			c.seq++
			return
		}
	}
}

// resolve ends the prepared transactions that a broken connection has left behind.
func (c *client) resolve(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, "select gid from pg_prepared_xacts where gid like $1", fmt.Sprintf("torture %d %%", c.number))
	if err != nil {
		return err
	}
	gids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, gid := range gids {
		verb := []string{"commit", "rollback"}[c.rng.IntN(2)]
		if _, err := conn.Exec(ctx, fmt.Sprintf("%s prepared '%s'", verb, gid)); err != nil {
			return err
		}
	}
	return nil
}

// transaction does one transaction of a random kind, and notes it if its commit was acknowledged.
func (c *client) transaction(ctx context.Context, conn *pgx.Conn) error {
	switch n := c.rng.IntN(20); {
	case n < 10:
		return c.single(ctx, conn)
	case n < 13:
		return c.multi(ctx, conn, true)
	case n < 15:
		return c.multi(ctx, conn, false)
	case n < 18:
		return c.savepoints(ctx, conn)
	default:
		return c.prepared(ctx, conn)
	}
}

func (c *client) single(ctx context.Context, conn *pgx.Conn) error {
	if err := c.write(ctx, conn, 0, true); err != nil {
		return err
	}
	c.ack(transactionID{c.number, c.seq}, "single", []int{0})
	return nil
}

func (c *client) multi(ctx context.Context, conn *pgx.Conn, commit bool) error {
	return c.within(ctx, conn, func() ([]int, string, error) {
		parts := []int{}
		for part := range 1 + c.rng.IntN(4) {
			if err := c.write(ctx, conn, part, true); err != nil {
				return nil, "", err
			}
			parts = append(parts, part)
		}
		if !commit {
			_, err := conn.Exec(ctx, "rollback")
			return nil, "", err
		}
		_, err := conn.Exec(ctx, "commit")
		return parts, "multi", err
	})
}

// savepoints nests subtransactions and rolls some of them back.
func (c *client) savepoints(ctx context.Context, conn *pgx.Conn) error {
	return c.within(ctx, conn, func() ([]int, string, error) {
		parts := []int{0}
		if err := c.write(ctx, conn, 0, true); err != nil {
			return nil, "", err
		}
		for part := 1; part <= 1+c.rng.IntN(3); part++ {
			if _, err := conn.Exec(ctx, "savepoint a"); err != nil {
				return nil, "", err
			}
			if err := c.write(ctx, conn, part, true); err != nil {
				return nil, "", err
			}
			verb := "release savepoint a"
			if c.rng.IntN(2) == 0 {
				verb = "rollback to savepoint a"
			} else {
				parts = append(parts, part)
			}
			if _, err := conn.Exec(ctx, verb); err != nil {
				return nil, "", err
			}
		}
		_, err := conn.Exec(ctx, "commit")
		return parts, "savepoints", err
	})
}

// prepared commits in two phases. It leaves the shared counters alone, whose locks it would keep when the connection breaks.
func (c *client) prepared(ctx context.Context, conn *pgx.Conn) error {
	gid := fmt.Sprintf("torture %d %d", c.number, c.seq)
	return c.within(ctx, conn, func() ([]int, string, error) {
		parts := []int{}
		for part := range 1 + c.rng.IntN(2) {
			if err := c.write(ctx, conn, part, false); err != nil {
				return nil, "", err
			}
			parts = append(parts, part)
		}
		if _, err := conn.Exec(ctx, fmt.Sprintf("prepare transaction '%s'", gid)); err != nil {
			return nil, "", err
		}
		if c.rng.IntN(4) == 0 {
			_, err := conn.Exec(ctx, fmt.Sprintf("rollback prepared '%s'", gid))
			return nil, "", err
		}
		_, err := conn.Exec(ctx, fmt.Sprintf("commit prepared '%s'", gid))
		return parts, "prepared", err
	})
}

// within begins a transaction, and notes it as acknowledged when what ends it returns parts.
func (c *client) within(ctx context.Context, conn *pgx.Conn, body func() (parts []int, kind string, err error)) error {
	if _, err := conn.Exec(ctx, "begin"); err != nil {
		return err
	}
	parts, kind, err := body()
	if err == nil && len(parts) > 0 {
		c.ack(transactionID{c.number, c.seq}, kind, parts)
	}
	return err
}

// write writes one random row of the journal.
func (c *client) write(ctx context.Context, conn *pgx.Conn, part int, shared bool) error {
	op, key := "put", c.number*1000+c.rng.IntN(tortureKeys)
	switch n := c.rng.IntN(100); {
	case n < 50:
	case n < 70:
		op = "del"
	case n < 90 && shared:
		op, key = "add", c.rng.IntN(tortureCounters)
	case n < 96:
		op = "fill"
	case n < 98:
		op = "create"
	case n < 99:
		op = "truncate"
	default:
		op = "drop"
	}
	_, err := conn.Exec(ctx, "insert into journal (client, seq, part, op, key, value) values ($1, $2, $3, $4, $5, $6)", c.number, c.seq, part, op, key, c.rng.Int64N(1_000_000))
	return err
}

func waitFor(ctx context.Context, span time.Duration) {
	timer := time.NewTimer(span)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
