package pooler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/config"
	"pitr/internal/pgwire"
	"pitr/internal/postmaster"
)

// peering starts poolers that know of each other, with ids of one and of two bytes; the last is reached over a Unix socket.
func peering(t *testing.T, pg *postgres, more map[string]config.Peer) map[int]*running {
	t.Helper()
	ids := []int{1, 300, 16383}
	ports := map[int]int{}
	for _, id := range ids {
		port, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		ports[id] = port
	}
	dir, err := os.MkdirTemp("/tmp", "pitr-peers-")
	if err == nil {
		err = os.Chmod(dir, 0o755) // PgBouncer runs as another user
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	peers := map[string]config.Peer{
		"1":     {Host: "127.0.0.1", Port: ports[1]},
		"300":   {Host: "127.0.0.1", Port: ports[300], PoolSize: 1},
		"16383": {Host: dir, Port: ports[16383]},
	}
	for id, peer := range more {
		peers[id] = peer
	}
	poolers := map[int]*running{}
	for _, id := range ids {
		poolers[id] = start(t, pg, func(cfg *config.Config) {
			cfg.Pooler.Listen = []string{"127.0.0.1:" + strconv.Itoa(ports[id])}
			cfg.Pooler.PeerID, cfg.Pooler.Peers, cfg.Pooler.AdminUsers = id, peers, []string{"postgres"}
			if id == 16383 {
				cfg.Pooler.UnixSocketDir, cfg.Pooler.UnixSocketMode = dir, "0777"
			}
		})
	}
	return poolers
}

// sleeper is a client that waits in Postgres.
func sleeper(t *testing.T, pg *postgres, r *running, version uint32) *wire {
	t.Helper()
	w := dial(t, r)
	w.hello(version, nil)
	mark := fmt.Sprintf("select pg_sleep(100) /* %s %p */", t.Name(), w)
	w.send(&pgproto3.Query{String: mark})
	watch := connect(t, pg.dsn(""))
	eventually(t, "the statement runs", func() bool {
		return mustQuery(t, watch, "select count(*) from pg_stat_activity where state = 'active' and query = '"+mark+"'") == "1"
	})
	return w
}

// cancelAt sends a client's cancel request to a pooler, and waits until that has dealt with it.
func (w *wire) cancelAt(r *running, process uint32, secret []byte) {
	w.t.Helper()
	request := dial(w.t, r)
	request.send(&pgproto3.CancelRequest{ProcessID: process, SecretKey: secret})
	if got := request.rest(); got != "" {
		w.t.Errorf("a cancel request got %q", got)
	}
}

// TestCancelRequestsReachTheRightPeer sends each client's request to each pooler.
func TestCancelRequestsReachTheRightPeer(t *testing.T) {
	pg := server(t)
	poolers := peering(t, pg, nil)
	for id, home := range poolers {
		for _, entrance := range poolers {
			for _, version := range []uint32{pgwire.Version30, pgwire.Version32} {
				w := sleeper(t, pg, home, version)
				if got := int(w.process>>16&0xff | w.process>>8&0xff<<8); got != id {
					t.Fatalf("the key of a client of peer %d names peer %d", id, got)
				}
				wrong := bytes.Clone(w.secret)
				wrong[0] ^= 1
				w.cancelAt(entrance, w.process, wrong)
				w.cancelAt(entrance, w.process^1, w.secret)
				w.cancelAt(entrance, w.process, w.secret[:3])
				w.cancelAt(entrance, w.process, w.secret)
				if got := w.until('Z'); !strings.Contains(got, "57014") {
					t.Errorf("the statement that was canceled got %s", got)
				}
				if home != entrance {
					w = sleeper(t, pg, home, version)
					often := bytes.Clone(w.secret)
					often[hopsByte] &^= hopsMask
					w.cancelAt(entrance, w.process, often) // it was handed on three times
					w.cancelAt(home, w.process, often)     // and that was the last time
					if got := w.until('Z'); !strings.Contains(got, "57014") {
						t.Errorf("the statement that was canceled got %s", got)
					}
				}
			}
		}
	}
	conn := connect(t, poolers[1].dsn("dbname=pgbouncer"))
	if got := mustQuery(t, conn, "show peers"); got != "16383,300" {
		t.Errorf("show peers: %s", got)
	}
	if got := mustQuery(t, conn, "show peer_pools"); got != "16383,300" {
		t.Errorf("show peer_pools: %s", got)
	}
	for id, r := range poolers {
		r.mu.Lock()
		n := 0
		for _, ids := range r.alike {
			n += len(ids)
		}
		if n > len(r.clients)+len(r.consoles) {
			t.Errorf("pooler %d remembers %d keys of %d clients", id, n, len(r.clients))
		}
		r.mu.Unlock()
	}
}

// TestLoopsOfPeersEnd lets two addresses claim each to be the other's peer: a request for nobody goes round three times.
func TestLoopsOfPeersEnd(t *testing.T) {
	pg := server(t)
	here, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	lost := map[string]config.Peer{"77": {Host: "127.0.0.1", Port: here.Addr().(*net.TCPAddr).Port}}
	r := start(t, pg, func(cfg *config.Config) { cfg.Pooler.PeerID, cfg.Pooler.Peers = 1, lost })
	requests := make(chan []byte, 10)
	go func() { // hands everything back to where it came from
		for {
			conn, err := here.Accept()
			if err != nil {
				close(requests)
				return
			}
			packet := make([]byte, 16)
			n, _ := conn.Read(packet)
			requests <- packet[:n]
			back, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(r.port))
			if err == nil {
				_, _ = back.Write(packet[:n])
				go func() {
					_, _ = back.Read(packet[:1])
					back.Close()
					conn.Close()
				}()
			}
		}
	}()
	w := dial(t, r)
	w.cancelAt(r, 77<<16, []byte{0, 0, 0, 3})
	here.Close()
	seen := 0
	for packet := range requests {
		if hops := packet[15] & 3; int(hops) != 2-seen {
			t.Errorf("request %d may be handed on %d times", seen, hops)
		}
		seen++
	}
	if seen != 3 {
		t.Errorf("a request was handed on %d times", seen)
	}
}

