package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
)

// TestACutoverLosesNoConnectionAndCanBeTakenBack lets clients work through the pooler while it goes over to a restored server and back.
func TestACutoverLosesNoConnectionAndCanBeTakenBack(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	h := newHarness(t, "")
	h.poolerSettings("admin_users: [operator]")
	h.start(ctx, "archiver")
	h.start(ctx, "pooler")
	h.psql(ctx, "create table t (i int); insert into t values (1)")
	h.mustPitr(ctx, "backup")
	h.archived(ctx)
	into, port := filepath.Join(h.dir, "restored"), postmastertest.FreePort(t)
	h.mustPitr(ctx, "restore", "--to", "latest", "--into", into, "--start", "--port", strconv.Itoa(port))
	copied := h.install.Attach(into, port)
	t.Cleanup(func() {
		if err := copied.Stop(context.Background(), postmaster.Immediate); err != nil {
			t.Error(err)
		}
	})

	stop := make(chan struct{})
	var clients sync.WaitGroup
	var transactions [2]atomic.Int64 // on either server
	for range 8 {
		clients.Go(func() {
			if err := worker(ctx, h, port, &transactions, stop); err != nil {
				t.Error(err)
			}
		})
	}
	listener, err := h.connect(ctx, h.pooler)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close(ctx) }()
	if _, err := listener.Exec(ctx, "listen news"); err != nil {
		t.Fatal(err)
	}
	moves := func(server int) {
		t.Helper()
		before := transactions[server].Load()
		h.eventually(ctx, "clients work on the other server", func() bool { return transactions[server].Load() > before+100 })
		other := transactions[1-server].Load()
		h.eventually(ctx, "more of them do", func() bool { return transactions[server].Load() > before+200 })
		if now := transactions[1-server].Load(); now != other {
			t.Errorf("%d transactions went to the server that was left", now-other)
		}
	}
	moves(0)
	origin, copy := fmt.Sprintf("127.0.0.1:%d", h.server.Port), fmt.Sprintf("127.0.0.1:%d", port)
	for _, to := range []struct {
		address, from string
		server        int
		on            *postmaster.Server
	}{{copy, origin, 1, copied}, {origin, copy, 0, h.server}} {
		out := h.mustPitr(ctx, "cutover", "--database", "postgres", "--to", to.address)
		if !strings.Contains(out, "moved      from "+to.from+" to "+to.address) || !strings.Contains(out, "resumed ") {
			t.Errorf("cutover to %s:\n%s", to.address, out)
		}
		moves(to.server)
		// Who listens hears the other server now.
		heard := make(chan error, 1)
		go func() {
			limited, done := context.WithTimeout(ctx, 20*time.Second)
			defer done()
			_, err := listener.WaitForNotification(limited)
			heard <- err
		}()
		ticker := time.NewTicker(50 * time.Millisecond)
		for waiting := true; waiting; {
			select {
			case err := <-heard:
				if err != nil {
					t.Errorf("no news from %s: %v", to.address, err)
				}
				waiting = false
			case <-ticker.C:
				if _, err := to.on.Query(ctx, "postgres", "postgres", "notify news"); err != nil {
					t.Fatal(err)
				}
			}
		}
		ticker.Stop()
	}
	close(stop)
	clients.Wait()

	h.cutoverThatCannotBe(ctx, copy)
}

// worker runs transactions, each of which must see one server, until stop.
func worker(ctx context.Context, h *harness, second int, transactions *[2]atomic.Int64, stop <-chan struct{}) error {
	conn, err := h.connect(ctx, h.pooler)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		var first, again int
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if err := tx.QueryRow(ctx, "select current_setting('port')::int from t where i = $1", 1).Scan(&first); err != nil {
				return err
			}
			return tx.QueryRow(ctx, "select current_setting('port')::int").Scan(&again)
		})
		if err != nil {
			return err
		}
		if first != again {
			return fmt.Errorf("a transaction was on %d and on %d", first, again)
		}
		server := 0
		if first == second {
			server = 1
		}
		transactions[server].Add(1)
	}
}

// cutoverThatCannotBe tries what must leave everything as it is.
func (h *harness) cutoverThatCannotBe(ctx context.Context, to string) {
	h.t.Helper()
	busy, err := h.connect(ctx, h.pooler)
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = busy.Close(ctx) }()
	tx, err := busy.Begin(ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, "insert into t values (2)"); err != nil {
		h.t.Fatal(err)
	}
	for name, arguments := range map[string][]string{
		"did not come to their end within 1s":          {"--to", to, "--wait", "1s"},
		"the other server":                             {"--to", fmt.Sprintf("127.0.0.1:%d", postmastertest.FreePort(h.t))},
		"it is no host:port":                           {"--to", "nowhere"},
		"may not use the console (pooler.admin_users)": {"--to", to, "--console", fmt.Sprintf("host=127.0.0.1 port=%d user=postgres", h.pooler)},
	} {
		if out, err := h.pitr(ctx, append([]string{"cutover", "--database", "postgres"}, arguments...)...); err == nil || !strings.Contains(err.Error(), name) {
			h.t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	if err := tx.Commit(ctx); err != nil {
		h.t.Errorf("the transaction that was open: %v", err)
	}
	var port int
	if err := busy.QueryRow(ctx, "select current_setting('port')::int").Scan(&port); err != nil || port != h.server.Port {
		h.t.Errorf("afterwards: %d, %v", port, err)
	}
}

// poolerSettings adds settings to those of the pooler.
func (h *harness) poolerSettings(lines string) {
	h.t.Helper()
	h.replace("  auth: {type: trust}\n", "  auth: {type: trust}\n  "+lines+"\n")
}
