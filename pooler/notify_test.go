package pooler

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// listener is a client that notes what it is notified of.
type listener struct {
	*pgconn.PgConn
	heard []string
}

func newListener(t *testing.T, r *running) *listener {
	t.Helper()
	l := &listener{}
	cfg, err := pgconn.ParseConfig(r.dsn(""))
	if err != nil {
		t.Fatal(err)
	}
	cfg.OnNotification = func(_ *pgconn.PgConn, n *pgconn.Notification) { l.heard = append(l.heard, n.Channel+"="+n.Payload) }
	if l.PgConn, err = pgconn.ConnectConfig(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close(context.Background()) })
	return l
}

// hears waits until so many notifications have come, and none more for a moment.
func (l *listener) hears(t *testing.T, n int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for len(l.heard) < n {
		if err := l.WaitForNotification(ctx); err != nil {
			t.Fatalf("%v; heard %v", err, l.heard)
		}
	}
	heard := l.heard
	l.heard = nil
	return heard
}

func TestNotificationsComeInOrderToThoseWhoListen(t *testing.T) {
	pg := server(t)
	r := start(t, pg, onePerPool)
	one, both, none := newListener(t, r), newListener(t, r), newListener(t, r)
	mustQuery(t, one.PgConn, "listen a")
	mustQuery(t, both.PgConn, `listen a; listen "B c"`)
	mustQuery(t, none.PgConn, "listen a")
	mustQuery(t, none.PgConn, "unlisten *")
	sender := connect(t, r.dsn(""))
	var wantOne, wantBoth []string
	for n := range 200 {
		mustQuery(t, sender, fmt.Sprintf(`notify a, '%d'; notify "B c", '%d'`, n, n))
		wantOne = append(wantOne, "a="+strconv.Itoa(n))
		wantBoth = append(wantBoth, "a="+strconv.Itoa(n), "B c="+strconv.Itoa(n))
	}
	if got := one.hears(t, len(wantOne)); fmt.Sprint(got) != fmt.Sprint(wantOne) {
		t.Errorf("one heard %v", got)
	}
	if got := both.hears(t, len(wantBoth)); fmt.Sprint(got) != fmt.Sprint(wantBoth) {
		t.Errorf("both heard %v", got)
	}
	if mustQuery(t, none.PgConn, "select 1"); len(none.heard) > 0 {
		t.Errorf("one that listens no more heard %v", none.heard)
	}
	mustQuery(t, one.PgConn, "begin; listen late; commit")
	eventually(t, "the channel is listened to", func() bool {
		mustQuery(t, sender, "notify late")
		mustQuery(t, one.PgConn, "select 1")
		return len(one.heard) > 0
	})
	if st := r.Stats(); st.ClientsActive != 0 || st.Pools[0].Active+st.Pools[0].Idle+st.Pools[0].Cleaning != 1 {
		t.Errorf("somebody holds a server: %+v", st)
	}
}

func TestListeningConnectionComesBack(t *testing.T) {
	pg := server(t)
	r := start(t, pg, nil)
	l := newListener(t, r)
	mustQuery(t, l.PgConn, "listen again")
	admin := connect(t, pg.dsn(""))
	if n := mustQuery(t, admin, "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'pitr listen'"); n != "1" {
		t.Fatalf("%s listening connections", n)
	}
	eventually(t, "somebody listens again", func() bool {
		mustQuery(t, admin, "notify again, 'x'")
		mustQuery(t, l.PgConn, "select 1")
		return len(l.heard) > 0
	})
	mustQuery(t, l.PgConn, "unlisten again")
	eventually(t, "the connection is closed when nobody needs it", func() bool {
		return mustQuery(t, admin, "select count(*) from pg_stat_activity where application_name = 'pitr listen'") == "0"
	})
}

func TestListenIsRefusedOnlyWhereItCannotBeHad(t *testing.T) {
	pg := server(t)
	r := start(t, pg, inMode("session"))
	l := newListener(t, r)
	mustQuery(t, l.PgConn, "listen own")
	mustQuery(t, l.PgConn, "notify own, 'mine'")
	if got := l.hears(t, 1); got[0] != "own=mine" {
		t.Errorf("heard %v", got)
	}
}
