package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pitr/internal/postmaster"
)

// order is a row as its writer knows it.
type order struct {
	Client, Number int
}

// workload is what the writers know.
type workload struct {
	mu    sync.Mutex         // guards acked
	acked map[uint64][]order // orders by the transaction that wrote them, as acknowledged

	dropped  atomic.Bool // the table is gone: write payments
	stop     atomic.Bool
	payments atomic.Int64
	instant  time.Time
}

func (d *demo) connect(ctx context.Context, port int) (*pgx.Conn, error) {
	return pgx.Connect(ctx, fmt.Sprintf("host=127.0.0.1 port=%d user=%s password=%s dbname=postgres sslmode=disable", port, demoSuperuser, demoPassword))
}

// write lets the clients write, drops their table at a known instant, and lets them go on elsewhere.
func (d *demo) write(ctx context.Context) (*workload, error) {
	admin, err := d.connect(ctx, d.ports.pooler)
	if err != nil {
		return nil, err
	}
	defer func() { _ = admin.Close(ctx) }()
	for _, sql := range []string{
		"create table orders (client int, number int, item text, primary key (client, number))",
		"create table payments (client int, number int, primary key (client, number))",
	} {
		if _, err := admin.Exec(ctx, sql); err != nil {
			return nil, err
		}
	}
	w := &workload{acked: map[uint64][]order{}}
	begin := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, d.flags.clients)
	var writers sync.WaitGroup
	for client := range d.flags.clients {
		writers.Go(func() {
			if err := d.writer(ctx, w, client); err != nil {
				errs <- err
				cancel()
			}
		})
	}
	err = d.disaster(ctx, w, admin, begin)
	w.stop.Store(true)
	if err != nil {
		cancel()
	}
	writers.Wait()
	close(errs)
	for writerErr := range errs {
		err = errors.Join(err, writerErr)
	}
	if err == nil {
		d.step(begin, "wrote %d payments elsewhere after the drop", w.payments.Load())
	}
	return w, err
}

// disaster waits, notes the instant by the server's clock, and drops the table.
func (d *demo) disaster(ctx context.Context, w *workload, admin *pgx.Conn, begin time.Time) error {
	if err := pause(ctx, time.Duration(d.flags.seconds)*time.Second); err != nil {
		return err
	}
	if err := admin.QueryRow(ctx, "select clock_timestamp()").Scan(&w.instant); err != nil {
		return err
	}
	if _, err := admin.Exec(ctx, "drop table orders"); err != nil {
		return err
	}
	w.dropped.Store(true)
	w.mu.Lock()
	orders := 0
	for _, rows := range w.acked {
		orders += len(rows)
	}
	w.mu.Unlock()
	d.step(begin, "%d clients wrote %d orders through %d server connections (%.0f commits/s)", d.flags.clients, orders, demoPoolSize,
		float64(orders)/time.Since(begin).Seconds())
	d.step(begin, "DROP TABLE orders, just after %s", w.instant.UTC().Format("15:04:05.000000Z07:00"))
	return pause(ctx, 3*time.Second)
}

func pause(ctx context.Context, span time.Duration) error {
	timer := time.NewTimer(span)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// writer is one client connection.
func (d *demo) writer(ctx context.Context, w *workload, client int) error {
	conn, err := d.connect(ctx, d.ports.pooler)
	if err != nil {
		return fmt.Errorf("client %d: %w", client, err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for number := 0; !w.stop.Load() && ctx.Err() == nil; number++ {
		if w.dropped.Load() {
			if _, err := conn.Exec(ctx, "insert into payments values ($1, $2)", client, number); err != nil {
				return fmt.Errorf("client %d: %w", client, err)
			}
			w.payments.Add(1)
			continue
		}
		var xid uint64
		err := conn.QueryRow(ctx, "insert into orders values ($1, $2, 'something') returning pg_current_xact_id()::text::bigint", client, number).Scan(&xid)
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) && (pgErr.Code == "42P01" || pgErr.Code == "XX000") {
			w.dropped.Store(true) // the table has gone under our feet: this order was not written
			continue
		}
		if err != nil {
			return fmt.Errorf("client %d: %w", client, err)
		}
		w.mu.Lock()
		w.acked[xid] = append(w.acked[xid], order{client, number})
		w.mu.Unlock()
	}
	return nil
}

// expected asks the server when each acknowledged transaction was committed, and keeps the orders of those that were by the instant.
func (d *demo) expected(ctx context.Context, w *workload) (map[order]bool, error) {
	conn, err := d.connect(ctx, d.ports.postgres)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(ctx) }()
	xids := make([]int64, 0, len(w.acked))
	for xid := range w.acked {
		xids = append(xids, int64(xid))
	}
	rows, err := conn.Query(ctx, "select x from unnest($1::bigint[]) x where pg_xact_commit_timestamp(x::text::xid) <= $2", xids, w.instant)
	if err != nil {
		return nil, err
	}
	committed, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, err
	}
	want := map[order]bool{}
	for _, xid := range committed {
		for _, row := range w.acked[uint64(xid)] {
			want[row] = true
		}
	}
	return want, nil
}

// recover does what the operator would do, and compares.
func (d *demo) recover(ctx context.Context, w *workload) error {
	want, err := d.expected(ctx, w)
	if err != nil {
		return err
	}
	to := w.instant.UTC().Format("2006-01-02 15:04:05.000000Z07:00")
	into := filepath.Join(d.dir, "restored")
	begin := time.Now()
	plan, err := d.pitr(ctx, "restore", "--to", to, "--into", into, "--dry-run")
	if err != nil {
		return err
	}
	d.step(begin, "pitr restore --to %q --dry-run", to)
	d.quote(plan)
	begin = time.Now()
	d.onStop(func(ctx context.Context) error {
		return d.install.Attach(into, d.ports.restored).Stop(ctx, postmaster.Immediate)
	})
	done, err := d.pitr(ctx, "restore", "--to", to, "--into", into, "--start", "--port", fmt.Sprint(d.ports.restored))
	if err != nil {
		return err
	}
	d.step(begin, "pitr restore --to %q --into … --start", to)
	_, result, _ := strings.Cut(done, "\nrestored ") // the plan comes first, as before
	d.quote("restored " + result)
	return d.compare(ctx, want)
}

func (d *demo) quote(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintf(d.out, "         | %s\n", strings.ReplaceAll(strings.TrimRight(line, "\n"), d.dir, "…"))
	}
}

func (d *demo) compare(ctx context.Context, want map[order]bool) error {
	begin := time.Now()
	conn, err := d.connect(ctx, d.ports.restored)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	rows, err := conn.Query(ctx, "select client, number from orders")
	if err != nil {
		return err
	}
	got, err := pgx.CollectRows(rows, pgx.RowToStructByPos[order])
	if err != nil {
		return err
	}
	extra, missing := 0, len(want)
	for _, row := range got {
		if want[row] {
			missing--
		} else {
			extra++
		}
	}
	d.step(begin, "compared: %d orders were committed by the instant, %d came back: %d missing, %d extra", len(want), len(got), missing, extra)
	if missing != 0 || extra != 0 || len(want) == 0 {
		return fmt.Errorf("demo: %d of %d orders are missing, %d are extra", missing, len(want), extra)
	}
	fmt.Fprintf(d.out, "         Everything that was acknowledged before the instant is back, nothing that came after it.\n")
	return nil
}
