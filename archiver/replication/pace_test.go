package replication

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// connected is both ends of a connection.
func connected(t *testing.T, network, address string) (ours, theirs net.Conn) {
	t.Helper()
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if ours, err = net.Dial(network, listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if theirs, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

func paced(conn net.Conn, pause time.Duration) *pacedReader {
	r := newPacedReader(conn)
	r.begin(conn, func() time.Duration { return pause })
	return r
}

func TestPausesLoseNothingAndDelayNothingForLong(t *testing.T) {
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "s")} {
		t.Run(network, func(t *testing.T) {
			ours, theirs := connected(t, network, address)
			const pause = 20 * time.Millisecond
			r := paced(ours, pause)
			rng := rand.New(rand.NewPCG(1, 2))
			var sent []byte
			for range 2000 {
				n := 1 + rng.IntN(4000)
				if rng.IntN(200) == 0 {
					n = 2 * biteSize // far more than what the socket holds during a pause
				}
				for range n {
					sent = append(sent, byte(rng.Uint32()))
				}
			}
			go func() {
				defer theirs.Close()
				for at := 0; at < len(sent); {
					n, err := theirs.Write(sent[at:min(len(sent), at+1+rng.IntN(8000))])
					if err != nil {
						return
					}
					if at += n; rng.IntN(20) == 0 {
						<-time.After(time.Millisecond)
					}
				}
			}()
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d of %d bytes, equal: %v, error: %v", len(got), len(sent), bytes.Equal(got, sent), err)
			}
		})
	}
}

func TestArrivalIsNeverToldLaterThanItWas(t *testing.T) {
	ours, theirs := connected(t, "tcp", "127.0.0.1:0")
	r := paced(ours, 30*time.Millisecond)
	for i := range 20 {
		<-time.After(time.Duration(i%4) * 10 * time.Millisecond)
		done := make(chan time.Time, 1)
		go func() {
			<-time.After(5 * time.Millisecond)
			sent := time.Now()
			_, _ = theirs.Write([]byte("x"))
			done <- sent
		}()
		if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		// Between the write and the read lies what the machine takes to switch.
		if sent := <-done; r.arrived.After(sent.Add(20 * time.Millisecond)) {
			t.Errorf("sent %s after it is said to have arrived", sent.Sub(r.arrived))
		}
	}
}

func TestInterruptEndsAPause(t *testing.T) {
	ours, _ := connected(t, "tcp", "127.0.0.1:0")
	r := paced(ours, time.Hour)
	time.AfterFunc(20*time.Millisecond, r.interrupt)
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, ErrInterrupted) {
		t.Errorf("Read said %v", err)
	}
}

// meeting is a connection on which somebody begins to read while another one interrupts.
type meeting struct {
	net.Conn
	interrupting func()
}

func (m meeting) SetReadDeadline(at time.Time) error {
	err := m.Conn.SetReadDeadline(at)
	if at.Before(time.Now()) {
		m.interrupting()
	}
	return err
}

func TestInterruptEndsAReadThatJustBegins(t *testing.T) {
	conn, _ := connected(t, "tcp", "127.0.0.1:0")
	ended := make(chan error, 1)
	r := newPacedReader(conn)
	ours := meeting{conn, func() {
		go func() {
			_, err := r.Read(make([]byte, 1))
			ended <- err
		}()
		<-time.After(20 * time.Millisecond)
	}}
	r.begin(ours, func() time.Duration { return 0 })
	(&Stream{net: ours, paced: r}).Interrupt()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("it has read something")
		}
	case <-time.After(5 * time.Second):
		t.Error("it goes on reading")
	}
}

func TestNoPauseWhereSomebodyWaits(t *testing.T) {
	ours, theirs := connected(t, "tcp", "127.0.0.1:0")
	r := paced(ours, 0)
	if _, err := theirs.Write([]byte("now")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 3)); err != nil || !r.began.IsZero() {
		t.Errorf("error %v; a pause began at %v", err, r.began)
	}
}