// TestCancelRequestsGoToAndFromPgBouncer has PgBouncer for a peer.
func TestCancelRequestsGoToAndFromPgBouncer(t *testing.T) {
	pg := server(t)
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	poolers := peering(t, pg, map[string]config.Peer{"5": {Host: "127.0.0.1", Port: port}})
	startPgBouncer(t, pg, port, poolers)
	bouncer := &running{port: port}
	eventually(t, "PgBouncer serves", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		conn, err := pgconn.Connect(ctx, bouncer.dsn(""))
		if err == nil {
			_ = conn.Close(ctx)
		}
		return err == nil
	})
	for _, way := range []struct{ home, entrance *running }{{bouncer, poolers[300]}, {bouncer, poolers[16383]}, {poolers[300], bouncer}, {poolers[16383], bouncer}} {
		w := sleeper(t, pg, way.home, pgwire.Version30)
		w.cancelAt(way.entrance, w.process, w.secret)
		if got := w.until('Z'); !strings.Contains(got, "57014") {
			t.Errorf("the statement that was canceled got %s", got)
		}
	}
}

// startPgBouncer runs PgBouncer with the id 5 beside the others.
func startPgBouncer(t *testing.T, pg *postgres, port int, others map[int]*running) {
	t.Helper()
	program, err := exec.Command("../scripts/peers.sh", "pgbouncer").Output() // where it is; unpacked first if need be
	if err != nil {
		t.Fatal(err)
	}
	install, err := postmaster.Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "pitr-bouncer-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	ini := fmt.Sprintf("[databases]\npostgres = host=127.0.0.1 port=%d\n[peers]\n", pg.port)
	for id, r := range others {
		host := "127.0.0.1"
		if r.cfg.UnixSocketDir != "" {
			host = r.cfg.UnixSocketDir
		}
		ini += fmt.Sprintf("%d = host=%s port=%d\n", id, host, r.port)
	}
	ini += fmt.Sprintf("[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nauth_type = trust\nauth_file = %s/users\npeer_id = 5\n", port, dir)
	err = errors.Join(os.WriteFile(dir+"/ini", []byte(ini), 0o644), os.WriteFile(dir+"/users", []byte("\"postgres\" \"\"\n"), 0o644), install.Own(dir))
	if err != nil {
		t.Fatal(err)
	}
	cmd := install.Command(context.Background(), strings.TrimSpace(string(program)), dir+"/ini")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
}
