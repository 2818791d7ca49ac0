package pooler

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pitr/config"
	"pitr/pooler/takeover"
)

// upgradable returns settings of poolers that can take each other's place.
func upgradable(t *testing.T, more func(*config.Config)) (dir string, change func(*config.Config)) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pitr-up-") // short enough for a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir, func(cfg *config.Config) {
		cfg.Pooler.TakeoverSocket, cfg.Pooler.TakeoverTimeout = filepath.Join(dir, "up"), config.Duration(time.Hour)
		cfg.Pooler.UnixSocketDir, cfg.Pooler.UnixSocketMode = dir, "0777"
		if more != nil {
			more(cfg)
		}
	}
}

// succeeding waits until a pooler's place is taken.
func (r *running) succeeding(t *testing.T) {
	t.Helper()
	eventually(t, "the place is taken", func() bool { return r.upgrade.successor.Load() != nil })
}

// TestPoolerGoesOnWhenItsSuccessorDies asks for the place and goes away before it is taken, several times.
func TestPoolerGoesOnWhenItsSuccessorDies(t *testing.T) {
	pg := server(t)
	dir, change := upgradable(t, nil)
	r := start(t, pg, change)
	ask := func() (*takeover.Link, error) {
		link, sockets, err := takeover.Ask(filepath.Join(dir, "up"))
		if err == nil && len(sockets) != 3 { // TCP, Unix, takeover
			t.Errorf("%d sockets were handed over: %v", len(sockets), sockets)
		}
		for _, socket := range sockets {
			if err := socket.Close(); err != nil {
				t.Error(err)
			}
		}
		return link, err
	}
	for range 3 {
		var link *takeover.Link
		eventually(t, "the place can be asked for", func() bool {
			var err error
			link, err = ask()
			return err == nil
		})
		if _, err := ask(); err == nil || !strings.Contains(err.Error(), "another takeover is under way") {
			t.Errorf("the second who asked got %v", err)
		}
		if err := link.Close(); err != nil {
			t.Error(err)
		}
	}
	stranger, err := net.Dial("unixpacket", filepath.Join(dir, "up"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.Write([]byte("takeover 2")); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 100)
	n, err := stranger.Read(answer)
	if err != nil || !strings.HasPrefix(string(answer[:n]), "refused ") {
		t.Errorf("a stranger got %q, %v", answer[:n], err)
	}
	stranger.Close()
	for _, host := range []string{"127.0.0.1", dir} {
		if got := mustQuery(t, connect(t, r.dsn("host="+host)), "select 1"); got != "1" {
			t.Errorf("a client got %s", got)
		}
	}
	r.stop()
	if _, err := os.Lstat(filepath.Join(dir, "up")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is there still: %v", err)
	}
}

// TestAddressesOfASuccessor takes over from a pooler that has others.
func TestAddressesOfASuccessor(t *testing.T) {
	pg := server(t)
	old, change := (*running)(nil), (func(*config.Config))(nil)
	dir, change := upgradable(t, nil)
	old = start(t, pg, func(cfg *config.Config) {
		change(cfg)
		cfg.Pooler.Listen = []string{"127.0.0.1:0", "127.0.0.2:0"}
	})
	unwanted := old.listeners[1].Addr().String()
	r := start(t, pg, func(cfg *config.Config) {
		change(cfg)
		cfg.Pooler.Listen = []string{fmt.Sprintf("localhost:%d", old.port), "127.0.0.3:0"} // the first in other words
	})
	old.succeeding(t)
	if r.port != old.port {
		t.Errorf("port %d became %d", old.port, r.port)
	}
	opened := r.listeners[1].Addr().(*net.TCPAddr)
	for _, dsn := range []string{r.dsn(""), r.dsn("host=" + dir), r.dsn(fmt.Sprintf("host=127.0.0.3 port=%d", opened.Port))} {
		mustQuery(t, connect(t, dsn), "select 1")
	}
	eventually(t, "the address that is not wanted is closed", func() bool {
		conn, err := net.Dial("tcp", unwanted)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
}

// TestTakeoverTimeoutEndsTheClientsOfTheOldPooler lets idle clients be told to go, and a transaction go on.
func TestTakeoverTimeoutEndsTheClientsOfTheOldPooler(t *testing.T) {
	pg := server(t)
	_, change := upgradable(t, func(cfg *config.Config) {
		cfg.Pooler.TakeoverTimeout, cfg.Pooler.DrainTimeout = config.Duration(time.Millisecond), config.Duration(time.Hour)
	})
	old := start(t, pg, change)
	idle, busy := connect(t, old.dsn("")), connect(t, old.dsn(""))
	mustQuery(t, idle, "select 1")
	mustQuery(t, busy, "begin; select 1")
	start(t, pg, change)
	old.succeeding(t)
	eventually(t, "the idle client is told to go", func() bool {
		_, err := query(idle, "select 1")
		var failure *pgconn.PgError
		return err != nil && (!errors.As(err, &failure) || failure.Code == "57P01")
	})
	mustQuery(t, busy, "select 1")
	if got := mustQuery(t, busy, "select 2; commit"); got != "2" {
		t.Errorf("the transaction got %s", got)
	}
	old.stop()
}

// TestCancelRequestsReachEveryPoolerOfATakeover has three poolers one behind the other, each with a client, and sends all cancel requests to the last.
func TestCancelRequestsReachEveryPoolerOfATakeover(t *testing.T) {
	pg := server(t)
	_, change := upgradable(t, nil)
	var poolers []*running
	var clients []*pgconn.PgConn
	for range 3 {
		r := start(t, pg, change)
		if n := len(poolers); n > 0 {
			poolers[n-1].succeeding(t)
		}
		poolers = append(poolers, r)
		clients = append(clients, connect(t, r.dsn("")))
	}
	last := poolers[2]
	for i, client := range clients {
		sleeping := make(chan error, 1)
		mark := fmt.Sprintf("select pg_sleep(100) /* of %s %d */", t.Name(), i)
		go func() {
			_, err := query(client, mark)
			sleeping <- err
		}()
		watch := connect(t, pg.dsn(""))
		eventually(t, "the statement runs", func() bool {
			return mustQuery(t, watch, "select count(*) from pg_stat_activity where state = 'active' and query = '"+mark+"'") == "1"
		})
		last.cancel(client.PID()+1, client.SecretKey()) // no one's
		wrong := append([]byte(nil), client.SecretKey()...)
		wrong[0] ^= 1
		last.cancel(client.PID(), wrong)
		select {
		case err := <-sleeping:
			t.Fatalf("client %d was hit by a wrong key: %v", i, err)
		default:
		}
		ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
		if err := client.CancelRequest(ctx); err != nil {
			t.Error(err)
		}
		stop()
		if err := <-sleeping; err == nil || !strings.Contains(err.Error(), "57014") {
			t.Errorf("client %d: %v", i, err)
		}
	}
	for i, r := range poolers[:2] { // they leave when their clients have, the second not before the first
		if err := clients[i].Close(context.Background()); err != nil {
			t.Error(err)
		}
		eventually(t, "a pooler without clients ends", func() bool { return poolers[i+1].upgrade.predecessor.Load() == nil })
		r.stop()
	}
}

// TestTakeoverSocketThatIsNoneIsLeftAlone names a file, and a directory that does not exist.
func TestTakeoverSocketThatIsNoneIsLeftAlone(t *testing.T) {
	pg := server(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{file: "is there and is no socket", "/nonexistent/up": "pooler.takeover_socket: listen"} {
		cfg := settings(pg)
		cfg.Pooler.TakeoverSocket = path
		p, err := New(cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Listen(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
		p.Close()
	}
	if content, err := os.ReadFile(file); err != nil || string(content) != "precious" {
		t.Errorf("the file is %q, %v", content, err)
	}
}

// TestPoolerThatEndsWhileItsPlaceIsAskedFor leaves the sockets to whoever has got them.
func TestPoolerThatEndsWhileItsPlaceIsAskedFor(t *testing.T) {
	pg := server(t)
	dir, change := upgradable(t, nil)
	old := start(t, pg, change)
	cfg := settings(pg)
	change(&cfg)
	p, err := New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	old.stop()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	r := &running{Pooler: p, port: old.port}
	for _, host := range []string{"127.0.0.1", dir} {
		client := connect(t, r.dsn("host="+host))
		if got := mustQuery(t, client, "select 1"); got != "1" {
			t.Errorf("a client got %s", got)
		}
		if err := client.Close(ctx); err != nil {
			t.Error(err)
		}
	}
	third := start(t, pg, change) // the socket for takeovers has come over, too
	if err := <-done; err != nil {
		t.Error(err)
	}
	cancel()
	mustQuery(t, connect(t, third.dsn("host="+dir)), "select 1")
}
