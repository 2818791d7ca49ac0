package loop

import (
	"io"
	"testing"
)

// TestSocketThatWasTakenIsLeftAlone hands a socket to another loop in the very batch in which much was written to it, so that the list of
// those who have something due still has it.
func TestSocketThatWasTakenIsLeftAlone(t *testing.T) {
	from, to := started(t, Config{}), started(t, Config{})
	k, _ := attachKeeper(t, from, Options{First: true})
	taken, later, over := make(chan struct{}), make(chan struct{}), make(chan struct{})
	from.Post(Func(func() {
		k.conn.Write(make([]byte, directMin-1))
		k.conn.Write(make([]byte, directMin-1)) // is sent at once, all of it
		to.Post(Func(func() {
			if err := to.Take(k.conn); err != nil {
				t.Error(err)
			}
			k.conn.Write([]byte("the new loop's"))
			close(taken)
			<-later
			if k.conn.Pending() == 0 {
				t.Error("the old loop has sent what is the new one's to send")
			}
			close(over)
		}))
		<-taken
	}))
	for range 10 { // more than one batch
		on(t, from, func() {})
	}
	close(later)
	<-over
}

// TestWhatIsDueGoesWithTheSocket hands a socket to another loop in the very batch in which something little was written to it: a Flush, which nobody
// answers.
func TestWhatIsDueGoesWithTheSocket(t *testing.T) {
	from, to := started(t, Config{}), started(t, Config{})
	k, near := attachKeeper(t, from, Options{First: true})
	taken := make(chan struct{})
	from.Post(Func(func() {
		k.conn.Write([]byte("old,"))
		to.Post(Func(func() {
			defer close(taken)
			if err := to.Take(k.conn); err != nil {
				t.Error(err)
			}
			k.conn.Write([]byte("new"))
		}))
		<-taken
	}))
	got := make([]byte, len("old,new"))
	if _, err := io.ReadFull(near, got); err != nil || string(got) != "old,new" {
		t.Errorf("%q arrived, %v", got, err)
	}
}

// TestSocketWithSomethingUnreadIsNotTaken keeps what belongs to who had it before from who would have it next.
func TestSocketWithSomethingUnreadIsNotTaken(t *testing.T) {
	from, to := started(t, Config{}), started(t, Config{})
	near, far := pair(t)
	conn, err := NewConn(NewStream(far), Options{First: true, Early: []byte("unread")})
	if err != nil {
		t.Fatal(err)
	}
	k := &keeper{conn: conn}
	conn.Pause()
	if err := from.Add(conn, k); err != nil {
		t.Fatal(err)
	}
	on(t, to, func() {
		if err := to.Take(conn); err == nil {
			t.Error("it was taken")
		}
	})
	on(t, from, conn.Close)
	_ = near.Close() // the other end has gone
}
