package monitor

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

func TestServesWhatTheSnapshotSays(t *testing.T) {
	var ready atomic.Bool
	server, err := Listen(Options{Address: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler),
		Metrics: func() []Metric {
			return []Metric{
				{Name: "pitr_test_bytes", Help: "Bytes.", Value: 7, Labels: map[string]string{"pool": "a"}},
				{Name: "pitr_test_total", Help: "Total.", Kind: Counter, Value: 3},
				{Name: "pitr_test_seconds", Help: "Waits.", Kind: Histogram, Bounds: []float64{0.1, 1}, Counts: []uint64{2, 1, 4}, Sum: 9},
			}
		},
		Ready: func(context.Context) error {
			if ready.Load() {
				return nil
			}
			return errors.New("not streaming")
		}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- server.Run(ctx) }()
	get := func(path string, status int, wants ...string) {
		t.Helper()
		response, err := http.Get("http://" + server.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		if err := errors.Join(err, response.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != status {
			t.Errorf("%s: status %d, want %d", path, response.StatusCode, status)
		}
		for _, want := range wants {
			if !strings.Contains(string(body), want) {
				t.Errorf("%s lacks %q:\n%s", path, want, body)
			}
		}
	}
	get("/healthz", 200, "ok")
	get("/readyz", 503, "not streaming")
	ready.Store(true)
	get("/readyz", 200, "ok")
	get("/metrics", 200, `pitr_test_bytes{pool="a"} 7`, "pitr_test_total 3", `pitr_test_seconds_bucket{le="1"} 3`, `pitr_test_seconds_bucket{le="+Inf"} 7`, "pitr_test_seconds_sum 9", "go_goroutines")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestBusyAddressIsAnErrorAtOnce(t *testing.T) {
	opt := Options{Address: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler), Metrics: func() []Metric { return nil }}
	first, err := Listen(opt)
	if err != nil {
		t.Fatal(err)
	}
	defer first.listener.Close()
	opt.Address = first.Addr().String()
	if _, err := Listen(opt); err == nil {
		t.Error("two servers share an address")
	}
}
