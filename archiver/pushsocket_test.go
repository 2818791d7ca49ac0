package archiver

import (
	"context"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestPushThatStallsIsCutOffAndMakesOthersWait occupies the only place with a connection that sends nothing.
func TestPushThatStallsIsCutOffAndMakesOthersWait(t *testing.T) {
	const stall = 300 * time.Millisecond
	_, r := newStore(t)
	var counts PushCounts
	opt := PushSocketOptions{Path: filepath.Join(t.TempDir(), "push.sock"), Place: "here", Stall: stall, PushesMax: 1, Counts: &counts}
	socket, err := ListenPush(opt, NewPusher(r, slog.New(slog.NewTextHandler(io.Discard, nil))))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- socket.Run(ctx) }()
	begin := time.Now()
	silent, err := net.Dial("unix", opt.Path)
	if err != nil {
		t.Fatal(err)
	}
	const history = "1\t0/3000000\tno recovery target specified\n"
	f := PushFile{Name: "00000002.history", Size: int64(len(history)), Content: strings.NewReader(history), SystemID: 77, Segments: 1 << 20}
	if _, err := PushThrough(ctx, opt, f, 0); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took < stall {
		t.Errorf("the second push was served after %s, beside the first", took)
	}
	if _, err := silent.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the silent connection: %v", err)
	}
	if waited, stalled, failed := counts.Waited.Load(), counts.Stalled.Load(), counts.Failed.Load(); waited != 1 || stalled != 1 || failed != 1 {
		t.Errorf("%d have waited, %d stalled, %d failed", waited, stalled, failed)
	}
	if stored, bytes := counts.Done.Load(), counts.Bytes.Load(); stored != 1 || bytes != uint64(len(history)) {
		t.Errorf("%d pushes of %d bytes are counted", stored, bytes)
	}
	if err := silent.Close(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
