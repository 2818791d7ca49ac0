package pooler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pitr/config"
)

// stress is what all clients of TestWhoseRowIsIt count.
type stress struct {
	connections, queries, transactions, copies, pipelines, settings, temporary, cancels, cancelled atomic.Int64
	kills, terminated, lost                                                                        atomic.Int64 // clients, servers, clients whose server was terminated
	bytes, foreign                                                                                 atomic.Int64

	// mu guards reasons.
	mu      sync.Mutex
	reasons map[string]int // of those who lost their server
}

// stressClients is how many clients share the servers of a small pool.
const stressClients = 200

// stressTables are what the clients write to. They are emptied now and then, since what is looked for in one of them has no index.
const stressTables = "create unlogged table owned (client int, mark text, n int); create unlogged table copied (client int, mark text, n int)"

// TestWhoseRowIsIt lets many clients share few servers, each asking only for values that name it, in every way there is, while clients
// vanish and servers are terminated. No client may get a byte that names another one, and a server that is terminated may hurt no more than the one
// client that uses it. PITR_STRESS_SECONDS makes it go on for longer.
func TestWhoseRowIsIt(t *testing.T) {
	seconds := 20.0
	if text := os.Getenv("PITR_STRESS_SECONDS"); text != "" {
		var err error
		if seconds, err = strconv.ParseFloat(text, 64); err != nil {
			t.Fatal(err)
		}
	}
	for _, workers := range []int{2, 1} {
		t.Run(fmt.Sprintf("workers=%d", workers), func(t *testing.T) {
			whoseRowIsIt(t, workers, time.Duration(seconds/2*float64(time.Second)))
		})
	}
}

func whoseRowIsIt(t *testing.T, workers int, duration time.Duration) {
	pg := server(t)
	admin := connect(t, pg.dsn(""))
	mustQuery(t, admin, "drop database if exists stress with (force)")
	mustQuery(t, admin, "create database stress")
	inside := connect(t, pg.dsn("")+" dbname=stress")
	mustQuery(t, inside, stressTables)
	r := start(t, pg, func(cfg *config.Config) {
		cfg.Pooler.MaxPreparedStatements, cfg.Pooler.Workers, cfg.Pooler.LazyBegin, cfg.Pooler.DefaultPoolSize = 20, workers, "on", 8
	})
	seed := seedOf(t)
	counts := stress{reasons: map[string]int{}}
	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	var terminator sync.WaitGroup
	terminator.Go(func() { counts.terminate(ctx, t, inside) })
	crowd(t, stressClients, func(client int) error {
		random := rand.New(rand.NewPCG(seed, uint64(client)))
		for ctx.Err() == nil {
			c := &stressed{counts: &counts, running: r, client: client, random: random, mark: fmt.Sprintf("<c%04d>", client)}
			if err := c.live(ctx); err != nil {
				return fmt.Errorf("client %d: %w", client, err)
			}
		}
		return nil
	})
	terminator.Wait()
	n := &counts
	t.Logf("workers=%d: %d connections, %d queries, %d transactions, %d pipelines, %d COPYs, %d settings, %d temporary tables, %d cancel requests (%d hit)",
		workers, n.connections.Load(), n.queries.Load(), n.transactions.Load(), n.pipelines.Load(), n.copies.Load(), n.settings.Load(),
		n.temporary.Load(), n.cancels.Load(), n.cancelled.Load())
	t.Logf("workers=%d: %d clients killed, %d servers terminated, %d clients lost theirs, %d bytes read, %d foreign bytes",
		workers, n.kills.Load(), n.terminated.Load(), n.lost.Load(), n.bytes.Load(), n.foreign.Load())
	st := r.Stats()
	t.Logf("workers=%d: %d server transactions, %d cleanings, limits %+v", workers, st.Pools[0].Transactions, st.Pools[0].Cleanings, st.Limits)
	if n.foreign.Load() > 0 || n.lost.Load() > n.terminated.Load() {
		t.Errorf("%d foreign bytes; %d clients lost their server although only %d were terminated: %v", n.foreign.Load(), n.lost.Load(), n.terminated.Load(), n.reasons)
	}
	if n.queries.Load() == 0 || n.terminated.Load() == 0 || n.kills.Load() == 0 || n.cancelled.Load() == 0 {
		t.Error("the test shows nothing")
	}
}

