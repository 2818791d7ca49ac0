// Package s3test runs a real S3 server, versitygw, on loopback for tests. Nothing but tests imports it.
package s3test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// BinEnv names the variable that says where the server's binary is; `make test` sets it.
const BinEnv = "PITR_VERSITYGW"

// Server is a running versitygw with one bucket.
type Server struct {
	Endpoint string // http://127.0.0.1:port
	Bucket   string
	Dir      string // where it keeps the objects as files
	cmd      *exec.Cmd
	args     []string
	t        testing.TB
}

// Credentials that the server accepts.
const (
	AccessKey = "pitr"
	SecretKey = "pitr-test-secret"
)

// Start runs the server until the test ends, makes a bucket, and puts the credentials into the environment.
func Start(t testing.TB) *Server {
	t.Helper()
	bin := binary(t)
	dir := t.TempDir()
	bucket := "bucket"
	if err := os.Mkdir(filepath.Join(dir, bucket), 0o755); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	s := &Server{Endpoint: "http://" + address, Bucket: bucket, Dir: dir, t: t,
		args: []string{bin, "--port", address, "--access", AccessKey, "--secret", SecretKey, "posix", dir}}
	s.Restart()
	t.Cleanup(s.Kill)
	t.Setenv("AWS_ACCESS_KEY_ID", AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", SecretKey)
	return s
}

func binary(t testing.TB) string {
	t.Helper()
	if bin := os.Getenv(BinEnv); bin != "" {
		return bin
	}
	bin, err := exec.LookPath("versitygw")
	if err != nil {
		t.Fatalf("no S3 server for the test: run `make versitygw` and set %s (make test does both)", BinEnv)
	}
	return bin
}

// Kill ends the server as kill -9 does. A later Restart brings it back on the same address with the same objects.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	if err := s.cmd.Process.Kill(); err != nil {
		s.t.Error(err)
	}
	_ = s.cmd.Wait() // "signal: killed" is what we want
	s.cmd = nil
}

// Restart starts the server and waits until it answers.
func (s *Server) Restart() {
	s.t.Helper()
	s.cmd = exec.Command(s.args[0], s.args[1:]...)
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint, nil)
		if err != nil {
			s.t.Fatal(err)
		}
		if response, err := http.DefaultClient.Do(request); err == nil {
			_ = response.Body.Close()
			return
		}
		select {
		case <-ctx.Done():
			s.t.Fatal("versitygw did not answer within 20 s")
		case <-ticker.C:
		}
	}
}

// URL is the store's URL for a configuration.
func (s *Server) URL(prefix string) string {
	return fmt.Sprintf("s3://%s/%s?endpoint=%s&region=us-east-1&path_style=true", s.Bucket, prefix, s.Endpoint)
}
