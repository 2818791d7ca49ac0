package main

import (
	"testing"

	"pitr/archiver"
)

func TestEachCountOfPushesHasAMetricOfItsOwn(t *testing.T) {
	var c archiver.PushCounts
	c.Done.Store(1)
	c.Bytes.Store(2)
	c.Failed.Store(3)
	c.Waited.Store(4)
	c.Stalled.Store(5)
	want := map[string]float64{"pitr_pushes_total": 1, "pitr_push_bytes_total": 2, "pitr_push_failures_total": 3,
		"pitr_archive_pushes_max_hits_total": 4, "pitr_archive_push_stall_hits_total": 5}
	got := pushMetrics(&c)
	for _, metric := range got {
		if metric.Value != want[metric.Name] {
			t.Errorf("%s is %v, want %v", metric.Name, metric.Value, want[metric.Name])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d metrics, want %d", len(got), len(want))
	}
}
