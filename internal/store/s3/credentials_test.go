package s3

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"pitr/internal/store"
)

// issuer gives out credentials with growing numbers, as STS, a container's endpoint and an instance's metadata do.
type issuer struct {
	*httptest.Server
	mu     sync.Mutex // guards what follows
	issued int
	valid  time.Duration
	broken bool
	seen   []string
}

func issue(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{valid: time.Hour}
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.seen = append(i.seen, r.Method+" "+r.Host+r.URL.Path)
		if i.broken {
			http.Error(w, "out of order", http.StatusInternalServerError)
			return
		}
		i.answer(w, r)
	}))
	t.Cleanup(i.Close)
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE",
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_REGION"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "none"))
	return i
}

func (i *issuer) answer(w http.ResponseWriter, r *http.Request) {
	const roles = "/latest/meta-data/iam/security-credentials/"
	until := time.Now().Add(i.valid).UTC().Format(time.RFC3339)
	write := func(text string) { _, _ = fmt.Fprint(w, text) }
	switch {
	case r.Method == http.MethodPost && r.FormValue("Action") == "AssumeRoleWithWebIdentity":
		if r.FormValue("RoleArn") != "arn:aws:iam::1:role/pitr" || r.FormValue("RoleSessionName") != "here" || r.FormValue("WebIdentityToken") != "a token" {
			http.Error(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>InvalidIdentityToken</Code><Message>unknown token</Message></Error><RequestId>1</RequestId></ErrorResponse>`, http.StatusBadRequest)
			return
		}
		i.issued++
		write(fmt.Sprintf(`<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials>
			<AccessKeyId>key%d</AccessKeyId><SecretAccessKey>secret</SecretAccessKey><SessionToken>session</SessionToken><Expiration>%s</Expiration>
			</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`, i.issued, until))
	case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token":
		write("metadata token")
	case r.URL.Path == roles && r.Header.Get("X-aws-ec2-metadata-token") == "metadata token":
		write("role")
	case r.URL.Path == roles+"role" && r.Header.Get("X-aws-ec2-metadata-token") == "metadata token", r.URL.Path == "/task", r.URL.Path == "/pod" && r.Header.Get("Authorization") == "pod token":
		i.issued++
		answer := map[string]string{"Code": "Success", "AccessKeyId": fmt.Sprintf("key%d", i.issued), "SecretAccessKey": "secret", "Token": "session", "Expiration": until}
		_ = json.NewEncoder(w).Encode(answer)
	default:
		http.Error(w, "no", http.StatusForbidden)
	}
}

// chain is one whose requests all go to the issuer.
func (i *issuer) chain() *chain {
	return newChain(Options{Region: "eu-central-1", dial: func(transport *http.Transport) {
		transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, i.Listener.Addr().String())
		}
	}}, "")
}

func (i *issuer) change(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f()
}

func tokenFile(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// sources set up what makes each source of passing credentials there.
var sources = map[string]func(t *testing.T, i *issuer){
	"web identity": func(t *testing.T, i *issuer) {
		t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", tokenFile(t, "a token"))
		t.Setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/pitr")
		t.Setenv("AWS_ROLE_SESSION_NAME", "here")
		t.Setenv("AWS_ENDPOINT_URL_STS", i.URL)
	},
	"task": func(t *testing.T, _ *issuer) { t.Setenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/task") },
	"pod": func(t *testing.T, _ *issuer) {
		t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/pod")
		t.Setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", tokenFile(t, "pod token"))
	},
	"instance": func(*testing.T, *issuer) {},
}

func TestPassingCredentialsAreRenewedBeforeTheyEnd(t *testing.T) {
	for name, prepare := range sources {
		t.Run(name, func(t *testing.T) {
			i := issue(t)
			prepare(t, i)
			c, passed := i.chain(), time.Duration(0)
			c.now = func() time.Time { return time.Now().Add(passed) }
			for _, s := range c.sources {
				if provider, ok := s.provider.(*credentials.IAM); ok {
					provider.CurrentTime = c.now
				}
			}
			keeper := credentials.New(c)
			key := func(want string) {
				t.Helper()
				value, err := keeper.GetWithContext(&credentials.CredContext{})
				if err != nil || value.AccessKeyID != want || value.SessionToken != "session" {
					t.Fatalf("got %q (%v), want %s; asked %v", value.AccessKeyID, err, want, i.seen)
				}
			}
			key("key1")
			passed = 45 * time.Minute
			key("key1")
			passed = 50 * time.Minute // behind four fifths of their hour
			i.change(func() { i.broken = true })
			key("key1") // they are good until they end
			passed = 61 * time.Minute
			if _, err := keeper.GetWithContext(&credentials.CredContext{}); err == nil {
				t.Fatal("credentials that have ended were used")
			}
			passed = 51 * time.Minute
			i.change(func() { i.broken, i.valid = false, 3*time.Hour })
			key("key2")
			key("key2")
		})
	}
}

func TestFailureNamesWhatWasTried(t *testing.T) {
	failure := func(c *chain, wants ...string) {
		t.Helper()
		_, err := c.Retrieve()
		if err == nil {
			t.Fatal("credentials came from nowhere")
		}
		for _, want := range wants {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v does not say %q", err, want)
			}
		}
	}
	i := issue(t)
	i.broken = true
	failure(i.chain(), "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: not set", "AWS_WEB_IDENTITY_TOKEN_FILE: not set", "profile default of the AWS credentials file: no such file",
		"_FULL_URI: not set", "instance role at http://169.254.169.254: 500")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	failure(i.chain(), "AWS_EC2_METADATA_DISABLED is true")
	if _, err := i.chain().Retrieve(); !errors.Is(err, store.ErrPermanent) {
		t.Errorf("it would be tried again: %v", err)
	}
	t.Setenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/task")
	failure(i.chain(), "no such file; container credentials of", "500")
	t.Setenv("AWS_PROFILE", "mine")
	failure(i.chain(), "profile mine of the AWS credentials file")
	i.broken = false
	t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", tokenFile(t, "another token"))
	t.Setenv("AWS_ENDPOINT_URL_STS", i.URL)
	failure(i.chain(), "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: not set; web identity of AWS_WEB_IDENTITY_TOKEN_FILE", "unknown token")
	t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/no/such/token")
	failure(i.chain(), "/no/such/token")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "half")
	failure(i.chain(), "only one of the two is set")
}

func TestSharedFilesAndProfilesAreRead(t *testing.T) {
	i := issue(t)
	file := tokenFile(t, "[default]\naws_access_key_id = one\naws_secret_access_key = s\n[other]\naws_access_key_id = two\naws_secret_access_key = s\naws_session_token = tok\n[empty]\nregion = x\n")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	got := func(c *chain) string {
		value, err := c.Retrieve()
		if err != nil {
			return err.Error()
		}
		return value.AccessKeyID + value.SessionToken
	}
	for profile, want := range map[string]string{"": "one", "other": "twotok", "empty": "has no keys", "absent": "profile absent"} {
		if got := got(newChain(Options{}, profile)); !strings.Contains(got, want) {
			t.Errorf("profile %q: %s, want %s", profile, got, want)
		}
	}
	t.Setenv("AWS_PROFILE", "other")
	if got := got(i.chain()); got != "twotok" {
		t.Errorf("AWS_PROFILE: %s", got)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "env")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "s")
	if got := got(i.chain()); got != "env" {
		t.Errorf("the environment comes first, and we got %s", got)
	}
	if len(i.seen) > 0 {
		t.Errorf("somebody was asked: %v", i.seen)
	}
}

func TestRequestsAreSignedWithWhatTheRoleGives(t *testing.T) {
	r, i := record(t, false), issue(t)
	sources["web identity"](t, i)
	opt, err := ParseURL("s3://bucket/p?region=eu-central-1&endpoint=" + r.URL)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "k", nil, store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	h := r.last(t).Header
	if signed := h.Get("Authorization"); !strings.Contains(signed, "Credential=key1/") || h.Get("X-Amz-Security-Token") != "session" {
		t.Errorf("signed with %s and the token %q", signed, h.Get("X-Amz-Security-Token"))
	}
}

func TestAServiceWithoutAHomeGetsItsRole(t *testing.T) {
	i := issue(t)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "")
	t.Setenv("AWS_CONFIG_FILE", "")
	for _, home := range []string{"", "/dev/null", t.TempDir()} {
		t.Setenv("HOME", home)
		if value, err := i.chain().Retrieve(); err != nil || !strings.HasPrefix(value.AccessKeyID, "key") {
			t.Errorf("with the home %q: %v %v", home, value.AccessKeyID, err)
		}
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", t.TempDir()) // named, and no file
	if value, err := i.chain().Retrieve(); err == nil {
		t.Errorf("a file that was named and cannot be read was passed over: %v", value.AccessKeyID)
	}
}
