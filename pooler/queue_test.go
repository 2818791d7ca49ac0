package pooler

import (
	"strconv"
	"testing"

	"pitr/config"
)

func TestClientsAreServedFirstComeFirstServed(t *testing.T) {
	pg := server(t)
	r := start(t, pg, onePerPool)
	holder := connect(t, r.dsn(""))
	mustQuery(t, holder, "drop sequence if exists turns; create sequence turns minvalue 0")
	mustQuery(t, holder, "begin; select 1")
	const waiters = 5
	var turns [waiters]string
	failures := make(chan error, waiters)
	for n := range waiters {
		conn := connect(t, r.dsn(""))
		go func() {
			var err error
			turns[n], err = query(conn, "select nextval('turns')") // Postgres says when it was this one's turn
			failures <- err
		}()
		eventually(t, "the client waits", func() bool { return r.Stats().ClientsWaiting == n+1 })
	}
	mustQuery(t, holder, "commit")
	for range waiters {
		if err := <-failures; err != nil {
			t.Fatal(err)
		}
	}
	for n, turn := range turns {
		if turn != strconv.Itoa(n) {
			t.Errorf("client %d was served as number %s", n, turn)
		}
	}
	st := r.Stats().Pools[0]
	var waits uint64
	for _, bucket := range st.Waits {
		waits += bucket
	}
	if waits < waiters || st.Active+st.Idle != 1 || st.Transactions < waiters || st.WaitTotal == 0 {
		t.Errorf("the statistics say %+v", st)
	}
}

func TestServersAreUsedLastInFirstOut(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) { cfg.Pooler.DefaultPoolSize = 2 })
	first, second := connect(t, r.dsn("")), connect(t, r.dsn(""))
	mustQuery(t, first, "begin; select 1")
	mustQuery(t, second, "begin; select 1")
	mustQuery(t, first, "commit")
	last := mustQuery(t, second, "select pg_backend_pid()")
	eventually(t, "the first server is idle", func() bool { return r.Stats().Pools[0].Idle == 1 })
	mustQuery(t, second, "commit")
	for range 5 {
		eventually(t, "both servers are idle", func() bool { return r.Stats().Pools[0].Idle == 2 })
		if got := mustQuery(t, first, "select pg_backend_pid()"); got != last {
			t.Errorf("server %s was used, not %s", got, last)
		}
	}
}

func TestClientThatVanishesLeavesTheQueue(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) { onePerPool(cfg); cfg.Pooler.QueryWaitTimeout = 0 })
	holder, gone, patient := connect(t, r.dsn("")), raw(t, r), connect(t, r.dsn(""))
	mustQuery(t, holder, "create table if not exists queued (x text); truncate queued")
	mustQuery(t, holder, "begin; select 1")
	gone.send(&pgQuery{String: "insert into queued values ('gone')"})
	eventually(t, "the client waits", func() bool { return r.Stats().ClientsWaiting == 1 })
	failed := make(chan error, 1)
	go func() { _, err := query(patient, "insert into queued values ('patient')"); failed <- err }()
	eventually(t, "both wait", func() bool { return r.Stats().ClientsWaiting == 2 })
	gone.conn.Close()
	eventually(t, "the one who has gone waits no longer", func() bool { return r.Stats().ClientsWaiting == 1 })
	eventually(t, "it is no client any more", func() bool { return r.Stats().Clients == 2 })
	mustQuery(t, holder, "commit")
	if err := <-failed; err != nil {
		t.Error(err)
	}
	if got := mustQuery(t, holder, "select string_agg(x, ',') from queued"); got != "patient" {
		t.Errorf("the table has %q", got)
	}
}
