package main

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Credentials of the S3 server.
const (
	storeUser   = "bench"
	storeSecret = "bench-secret"
	storeBucket = "bucket"
)

// slowStore is an S3 server behind a proxy that makes every put take longer, as a network would.
type slowStore struct {
	gateway *process
	proxy   *http.Server
	port    int

	mu    sync.Mutex // guards what follows
	delay time.Duration
	puts  int
	took  time.Duration
}

// startStore runs scripts/versitygw.sh's server in the environment's directory.
func (e *environment) startStore(ctx context.Context, root string) (*slowStore, error) {
	program, err := script(root, "scripts/versitygw.sh")
	if err != nil {
		return nil, err
	}
	copied := filepath.Join(e.dir, "versitygw")
	if err := copyProgram(program, copied); err != nil {
		return nil, err
	}
	objects := filepath.Join(e.dir, "objects")
	if _, err := run(ctx, launch{name: "mkdir", args: []string{"mkdir", "-p", filepath.Join(objects, storeBucket)}, dir: e.dir, as: e.as}); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	at := net.JoinHostPort(loopback, strconv.Itoa(port))
	s := &slowStore{}
	if s.gateway, err = start(launch{name: "versitygw", args: []string{copied, "--port", at, "--access", storeUser, "--secret", storeSecret, "posix", objects}, dir: e.dir, as: e.as}); err != nil {
		return nil, err
	}
	err = e.until(ctx, poolerStart, s.gateway, func() error {
		conn, err := net.Dial("tcp", at)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	if err != nil {
		s.stop()
		return nil, err
	}
	listener, err := net.Listen("tcp", loopback+":0")
	if err != nil {
		s.stop()
		return nil, err
	}
	s.port = listener.Addr().(*net.TCPAddr).Port
	s.proxy = &http.Server{Handler: s.handler(at)}
	go func() { _ = s.proxy.Serve(listener) }() // ends with stop
	return s, nil
}

func (s *slowStore) handler(at string) http.Handler {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: at})
			r.Out.Host = r.In.Host // it is signed
		},
		Transport: &http.Transport{MaxIdleConnsPerHost: 100},
		ErrorLog:  log.New(io.Discard, "", 0), // whoever asks is told
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/wal/") {
			proxy.ServeHTTP(w, r)
			return
		}
		begin := time.Now()
		s.mu.Lock()
		delay := s.delay
		s.mu.Unlock()
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
			return
		}
		proxy.ServeHTTP(w, r)
		s.mu.Lock()
		s.puts, s.took = s.puts+1, s.took+time.Since(begin)
		s.mu.Unlock()
	})
}

// set begins to count anew, with another delay.
func (s *slowStore) set(delay time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay, s.puts, s.took = delay, 0, 0
}

// counted returns how many puts of WAL there were since set, and how long one took.
func (s *slowStore) counted() (puts int, mean time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.puts == 0 {
		return 0, 0
	}
	return s.puts, s.took / time.Duration(s.puts)
}

func (s *slowStore) stop() {
	if s.proxy != nil {
		_ = s.proxy.Close() // nobody waits for an answer any more
	}
	s.gateway.stop(syscall.SIGTERM)
}
