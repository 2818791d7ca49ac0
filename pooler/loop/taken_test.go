package loop

import "testing"

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
