package s3

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/encrypt"

	"pitr/internal/store"
)

// Options says where the bucket is and how objects are put there. Where credentials come from: chain.
type Options struct {
	Bucket        string
	Prefix        string // of every key; without slashes at its ends
	Endpoint      string // http://host:port or https://host; empty: Amazon's for the region
	Region        string
	Profile       string // of the AWS credentials file, which is then the only source of credentials; empty: see chain
	ExpiryProfile string // the same for deletes alone; empty: they are like all other requests
	Style         Style
	CAFile        string // PEM, of authorities that are trusted besides the system's
	SSE           string // "", AES256 or aws:kms
	SSEKeyID      string // of KMS; empty: the bucket's
	StorageClass  string // of Bulk objects; empty: the bucket's

	Lock Lock
	Use  func(key string) store.Use // what objects are for; nil: all are Kept

	dial func(transport *http.Transport) // tests change where connections go
}

// Style says where the bucket's name stands.
type Style int

const (
	// AnyStyle is virtual hosts for Amazon's endpoints and paths for others.
	AnyStyle Style = iota
	// PathStyle puts it into the path: https://host/bucket/key.
	PathStyle
	// HostStyle puts it before the host: https://bucket.host/key.
	HostStyle
)

// ParseURL reads s3://bucket/prefix?endpoint=…&region=… with the parameters that docs/OPERATIONS.md lists, each at most once.
func ParseURL(text string) (Options, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "s3" || u.Host == "" {
		return Options{}, fmt.Errorf("store %q: want s3://bucket/prefix?endpoint=…&region=…", text)
	}
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Options{}, fmt.Errorf("store %q: %w", text, err)
	}
	opt := Options{Bucket: u.Host, Prefix: strings.Trim(u.Path, "/")}
	for name, list := range values {
		if len(list) > 1 {
			return Options{}, fmt.Errorf("store %q: %s stands there %d times", text, name, len(list))
		}
		if err := opt.set(name, list[0]); err != nil {
			return Options{}, fmt.Errorf("store %q: %w", text, err)
		}
	}
	if err := opt.check(); err != nil {
		return Options{}, fmt.Errorf("store %q: %w", text, err)
	}
	return opt, nil
}

// parameters are those of a store's URL.
const parameters = "endpoint, region, path_style, ca_file, profile, expiry_profile, sse, sse_kms_key_id and storage_class"

func (o *Options) set(name, value string) error {
	field := map[string]*string{"endpoint": &o.Endpoint, "region": &o.Region, "profile": &o.Profile, "expiry_profile": &o.ExpiryProfile,
		"ca_file": &o.CAFile, "sse": &o.SSE, "sse_kms_key_id": &o.SSEKeyID, "storage_class": &o.StorageClass}[name]
	switch {
	case name == "path_style" && value == "true":
		o.Style = PathStyle
	case name == "path_style" && value == "false":
		o.Style = HostStyle
	case name == "path_style":
		return fmt.Errorf("path_style is true or false, not %q", value)
	case field == nil:
		return fmt.Errorf("unknown parameter %s; %s exist", name, parameters)
	case value == "":
		return fmt.Errorf("%s is empty", name)
	default:
		*field = value
	}
	return nil
}

// storageClasses are those from which an object can be read at once: see https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html.
var storageClasses = []string{"STANDARD", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR", "REDUCED_REDUNDANCY", "EXPRESS_ONEZONE"}

// check finds what cannot work together.
func (o *Options) check() error {
	host, secure, err := o.host()
	switch {
	case err != nil:
		return err
	case o.Style == HostStyle && isAddress(host):
		return fmt.Errorf("path_style=false puts the bucket's name before that of the host, but %s is an address", host)
	case o.CAFile != "" && !strings.HasPrefix(o.CAFile, "/"):
		return errors.New("ca_file must be an absolute path: restore_command runs in another directory")
	case o.CAFile != "" && !secure:
		return errors.New("ca_file says whom to trust, but the endpoint is http://")
	case o.SSE != "" && o.SSE != "AES256" && o.SSE != "aws:kms":
		return fmt.Errorf("sse is AES256 or aws:kms, not %q", o.SSE)
	case o.SSEKeyID != "" && o.SSE != "aws:kms":
		return errors.New("sse_kms_key_id needs sse=aws:kms")
	case o.StorageClass == "GLACIER" || o.StorageClass == "DEEP_ARCHIVE":
		return fmt.Errorf("storage_class %s cannot be read before hours have passed, so that nothing could be restored", o.StorageClass)
	case strings.ContainsFunc(o.StorageClass, func(r rune) bool { return r != '_' && (r < 'A' || r > 'Z') && (r < '0' || r > '9') }):
		return fmt.Errorf("storage_class %q is no name of a class, for example one of %s", o.StorageClass, strings.Join(storageClasses, ", "))
	}
	return nil
}

// host is the endpoint's, with its port, and whether it speaks TLS.
func (o *Options) host() (host string, secure bool, err error) {
	if o.Endpoint == "" {
		return "s3.amazonaws.com", true, nil
	}
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return "", false, fmt.Errorf("endpoint %q: want http://host:port or https://host", o.Endpoint)
	}
	return u.Host, u.Scheme == "https", nil
}

func isAddress(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return net.ParseIP(strings.Trim(host, "[]")) != nil
}

func (o *Options) lookup() minio.BucketLookupType {
	return map[Style]minio.BucketLookupType{AnyStyle: minio.BucketLookupAuto, PathStyle: minio.BucketLookupPath, HostStyle: minio.BucketLookupDNS}[o.Style]
}

// newTransport trusts the system's authorities, and those of CAFile.
func (o *Options) newTransport(secure bool) (*http.Transport, error) {
	transport, err := minio.DefaultTransport(secure)
	if err != nil {
		return nil, err
	}
	transport.DisableCompression = true
	if o.dial != nil {
		o.dial(transport)
	}
	if o.CAFile == "" {
		return transport, nil
	}
	pem, err := os.ReadFile(o.CAFile)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("the system's certificate authorities: %w", err)
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ca_file: %s holds no certificate in PEM", o.CAFile)
	}
	if transport.TLSClientConfig == nil {
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	transport.TLSClientConfig.RootCAs = roots
	return transport, nil
}

// encryption is what the server is asked to encrypt objects with; nil: what the bucket says.
func (o *Options) encryption() (encrypt.ServerSide, error) {
	switch o.SSE {
	case "AES256":
		return encrypt.NewSSE(), nil
	case "aws:kms":
		return encrypt.NewSSEKMS(o.SSEKeyID, nil)
	}
	return nil, nil
}
