package s3

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pitr/internal/store"
	"pitr/internal/store/s3/s3test"
)

// recorder is a server that takes whatever is put and remembers the requests.
type recorder struct {
	*httptest.Server
	mu       sync.Mutex // guards requests
	requests []*http.Request
}

func record(t *testing.T, secure bool) *recorder {
	t.Helper()
	r := &recorder{}
	handler := http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if _, err := io.Copy(io.Discard, request.Body); err != nil {
			t.Error(err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.requests = append(r.requests, request)
		w.Header().Set("ETag", `"0123456789abcdef0123456789abcdef"`)
	})
	if secure {
		r.Server = httptest.NewTLSServer(handler)
	} else {
		r.Server = httptest.NewServer(handler)
	}
	t.Cleanup(r.Close)
	t.Setenv("AWS_ACCESS_KEY_ID", "key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	t.Setenv("AWS_SESSION_TOKEN", "token")
	return r
}

func (r *recorder) last(t *testing.T) *http.Request {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.requests) == 0 {
		t.Fatal("nothing was asked of the server")
	}
	return r.requests[len(r.requests)-1]
}

// open opens a store whose connections all go to the recorder, whatever the name of the host.
func (r *recorder) open(t *testing.T, query string, change func(*Options)) *Store {
	t.Helper()
	opt, err := ParseURL("s3://bucket/p?region=us-east-1&" + query)
	if err != nil {
		t.Fatal(err)
	}
	opt.dial = func(transport *http.Transport) {
		transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, r.Listener.Addr().String())
		}
	}
	if change != nil {
		change(&opt)
	}
	s, err := Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEveryPutCarriesWhatItsURLSays(t *testing.T) {
	r := record(t, false)
	uses := map[string]store.Use{"kept": store.Kept, "bulk": store.Bulk, "brief": store.Brief, "passing": store.Passing}
	now := time.Date(2026, 11, 21, 12, 0, 0, 500, time.UTC)
	headers := func(query string, change func(*Options), key string) http.Header {
		t.Helper()
		s := r.open(t, "endpoint=http://s3.test&"+query, func(opt *Options) {
			opt.Use = func(key string) store.Use { return uses[key] }
			if change != nil {
				change(opt)
			}
		})
		s.now = func() time.Time { return now }
		if err := s.Put(t.Context(), key, []byte("content"), store.PutOptions{IfAbsent: true}); err != nil {
			t.Fatal(err)
		}
		return r.last(t).Header
	}
	want := func(h http.Header, name, value string) {
		t.Helper()
		if got := h.Get(name); got != value {
			t.Errorf("%s is %q, want %q", name, got, value)
		}
	}
	for key := range uses {
		h := headers("sse=aws:kms&sse_kms_key_id=arn:aws:kms:eu-central-1:1:key/2", nil, key)
		want(h, "X-Amz-Server-Side-Encryption", "aws:kms")
		want(h, "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id", "arn:aws:kms:eu-central-1:1:key/2")
		want(h, "If-None-Match", "*")
		want(h, "X-Amz-Security-Token", "token")
		want(headers("sse=aws:kms", nil, key), "X-Amz-Server-Side-Encryption", "aws:kms")
		want(headers("sse=AES256", nil, key), "X-Amz-Server-Side-Encryption", "AES256")
		h = headers("", nil, key)
		want(h, "X-Amz-Server-Side-Encryption", "")
		want(h, "X-Amz-Object-Lock-Mode", "")
		want(h, "X-Amz-Storage-Class", "")
	}
	for key, class := range map[string]string{"kept": "", "bulk": "STANDARD_IA", "brief": "", "passing": ""} {
		want(headers("storage_class=STANDARD_IA", nil, key), "X-Amz-Storage-Class", class)
	}
	lock := func(mode bool) func(*Options) {
		return func(opt *Options) { opt.Lock = Lock{For: 30 * 24 * time.Hour, Compliance: mode} }
	}
	for key, until := range map[string]string{"kept": "2026-12-21T12:00:01Z", "bulk": "2026-12-21T12:00:01Z", "brief": "2026-11-22T12:00:01Z", "passing": ""} {
		h := headers("", lock(false), key)
		want(h, "X-Amz-Object-Lock-Retain-Until-Date", until)
		mode, sum := "GOVERNANCE", "mgNkuembtIDdJeHwKEyFVQ=="
		if until == "" {
			mode, sum = "", ""
		}
		want(h, "X-Amz-Object-Lock-Mode", mode)
		want(h, "Content-Md5", sum)
	}
	want(headers("", lock(true), "bulk"), "X-Amz-Object-Lock-Mode", "COMPLIANCE")
}

