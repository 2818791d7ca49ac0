package main

import (
	"context"
	"errors"
	"time"

	"pitr/config"
	"pitr/internal/monitor"
	"pitr/internal/store/copies"
)

// withCopies runs a service while the stores of the repository are kept equal.
func withCopies(app *app, cfg *config.Config, expire func(context.Context) error, run func(context.Context) error) func(context.Context) error {
	if app.copies == nil {
		return run
	}
	return func(ctx context.Context) error {
		filling, stop := context.WithCancel(ctx)
		defer stop()
		filled := make(chan struct{})
		go func() {
			defer close(filled)
			app.copies.Run(filling, expire)
		}()
		err := run(ctx)
		stop()
		<-filled
		return errors.Join(err, app.settleCopies(ctx, cfg.Archive.ShutdownGrace.D()))
	}
}

// copyMetrics tells of each store of a repository that lies in several.
func copyMetrics(stores *copies.Store, now time.Time) []monitor.Metric {
	if stores == nil {
		return nil
	}
	var metrics []monitor.Metric
	for _, st := range stores.Stats() {
		add := func(name, help string, kind monitor.Kind, value float64) {
			metrics = append(metrics, monitor.Metric{Name: name, Help: help, Kind: kind, Value: value, Labels: map[string]string{"store": st.Name}})
		}
		lag := 0.0
		if !st.Oldest.IsZero() {
			lag = max(0, now.Sub(st.Oldest).Seconds())
		}
		add("pitr_copy_frontier_lsn", "Position up to which the store holds all WAL that any does, in bytes since the cluster was made; 0 until it was compared.", monitor.Gauge, float64(st.Frontier))
		add("pitr_copy_lag_seconds", "Age of the oldest object that the store lacks; 0 when it lacks none.", monitor.Gauge, lag)
		add("pitr_copy_missing_objects", "Objects that the store is known to lack.", monitor.Gauge, float64(st.Missing))
		add("pitr_copy_behind", "1 while the store lacks objects, or has not been compared yet.", monitor.Gauge, number(st.Behind))
		add("pitr_copy_backlog_bytes", "Objects on their way to the store that the quorum has already.", monitor.Gauge, float64(st.Backlog))
		add("pitr_copy_conflicts_total", "Keys under which the store holds other content than another.", monitor.Counter, float64(st.Conflicts))
		add("pitr_copy_filled_total", "Objects that the store lacked and was given.", monitor.Counter, float64(st.Filled))
		add("pitr_archive_copies_buffer_max_hits_total", "Times that archive.copies_buffer_max has left the store behind.", monitor.Counter, float64(st.Overflows))
	}
	return append(metrics, monitor.Metric{Name: "pitr_copy_damaged_reads_total", Kind: monitor.Counter, Value: float64(stores.DamagedReads()),
		Help: "Objects that were damaged in one store and read from another."})
}
