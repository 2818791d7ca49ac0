package s3

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"pitr/internal/store"
)

// chain finds credentials where the AWS tools look for them, in their order: the environment, a web identity, the shared files, the
// container's endpoint, the instance's role. The first source that is there is the one: if it fails, the next is no substitute, since it would
// be another identity. Credentials that end are renewed when a fifth of their time is left; until they end, a failure to renew them is
// no failure.
type chain struct {
	sources []source
	now     func() time.Time

	// What follows is guarded by the lock of credentials.Credentials.
	current *source
	value   credentials.Value
	again   time.Time // not before, after a renewal that has failed
}

// source is one of them.
type source struct {
	name     string
	absent   func() string // why it is not there; "" when it is
	provider credentials.Provider
}

const (
	// credentialsTimeout bounds a request for credentials: all requests to the store wait for it.
	credentialsTimeout = 10 * time.Second
	// renewPause is between attempts to renew credentials that are still good.
	renewPause = 10 * time.Second
)

// newChain makes the chain of a store, or the one source that a profile is.
func newChain(opt Options, profile string) *chain {
	c := &chain{now: time.Now}
	if profile != "" {
		c.sources = []source{{"profile " + profile + " of the AWS credentials file", func() string { return "" }, &credentials.FileAWSCredentials{Profile: profile}}}
		return c
	}
	// Not the store's transport: its ca_file is for the store. What is on the machine itself is not asked through a proxy.
	remote, local := http.DefaultTransport.(*http.Transport).Clone(), http.DefaultTransport.(*http.Transport).Clone()
	local.Proxy = nil
	if opt.dial != nil {
		opt.dial(remote)
		opt.dial(local)
	}
	client, near := &http.Client{Transport: remote, Timeout: credentialsTimeout}, &http.Client{Transport: local, Timeout: credentialsTimeout}
	metadata := envOr("AWS_EC2_METADATA_SERVICE_ENDPOINT", credentials.DefaultIAMRoleEndpoint)
	c.sources = []source{
		{"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", unset("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), environment{}},
		{"web identity of AWS_WEB_IDENTITY_TOKEN_FILE", unset("AWS_WEB_IDENTITY_TOKEN_FILE"),
			&credentials.IAM{Client: client, Region: opt.Region, Endpoint: strings.TrimSuffix(os.Getenv("AWS_ENDPOINT_URL_STS"), "/")}},
		{"profile " + envOr("AWS_PROFILE", "default") + " of the AWS credentials file", noFile, &credentials.FileAWSCredentials{}},
		{"container credentials of AWS_CONTAINER_CREDENTIALS_RELATIVE_URI or _FULL_URI", unset("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
			&credentials.IAM{Client: near}},
		{"instance role at " + metadata, noMetadata, &credentials.IAM{Client: near, Endpoint: strings.TrimSuffix(metadata, "/")}},
	}
	return c
}

func envOr(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// unset tells that none of some variables is set.
func unset(names ...string) func() string {
	return func() string {
		for _, name := range names {
			if os.Getenv(name) != "" {
				return ""
			}
		}
		return "not set"
	}
}

// noFile tells that there are no keys in the shared files, unless they were asked for by name. Services often have no home, or one that
// they cannot read.
func noFile() string {
	if os.Getenv("AWS_PROFILE") != "" {
		return ""
	}
	named := os.Getenv("AWS_SHARED_CREDENTIALS_FILE") != "" || os.Getenv("AWS_CONFIG_FILE") != ""
	if _, err := os.UserHomeDir(); err != nil && !named {
		return err.Error()
	}
	var unreadable *fs.PathError
	value, err := (&credentials.FileAWSCredentials{}).RetrieveWithCredContext(&credentials.CredContext{Client: &http.Client{Timeout: credentialsTimeout}})
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "no such file"
	case errors.As(err, &unreadable) && !named:
		return err.Error()
	case err != nil && strings.Contains(err.Error(), "does not exist"): // of a section: gopkg.in/ini.v1 has no type for it
		return "no such profile"
	case err == nil && value.AccessKeyID == "":
		return "it has no keys"
	}
	return ""
}

func noMetadata() string {
	if strings.EqualFold(os.Getenv("AWS_EC2_METADATA_DISABLED"), "true") {
		return "AWS_EC2_METADATA_DISABLED is true"
	}
	return ""
}

// environment is AWS_ACCESS_KEY_ID and its like.
type environment struct{}

func (environment) RetrieveWithCredContext(*credentials.CredContext) (credentials.Value, error) {
	v := credentials.Value{AccessKeyID: os.Getenv("AWS_ACCESS_KEY_ID"), SecretAccessKey: os.Getenv("AWS_SECRET_ACCESS_KEY"),
		SessionToken: os.Getenv("AWS_SESSION_TOKEN"), SignerType: credentials.SignatureV4}
	if v.AccessKeyID == "" || v.SecretAccessKey == "" {
		return credentials.Value{}, errors.New("only one of the two is set")
	}
	return v, nil
}

func (e environment) Retrieve() (credentials.Value, error) { return e.RetrieveWithCredContext(nil) }

func (environment) IsExpired() bool { return false }

// Retrieve implements credentials.Provider.
func (c *chain) Retrieve() (credentials.Value, error) {
	return c.RetrieveWithCredContext(&credentials.CredContext{})
}

// IsExpired implements credentials.Provider.
func (c *chain) IsExpired() bool {
	return c.current == nil || c.current.provider.IsExpired() && !c.now().Before(c.again)
}

// RetrieveWithCredContext implements credentials.Provider.
func (c *chain) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	ctx := context.Background()
	if cc != nil && cc.Context != nil {
		ctx = cc.Context
	}
	ctx, cancel := context.WithTimeout(ctx, credentialsTimeout)
	defer cancel()
	value, err := c.retrieve(ctx)
	switch {
	case err == nil:
		c.value, c.again = value, time.Time{}
		return value, nil
	case c.current != nil && c.value.Expiration.After(c.now()):
		c.again = c.now().Add(renewPause)
		return c.value, nil
	}
	return credentials.Value{}, err
}

func (c *chain) retrieve(ctx context.Context) (credentials.Value, error) {
	var tried []string
	for i := range c.sources {
		s := &c.sources[i]
		if why := s.absent(); why != "" {
			tried = append(tried, s.name+": "+why)
			continue
		}
		value, err := s.provider.RetrieveWithCredContext(&credentials.CredContext{Context: ctx, Client: &http.Client{Timeout: credentialsTimeout}})
		if err == nil && (value.AccessKeyID == "" || value.SecretAccessKey == "") {
			err = errors.New("it has no keys")
		}
		if err == nil {
			c.current = s
			return value, nil
		}
		if len(c.sources) == 1 { // a profile that this machine need not have
			err = fmt.Errorf("%w: %w", err, store.ErrDenied)
		}
		if len(tried) > 0 {
			return credentials.Value{}, fmt.Errorf("no credentials: %s; %s: %w", strings.Join(tried, "; "), s.name, err)
		}
		return credentials.Value{}, fmt.Errorf("no credentials: %s: %w", s.name, err)
	}
	return credentials.Value{}, fmt.Errorf("no credentials: %s: %w", strings.Join(tried, "; "), store.ErrPermanent)
}