func TestBucketStandsWhereTheStyleSays(t *testing.T) {
	r := record(t, false)
	asked := func(query string) string {
		t.Helper()
		if err := r.open(t, query, nil).Put(t.Context(), "k", nil, store.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		last := r.last(t)
		return last.Host + last.URL.Path
	}
	for query, want := range map[string]string{
		"endpoint=http://s3.test:99&path_style=false": "bucket.s3.test:99/p/k",
		"endpoint=http://s3.test:99&path_style=true":  "s3.test:99/bucket/p/k",
		"endpoint=http://s3.test:99":                  "s3.test:99/bucket/p/k",
	} {
		if got := asked(query); got != want {
			t.Errorf("%s: asked %s, want %s", query, got, want)
		}
	}
}

func TestOnlyTheAuthoritiesOfCAFileAreTrustedBesidesTheSystems(t *testing.T) {
	r := record(t, true)
	put := func(query string) error {
		t.Helper()
		return r.open(t, "endpoint=https://127.0.0.1&"+query, nil).Put(t.Context(), "k", nil, store.PutOptions{})
	}
	if err := put(""); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a server with a certificate of nobody we know was told everything: %v", err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	content := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw})
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := put("ca_file=" + url.QueryEscape(file)); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(file, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{file, file + "-absent"} {
		opt, err := ParseURL("s3://b?ca_file=" + file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(opt); err == nil || !strings.Contains(err.Error(), "ca_file") {
			t.Errorf("%s was taken for certificates: %v", file, err)
		}
	}
}

func TestURLsThatCannotWorkAreRefusedWithAReason(t *testing.T) {
	for query, reason := range map[string]string{
		"endpiont=http://x":                            "unknown parameter endpiont; " + parameters + " exist",
		"path_style=maybe":                             "path_style is true or false",
		"path_style=false&endpoint=http://127.0.0.1:9": "is an address",
		"path_style=false&endpoint=http://[::1]:9":     "is an address",
		"region=a&region=b":                            "stands there 2 times",
		"region=":                                      "region is empty",
		"sse=aes":                                      "sse is AES256 or aws:kms",
		"sse_kms_key_id=x":                             "needs sse=aws:kms",
		"sse=AES256&sse_kms_key_id=x":                  "needs sse=aws:kms",
		"storage_class=GLACIER":                        "cannot be read before hours",
		"storage_class=standard%20ia":                  "no name of a class",
		"ca_file=ca.pem":                               "absolute path",
		"ca_file=/ca.pem&endpoint=http://x":            "http://",
		"endpoint=host:80":                             "want http://host:port",
		"endpoint=http://host/path":                    "want http://host:port",
		"a;b":                                          "semicolon",
	} {
		if opt, err := ParseURL("s3://bucket/p?" + query); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: want %q, got %v %+v", query, reason, err, fmt.Sprint(opt.Bucket))
		}
	}
}

func TestVirtualHostsWorkForReal(t *testing.T) {
	server := s3test.StartVirtual(t, "s3.test")
	address := strings.TrimPrefix(server.Endpoint, "http://")
	opt, err := ParseURL("s3://" + server.Bucket + "/p?region=us-east-1&path_style=false&endpoint=http://s3.test")
	if err != nil {
		t.Fatal(err)
	}
	opt.dial = func(transport *http.Transport) {
		transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
	}
	s, err := Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range store.Probe(t.Context(), s, time.Now) {
		if found.Err != nil {
			t.Errorf("%s: %v", found.What, found.Err)
		}
	}
}

// answering answers every request in the same way.
func answering(t *testing.T, status int, date time.Time, code, message string) *Store {
	t.Helper()
	record(t, false) // for its credentials
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", date.UTC().Format(http.TimeFormat))
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>%s</Message></Error>`, code, message)
	}))
	t.Cleanup(server.Close)
	opt, err := ParseURL("s3://bucket/p?region=us-east-1&endpoint=" + server.URL)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAnswersToADeleteTellRightsFromRetention(t *testing.T) {
	for _, c := range []struct {
		status        int
		code, message string
		want          error
	}{
		{403, "AccessDenied", "Access Denied", store.ErrDenied},
		{403, "AccessDenied", "Access Denied because object protected by object lock.", store.ErrLocked}, // Amazon, versitygw
		{400, "InvalidRequest", "Object is WORM protected and cannot be overwritten", store.ErrLocked},   // MinIO
		{403, "ObjectLocked", "The object is locked", store.ErrLocked},
		{403, "InvalidAccessKeyId", "Unknown key", store.ErrDenied},
	} {
		err := answering(t, c.status, time.Now(), c.code, c.message).Delete(t.Context(), "k")
		if !errors.Is(err, c.want) || !errors.Is(err, store.ErrPermanent) {
			t.Errorf("%d %s %s: %v", c.status, c.code, c.message, err)
		}
	}
}

func TestAClockThatIsWrongIsNamedWithItsConsequence(t *testing.T) {
	s := answering(t, http.StatusForbidden, time.Now().Add(-20*time.Minute), "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.")
	found := store.Probe(t.Context(), s, time.Now)
	if len(found) != 2 || found[0].What != "put" || !strings.Contains(found[0].Err.Error(), "the clock of this machine and the server's differ too much") {
		t.Fatalf("found %+v", found)
	}
	clock := found[1]
	if clock.What != "clock" || clock.Err == nil || !strings.Contains(clock.Err.Error(), "the store's clock is behind ours by 20m") || !strings.Contains(clock.Consequence, "requests are refused") {
		t.Errorf("found %+v", clock)
	}
}
