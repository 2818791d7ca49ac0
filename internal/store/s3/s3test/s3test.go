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
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
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
	return start(t, nil, nil)
}

// StartLocking runs a server whose bucket has versions and Object Lock, and which knows other users: see AddUser.
func StartLocking(t testing.TB) *Server {
	t.Helper()
	s := start(t, []string{"--iam-dir", t.TempDir()}, []string{"--versioning-dir", t.TempDir()})
	s.Bucket = "locking"
	if err := s.Client().MakeBucket(t.Context(), s.Bucket, minio.MakeBucketOptions{ObjectLocking: true}); err != nil {
		t.Fatal(err)
	}
	return s
}

// StartWithUsers runs a server with a plain bucket that knows other users: see AddUser.
func StartWithUsers(t testing.TB) *Server {
	t.Helper()
	return start(t, []string{"--iam-dir", t.TempDir()}, nil)
}

// StartVirtual runs a server that expects the bucket's name before the host's: bucket.domain.
func StartVirtual(t testing.TB, domain string) *Server {
	t.Helper()
	return start(t, []string{"--virtual-domain", domain}, nil)
}

// Client speaks to the server as its root user.
func (s *Server) Client() *minio.Client {
	s.t.Helper()
	client, err := minio.New(strings.TrimPrefix(s.Endpoint, "http://"), &minio.Options{Creds: credentials.NewStaticV4(AccessKey, SecretKey, ""), Region: "us-east-1"})
	if err != nil {
		s.t.Fatal(err)
	}
	return client
}

// AddUser makes a user who may do to the bucket and its objects what the list of actions says, for example s3:GetObject. Each call
// replaces the rights that the calls before have given.
func (s *Server) AddUser(access, secret string, actions ...string) {
	s.t.Helper()
	out, err := exec.Command(s.args[0], "admin", "--access", AccessKey, "--secret", SecretKey, "--endpoint-url", s.Endpoint,
		"create-user", "--access", access, "--secret", secret, "--role", "user").CombinedOutput()
	if err != nil {
		s.t.Fatalf("create-user: %v: %s", err, out)
	}
	var statements []string
	for _, action := range actions {
		resource := s.Bucket + "/*"
		if strings.Contains(action, "Bucket") {
			resource = s.Bucket
		}
		statements = append(statements, fmt.Sprintf(`{"Effect":"Allow","Principal":{"AWS":[%q]},"Action":%q,"Resource":"arn:aws:s3:::%s"}`, access, action, resource))
	}
	policy := `{"Version":"2012-10-17","Statement":[` + strings.Join(statements, ",") + `]}`
	if err := s.Client().SetBucketPolicy(context.Background(), s.Bucket, policy); err != nil {
		s.t.Fatal(err)
	}
}

// Writer is what one needs to archive, and not to delete.
var Writer = []string{"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:PutObjectRetention", "s3:GetObjectRetention"}

func start(t testing.TB, global, posix []string) *Server {
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
		args: slices.Concat([]string{bin, "--port", address, "--access", AccessKey, "--secret", SecretKey}, global, []string{"posix"}, posix, []string{dir})}
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

// CredentialsFile writes an AWS credentials file with one profile.
func CredentialsFile(t testing.TB, profile, access, secret string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "credentials")
	content := fmt.Sprintf("[%s]\naws_access_key_id = %s\naws_secret_access_key = %s\n", profile, access, secret)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
