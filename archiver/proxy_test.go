package archiver

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pitr/internal/postmaster"
)

// proxy passes connections on to Postgres and shows every message of the server to a function, which may change it.
func (b *bench) proxy(see func(kind byte, body []byte)) (dsn string) {
	b.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	target := fmt.Sprintf("127.0.0.1:%d", b.server.Port)
	var connections sync.WaitGroup
	connections.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			connections.Go(func() { relay(client, target, see) })
		}
	})
	b.t.Cleanup(func() {
		_ = listener.Close()
		connections.Wait()
	})
	return fmt.Sprintf("postgres://postgres@%s/postgres?sslmode=disable", listener.Addr())
}

func relay(client net.Conn, target string, see func(kind byte, body []byte)) {
	defer client.Close()
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(server, client)
		_ = server.Close()
	}()
	header := make([]byte, 5)
	for {
		if _, err := io.ReadFull(server, header); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(header[1:])-4)
		if _, err := io.ReadFull(server, body); err != nil {
			return
		}
		see(header[0], body)
		if _, err := client.Write(append(header[:5:5], body...)); err != nil {
			return
		}
	}
}

func TestWALThatIsDamagedOnItsWayIsNotStored(t *testing.T) {
	b := newBench(t, 1, "wal_keep_size=1GB")
	var armed atomic.Bool
	var place atomic.Int64
	opt := b.options()
	opt.DSN = b.proxy(func(kind byte, body []byte) {
		// Messages below the largest size end with a record, so that what is damaged is seen before any of it is stored.
		if kind == 'd' && body[0] == 'w' && len(body) > 4000 && len(body) < 100_000 && armed.CompareAndSwap(true, false) {
			body[500+int(place.Add(613))%(len(body)-1000)] ^= 4
		}
	})
	a := b.run(opt)
	b.query("create table t (i int, x text)")
	until(t, "damage is noticed five times", func() bool {
		armed.Store(true)
		b.query("insert into t select i, repeat('x', 100) from generate_series(1, 200) i")
		return a.Stats().Corrupt >= 5
	})
	armed.Store(false)
	a.archived(b.written())
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes are equal", b.compareWAL(1))
	refused, err := b.repo.Refused(t.Context(), 1)
	if err != nil || len(refused) == 0 || len(refused) > 5 {
		t.Fatalf("%v was kept aside, %v", refused, err)
	}
	content, err := b.repo.ReadRefused(t.Context(), 1, refused[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := b.compareAt(1, refused[0], content); err == nil {
		t.Error("what was kept aside is what the server has")
	}
}

func TestServerStopsWithinABoundAlthoughTheStoreIsDown(t *testing.T) {
	b := newBench(t, 1, "wal_keep_size=1GB")
	var asked atomic.Int64
	opt := b.options()
	opt.ShutdownGrace = time.Second
	opt.DSN = b.proxy(func(kind byte, body []byte) {
		if kind == 'd' && body[0] == 'k' && body[17] == 1 {
			asked.Add(1)
		}
	})
	a := b.run(opt)
	a.archived(b.written())
	b.store.onPut(func(context.Context, string, []byte, func() error) error { return fmt.Errorf("injected: 503 SlowDown") })
	b.query("insert into flushed values (2)")
	until(t, "the store is known to be down", func() bool { return a.Stats().StoreDown })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begin := time.Now()
	if err := b.server.Stop(ctx, postmaster.Fast); err != nil {
		t.Fatalf("the archiver keeps Postgres from stopping: %v; it was asked for a reply %d times", err, asked.Load())
	}
	t.Logf("stopped in %s, asked for a reply %d times", time.Since(begin), asked.Load())
	if n := asked.Load(); n > 100 {
		t.Errorf("server and archiver have asked and answered %d times: a busy loop", n)
	}
	// Nothing is lost: the slot has kept it.
	b.store.onPut(nil)
	b.restart(ctx)
	a.archived(b.written())
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	b.compareWAL(1)
}

func TestServerStopsWithinABoundAlthoughTheBufferIsFull(t *testing.T) {
	b := newBench(t, 1, "wal_keep_size=1GB")
	opt := b.options()
	opt.ShutdownGrace, opt.PartSizeMax, opt.BufferMax = time.Second, 64<<10, 256<<10
	a := b.run(opt)
	a.archived(b.written())
	b.store.onPut(func(context.Context, string, []byte, func() error) error { return fmt.Errorf("injected: 503 SlowDown") })
	b.query("create table much (x text); insert into much select repeat(md5(i::text), 30) from generate_series(1, 3000) i")
	until(t, "the buffer is full", func() bool { return a.Stats().BufferFull > 0 })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begin := time.Now()
	if err := b.server.Stop(ctx, postmaster.Fast); err != nil {
		t.Fatalf("the archiver keeps Postgres from stopping: %v", err)
	}
	t.Logf("stopped in %s", time.Since(begin))
	b.store.onPut(nil)
	b.restart(ctx)
	a.archived(b.written())
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	b.compareWAL(1)
}
