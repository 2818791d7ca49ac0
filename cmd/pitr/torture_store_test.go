package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"pitr/internal/store/s3/s3test"
)

// faultyStore is an S3 server behind two proxies: toxiproxy, for what goes wrong with connections, and requestFaults, for what goes wrong with
// requests.
//
//	pitr ─► toxiproxy ─► requestFaults ─► versitygw
type faultyStore struct {
	server   *s3test.Server
	requests *requestFaults
	wire     *toxiproxy.Proxy
}

func startFaultyStore(t *testing.T, rng *rand.Rand) *faultyStore {
	t.Helper()
	s := &faultyStore{server: s3test.Start(t)}
	s.requests = startRequestFaults(t, s.server.Endpoint, rng)
	api := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	s.wire = toxiproxy.NewProxy(api, "store", "127.0.0.1:0", s.requests.address)
	if err := s.wire.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.wire.Stop)
	return s
}

// url is the store's URL through the proxies.
func (s *faultyStore) url() string {
	return fmt.Sprintf("s3://%s/torture?endpoint=http://%s&region=us-east-1&path_style=true", s.server.Bucket, s.wire.Listen)
}

// toxic makes connections go wrong until heal is called.
func (s *faultyStore) toxic(t *testing.T, kind, attributes string) {
	t.Helper()
	for _, stream := range []string{"upstream", "downstream"} {
		text := fmt.Sprintf(`{"name": "%s %s", "type": "%s", "stream": "%s", "toxicity": 0.7, "attributes": {%s}}`, kind, stream, kind, stream, attributes)
		if _, err := s.wire.Toxics.AddToxicJson(strings.NewReader(text)); err != nil {
			t.Fatalf("toxic %s: %v", text, err)
		}
	}
}

// heal ends every fault but a kill.
func (s *faultyStore) heal(ctx context.Context) {
	s.wire.Toxics.ResetToxics(ctx)
	s.requests.set("", 0)
}

// The faults of requests. Each concerns a share of them.
const (
	faultError500   = "500"
	faultSlowDown   = "503"
	faultAnswerLost = "answer lost" // the request is carried out, and its answer is lost
	faultTruncated  = "truncated"   // the body of an answer ends early
)

// requestFaults is an HTTP proxy that does to requests what a TCP proxy cannot.
type requestFaults struct {
	address string
	forward *httputil.ReverseProxy

	mu    sync.Mutex // guards what follows
	rng   *rand.Rand
	fault string
	share float64
	hits  map[string]int
}

func startRequestFaults(t *testing.T, upstream string, rng *rand.Rand) *requestFaults {
	t.Helper()
	target, err := url.Parse(upstream)
	if err != nil {
		t.Fatal(err)
	}
	p := &requestFaults{rng: rng, hits: map[string]int{}}
	p.forward = &httputil.ReverseProxy{
		// The signature covers the name of the host that the client has asked, and nothing may be added.
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = target.Scheme, target.Host, r.In.Host
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }, // the server is down: so are its connections
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.address = listener.Addr().String()
	server := &http.Server{Handler: p}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.Serve(listener); err != http.ErrServerClosed {
			t.Errorf("fault proxy: %v", err)
		}
	})
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		serving.Wait()
	})
	return p
}

func (p *requestFaults) set(fault string, share float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.share = fault, share
}

// strikes decides what happens to a request; "" is nothing.
func (p *requestFaults) strikes() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault == "" || p.rng.Float64() >= p.share {
		return ""
	}
	p.hits[p.fault]++
	return p.fault
}

func (p *requestFaults) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch fault := p.strikes(); fault {
	case faultError500, faultSlowDown:
		code, name := http.StatusInternalServerError, "InternalError"
		if fault == faultSlowDown {
			code, name = http.StatusServiceUnavailable, "SlowDown"
		}
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(code)
		_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>Please try again.</Message></Error>`, name)
	case faultAnswerLost:
		p.forward.ServeHTTP(&swallowed{header: http.Header{}}, r)
		panic(http.ErrAbortHandler) // which closes the connection
	case faultTruncated:
		p.forward.ServeHTTP(&truncated{ResponseWriter: w}, r)
	default:
		p.forward.ServeHTTP(w, r)
	}
}

// swallowed takes an answer that nobody gets.
type swallowed struct{ header http.Header }

func (s *swallowed) Header() http.Header         { return s.header }
func (s *swallowed) Write(b []byte) (int, error) { return len(b), nil }
func (s *swallowed) WriteHeader(int)             {}

// truncated passes on half of the first write of an answer, and closes the connection.
type truncated struct{ http.ResponseWriter }

func (t *truncated) Write(b []byte) (int, error) {
	if _, err := t.ResponseWriter.Write(b[:len(b)/2]); err == nil {
		if flusher, ok := t.ResponseWriter.(http.Flusher); ok {
			flusher.Flush()
		}
	}
	panic(http.ErrAbortHandler)
}