// terminate ends servers at random. One that has only just logged in is spared: the pool would take its end for a refusal.
func (n *stress) terminate(ctx context.Context, t *testing.T, admin *pgconn.PgConn) {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for tick := 1; ; tick++ {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if tick%100 == 0 {
			mustQuery(t, admin, "truncate owned, copied")
		}
		hit, err := query(admin, "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'stress' and pid <> pg_backend_pid() "+
			"and state is not null and backend_start < clock_timestamp() - interval '200 ms' order by random() limit 1")
		if err != nil {
			t.Error(err)
			return
		}
		if hit == "t" {
			n.terminated.Add(1)
		}
	}
}

// stressed is one connection of a client.
type stressed struct {
	counts  *stress
	running *running
	client  int
	random  *rand.Rand
	mark    string // is in all that it asks for
	app     string
	conn    *pgx.Conn
}

// errGone ends a connection, and is no failure.
var errGone = errors.New("gone")

// live is the life of one connection, which may end in the middle of anything.
func (c *stressed) live(ctx context.Context) error {
	c.app = c.mark
	protocol := []string{"cache_statement", "exec", "simple_protocol", "describe_exec"}[c.random.IntN(4)]
	cfg, err := pgx.ParseConfig(c.running.dsn("") + " dbname=stress application_name=" + c.app + " default_query_exec_mode=" + protocol)
	if err != nil {
		return err
	}
	cfg.DialFunc = c.dial
	if c.conn, err = pgx.ConnectConfig(context.Background(), cfg); err != nil {
		return c.forgiven(err)
	}
	defer c.conn.Close(context.Background())
	c.counts.connections.Add(1)
	for range 20 + c.random.IntN(50) {
		if ctx.Err() != nil {
			return nil
		}
		if err := c.step(); err != nil {
			return c.forgiven(err)
		}
	}
	return nil
}

// forgiven returns nil for the ends that a client has chosen, or that come from a terminated server: those are counted.
func (c *stressed) forgiven(err error) error {
	if errors.Is(err, errGone) {
		return nil
	}
	var told *pgconn.PgError
	if errors.As(err, &told) && told.Code != "57P01" && told.Code != "08006" {
		return err
	}
	if told == nil && !ended(err) {
		return err // a wrong value, or an answer that is none
	}
	c.counts.lost.Add(1)
	c.counts.mu.Lock()
	defer c.counts.mu.Unlock()
	c.counts.reasons[strings.ReplaceAll(err.Error(), c.mark, "")]++
	return nil
}

// ended reports whether a connection has come to its end. pgx has no name for the error of one that had done so before.
func ended(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		strings.HasSuffix(err.Error(), "conn closed")
}

func (c *stressed) step() error {
	switch c.random.IntN(20) {
	default:
		return c.query()
	case 7, 8, 9:
		return c.transaction()
	case 10, 11:
		return c.batch()
	case 12, 13:
		return c.pipeline()
	case 14:
		return c.copyBoth()
	case 15:
		return c.set()
	case 16:
		return c.temporaryTable()
	case 17:
		return c.cancel()
	case 18:
		if c.random.IntN(3) == 0 {
			return c.leaveBehind()
		}
		return c.query()
	case 19:
		if c.random.IntN(3) == 0 {
			return c.vanish()
		}
		return c.query()
	}
}

// check compares a value and the application name that came with it.
func (c *stressed) check(got, app, want string) error {
	if got != want || app != c.app {
		return fmt.Errorf("got the row %q of %q, want %q of %q", got, app, want, c.app)
	}
	return nil
}

func (c *stressed) want() string { return fmt.Sprintf("%s/%d", c.mark, c.random.IntN(1000)) }

func (c *stressed) query() error {
	c.counts.queries.Add(1)
	var got, app string
	want, text := c.want(), "select $1::text, current_setting('application_name')"
	switch c.random.IntN(3) {
	case 0:
		text += fmt.Sprintf(" -- %d", c.random.IntN(40))
	case 1:
		text += " -- " + c.mark // nobody else has this statement
	}
	if err := c.conn.QueryRow(context.Background(), text, want).Scan(&got, &app); err != nil {
		return err
	}
	return c.check(got, app, want)
}
