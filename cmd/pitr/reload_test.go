package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestAHangupReloadsThePoolerOrChangesNothing sends SIGHUP to a pooler whose file has changed, for the worse and for the better.
func TestAHangupReloadsThePoolerOrChangesNothing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	h := newHarness(t, "")
	h.start(ctx, "pooler")
	client, err := h.connect(ctx, h.pooler)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close(ctx) }()
	hangup := func() {
		t.Helper()
		if err := h.procs["pooler"].Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	h.replace("default_pool_size: 5", "default_pool_size: many")
	hangup()
	h.eventually(ctx, "the pooler refuses the file", func() bool { return strings.Contains(h.logs(), "configuration not reloaded") })
	h.replace("default_pool_size: many", "default_pool_size: 7\n  workers: 3")
	hangup()
	h.eventually(ctx, "the pooler has reloaded", func() bool { return strings.Contains(h.logs(), "configuration reloaded") })
	for _, line := range []string{"setting=pooler.default_pool_size from=5 to=7", `takes a restart" setting=pooler.workers from=1 to=3`} {
		if !strings.Contains(h.logs(), line) {
			t.Errorf("the log lacks %s:\n%s", line, h.logs())
		}
	}
	const labels = `{database="postgres",user="postgres"} `
	metrics := h.poolerMetrics()
	for _, line := range []string{"pitr_pool_size" + labels + "7\n", "pitr_client_login_seconds_count" + labels + "1\n", "pitr_server_connect_seconds_count" + labels + "1\n",
		`pitr_limit_hits_total{setting="query_timeout"} 0` + "\n"} {
		if !strings.Contains(metrics, line) {
			t.Errorf("/metrics lack %s%s", line, metrics)
		}
	}
	var one int
	if err := client.QueryRow(ctx, "select 1").Scan(&one); err != nil || one != 1 {
		t.Errorf("the client that was there: %d, %v", one, err)
	}
}

// poolerMetrics is what the pooler's /metrics says.
func (h *harness) poolerMetrics() string {
	h.t.Helper()
	response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", h.metrics["pooler"]))
	if err != nil {
		h.t.Fatal(err)
	}
	text, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		h.t.Fatal(err)
	}
	return string(text)
}
