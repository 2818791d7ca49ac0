package takeover

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// listen opens a socket of the kind that successors ask on.
func listen(t *testing.T) (*net.UnixListener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "up")
	listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener, path
}

// descriptors counts those of this process.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// link makes both ends of a link.
func link(t *testing.T) (one, other *Link) {
	t.Helper()
	listener, path := listen(t)
	dialed, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := listener.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	if one, err = newLink(dialed); err != nil {
		t.Fatal(err)
	}
	if other, err = newLink(accepted); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { one.Close(); other.Close() })
	return one, other
}

// TestPredecessorsThatLieAreNotBelieved answers the question for sockets in ways that make no sense. Nothing is left open.
func TestPredecessorsThatLieAreNotBelieved(t *testing.T) {
	listener, path := listen(t)
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	before := descriptors(t)
	type message struct {
		text string
		with net.Listener
	}
	for _, one := range []struct {
		answers []message
		want    string
	}{
		{nil, "EOF"},
		{[]message{{"socket listen x", nil}}, "unexpected"},
		{[]message{{"socket listen x", socket}, {"end 1", socket}}, "unexpected"},
		{[]message{{"socket listen x", socket}, {"end one", nil}}, "invalid syntax"},
		{[]message{{"socket listen x", socket}}, "EOF"},
		{[]message{{"serving", nil}}, "unexpected"},
		{[]message{{"refused for a reason", nil}}, "refused: for a reason"},
	} {
		done := make(chan error, 1)
		go func() {
			conn, err := listener.AcceptUnix()
			if err != nil {
				done <- err
				return
			}
			there, err := newLink(conn)
			_, _, lost := there.receive(patience)
			err = errors.Join(err, lost)
			for _, answer := range one.answers {
				err = errors.Join(err, there.send(answer.text, answer.with))
			}
			done <- errors.Join(err, there.Close())
		}()
		if _, _, err := Ask(path); err == nil || !strings.Contains(err.Error(), one.want) {
			t.Errorf("%v: %v, not %s", one.answers, err, one.want)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors became %d", before, after)
	}
	if _, _, err := Ask(filepath.Join(t.TempDir(), "nothing")); !errors.Is(err, ErrNobody) {
		t.Errorf("nobody is %v", err)
	}
}

// TestALinkEndsWithWhatItDoesNotUnderstand sends nonsense to a process that listens for cancel requests.
func TestALinkEndsWithWhatItDoesNotUnderstand(t *testing.T) {
	for _, text := range []string{"x", "cancel", "cancel 1", "cancel 1 2", "cancel a b c", "cancel 1 2 xyz", "cancel 1 2 123", "cancel 1 99999999999 00", "canceled", "canceled -1", "end 1", strings.Repeat("c", messageMax)} {
		one, other := link(t)
		if err := one.send(text, nil); err != nil {
			t.Fatal(err)
		}
		err := other.Run(func(uint32, []byte) { t.Errorf("%.20q was taken for a cancel request", text) })
		if err == nil || !strings.Contains(err.Error(), "unexpected") {
			t.Errorf("%.20q: %v", text, err)
		}
	}
	one, other := link(t)
	if err := one.send("canceled 77", nil); err != nil { // nobody waits for it: it came too late
		t.Fatal(err)
	}
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	if err := other.Run(nil); err != nil {
		t.Errorf("the end is %v", err)
	}
	if _, _, err := other.receive(patience); !errors.Is(err, io.EOF) {
		t.Errorf("behind the end there is %v", err)
	}
}

// TestCancelRequestsGoBothWays waits for answers, for an end, and no longer than it may.
func TestCancelRequestsGoBothWays(t *testing.T) {
	one, other := link(t)
	secret := bytes.Repeat([]byte{0, 255}, 128) // the longest there is
	got := make(chan []byte, 2)
	ended := make(chan error, 2)
	hold := make(chan struct{})
	go func() { ended <- one.Run(func(_ uint32, secret []byte) { got <- secret }) }()
	go func() {
		ended <- other.Run(func(process uint32, secret []byte) {
			if process == 1 {
				<-hold
			}
			got <- secret
		})
	}()
	for _, l := range []*Link{one, other} {
		if err := l.Cancel(t.Context(), 1<<31, secret); err != nil {
			t.Error(err)
		}
		select {
		case seen := <-got:
			if !bytes.Equal(seen, secret) {
				t.Errorf("the secret became %x", seen)
			}
		default:
			t.Error("it has returned before the other side was done")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := one.Cancel(ctx, 1, secret); !errors.Is(err, context.Canceled) {
		t.Errorf("a wait that is over: %v", err)
	}
	close(hold)
	<-got
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if err := other.Cancel(t.Context(), 1, secret); err != nil {
		t.Errorf("a request for a process that has gone: %v", err)
	}
}
