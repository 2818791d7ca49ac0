// Package monitor serves /metrics, /healthz and /readyz. It owns client_golang. It knows nothing of poolers and archivers: cmd/pitr
// hands it functions that return snapshots, which are called when somebody asks.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Kind says how a metric's value moves.
type Kind int

// The kinds of metrics.
const (
	Gauge Kind = iota
	Counter
	Histogram
)

// Metric is one line of a snapshot.
type Metric struct {
	Name   string // pitr_…; base units, as Prometheus wants them
	Help   string
	Kind   Kind
	Labels map[string]string
	Value  float64

	// Of a histogram: upper bounds in order, the number of observations up to each (not cumulative), and what lies behind the last.
	Bounds []float64
	Counts []uint64 // one more than Bounds
	Sum    float64
}

// Options says what is served.
type Options struct {
	Address string
	// Listener is where people are served instead, if it is there already. Whoever closes it before Run's ctx ends hands on its address: Run then only waits.
	Listener net.Listener
	Metrics  func() []Metric
	Ready    func(ctx context.Context) error // nil: the service can do its work
	Log      *slog.Logger
}

// Server is an HTTP server for people and for Prometheus.
type Server struct {
	listener net.Listener
	http     http.Server
}

// Listen takes the address; serving begins with Run.
func Listen(opt Options) (*Server, error) {
	listener := opt.Listener
	if listener == nil {
		var err error
		if listener, err = net.Listen("tcp", opt.Address); err != nil {
			return nil, fmt.Errorf("serve metrics: %w", err)
		}
	}
	registry := prometheus.NewRegistry()
	if err := registry.Register(source(opt.Metrics)); err != nil {
		return nil, errors.Join(fmt.Errorf("serve metrics: %w", err), listener.Close())
	}
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(opt.Log.Handler(), slog.LevelWarn)}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
		defer cancel()
		answer(w, opt.Ready(ctx))
	})
	return &Server{listener: listener, http: http.Server{Handler: mux, ReadHeaderTimeout: requestTimeout, ReadTimeout: requestTimeout, WriteTimeout: requestTimeout}}, nil
}

const (
	// requestTimeout bounds a whole request; readyTimeout what it asks of the service.
	requestTimeout = 10 * time.Second
	readyTimeout   = 5 * time.Second
)

func answer(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, err)
		return
	}
	fmt.Fprintln(w, "ok")
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.http.Close() }) // Serve then returns ErrServerClosed
	defer stop()
	err := s.http.Serve(s.listener)
	if errors.Is(err, net.ErrClosed) {
		s.http.SetKeepAlivesEnabled(false) // who has asked before is to ask again, elsewhere
		<-ctx.Done()
		return nil
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve metrics: %w", err)
}

// source adapts snapshots to Prometheus. It describes nothing beforehand: the set of labels may change.
type source func() []Metric

// Describe implements prometheus.Collector.
func (s source) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (s source) Collect(out chan<- prometheus.Metric) {
	for _, m := range s() {
		out <- m.collect()
	}
}

func (m Metric) collect() prometheus.Metric {
	names := make([]string, 0, len(m.Labels))
	values := make([]string, 0, len(m.Labels))
	for name, value := range m.Labels {
		names, values = append(names, name), append(values, value)
	}
	desc := prometheus.NewDesc(m.Name, m.Help, names, nil)
	var metric prometheus.Metric
	var err error
	switch m.Kind {
	case Histogram:
		buckets, total := map[float64]uint64{}, uint64(0)
		for i, bound := range m.Bounds {
			total += m.Counts[i]
			buckets[bound] = total
		}
		metric, err = prometheus.NewConstHistogram(desc, total+m.Counts[len(m.Bounds)], m.Sum, buckets, values...)
	case Counter:
		metric, err = prometheus.NewConstMetric(desc, prometheus.CounterValue, m.Value, values...)
	default:
		metric, err = prometheus.NewConstMetric(desc, prometheus.GaugeValue, m.Value, values...)
	}
	if err != nil {
		return prometheus.NewInvalidMetric(desc, err)
	}
	return metric
}
