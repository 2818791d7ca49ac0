// Package s3 keeps objects in a bucket of any S3-compatible server. It owns minio-go. Puts are single requests whose SHA-256 the
// server checks; conditional puts use If-None-Match.
package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"pitr/internal/store"
)

// Options says where the bucket is. Credentials come from AWS_ACCESS_KEY_ID and its like, the AWS credentials file
// (AWS_SHARED_CREDENTIALS_FILE, AWS_PROFILE) and the instance's role, in this order.
type Options struct {
	Bucket    string
	Prefix    string // of every key; without slashes at its ends
	Endpoint  string // http://host:port or https://host; empty: Amazon's for the region
	Region    string
	PathStyle bool // bucket in the path instead of the host name; always so when the endpoint's host is an address
}

// ParseURL reads s3://bucket/prefix?endpoint=…&region=…&path_style=true.
func ParseURL(text string) (Options, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "s3" || u.Host == "" {
		return Options{}, fmt.Errorf("store %q: want s3://bucket/prefix?endpoint=…&region=…", text)
	}
	opt := Options{Bucket: u.Host, Prefix: strings.Trim(u.Path, "/")}
	for name, values := range u.Query() {
		value := values[len(values)-1]
		switch name {
		case "endpoint":
			opt.Endpoint = value
		case "region":
			opt.Region = value
		case "path_style":
			if opt.PathStyle, err = strconv.ParseBool(value); err != nil {
				return Options{}, fmt.Errorf("store %q: path_style is true or false, not %q", text, value)
			}
		default:
			return Options{}, fmt.Errorf("store %q: unknown parameter %s; endpoint, region and path_style exist", text, name)
		}
	}
	return opt, nil
}

// Store is a store.Store in one bucket.
type Store struct {
	core   minio.Core
	bucket string
	prefix string // "" or ends in a slash
}

var _ store.Store = (*Store)(nil)

// Open prepares the client. It sends nothing yet: a bucket that cannot be reached shows with the first request.
func Open(opt Options) (*Store, error) {
	endpoint, secure := "s3.amazonaws.com", true
	if opt.Endpoint != "" {
		u, err := url.Parse(opt.Endpoint)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" {
			return nil, fmt.Errorf("open store: endpoint %q: want http://host:port or https://host", opt.Endpoint)
		}
		endpoint, secure = u.Host, u.Scheme == "https"
	}
	lookup := minio.BucketLookupAuto
	if opt.PathStyle {
		lookup = minio.BucketLookupPath
	}
	transport, err := minio.DefaultTransport(secure)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	transport.DisableCompression = true
	client, err := minio.New(endpoint, &minio.Options{
		Creds: credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{Client: &http.Client{Transport: transport}},
		}),
		Secure: secure, Region: opt.Region, BucketLookup: lookup, Transport: transport,
		MaxRetries: 1, // store.Retry decides
	})
	if err != nil {
		return nil, fmt.Errorf("open store s3://%s: %w", opt.Bucket, err)
	}
	s := &Store{core: minio.Core{Client: client}, bucket: opt.Bucket}
	if opt.Prefix != "" {
		s.prefix = opt.Prefix + "/"
	}
	return s, nil
}

// translate turns the server's answer into the contract's errors. Only NoSuchKey is ErrNotExist: an absent bucket, a refused
// credential or an answer without a code say nothing about the object.
func translate(err error) error {
	if err == nil {
		return nil
	}
	response := minio.ToErrorResponse(err)
	switch {
	case response.Code == minio.NoSuchKey:
		return store.ErrNotExist
	case response.Code == minio.PreconditionFailed || response.StatusCode == http.StatusPreconditionFailed:
		return store.ErrExist
	case response.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return store.ErrRange
	case response.Code == minio.NoSuchBucket:
		return fmt.Errorf("the bucket does not exist: %w: %w", err, store.ErrPermanent)
	case response.StatusCode == http.StatusForbidden || response.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("the server refuses these credentials (%s): %w: %w", response.Code, err, store.ErrPermanent)
	}
	return err
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, content []byte, opt store.PutOptions) error {
	if err := store.CheckKey(key); err != nil {
		return fmt.Errorf("key %q: %w", key, err)
	}
	options := minio.PutObjectOptions{ContentType: "application/octet-stream", DisableMultipart: true}
	if opt.IfAbsent {
		options.SetMatchETagExcept("*")
	}
	sum := sha256.Sum256(content)
	_, err := s.core.PutObject(ctx, s.bucket, s.prefix+key, bytes.NewReader(content), int64(len(content)), "", hex.EncodeToString(sum[:]), options)
	return translate(err)
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := store.CheckKey(key); err != nil {
		return nil, fmt.Errorf("key %q: %w", key, err)
	}
	if length == 0 {
		return s.getNothing(ctx, key, offset)
	}
	options := minio.GetObjectOptions{}
	switch {
	case offset < 0:
		return nil, store.ErrRange
	case length > 0:
		options.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	case offset > 0:
		options.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	body, _, _, err := s.core.GetObject(ctx, s.bucket, s.prefix+key, options)
	if err = translate(err); err != nil {
		if errors.Is(err, store.ErrRange) && offset == 0 {
			return io.NopCloser(bytes.NewReader(nil)), nil // a range from zero of an empty object
		}
		return nil, err
	}
	return body, nil
}

// getNothing answers a range of length zero, which HTTP cannot express.
func (s *Store) getNothing(ctx context.Context, key string, offset int64) (io.ReadCloser, error) {
	info, err := s.core.StatObject(ctx, s.bucket, s.prefix+key, minio.StatObjectOptions{})
	if err = translate(err); err != nil {
		return nil, err
	}
	if offset < 0 || offset > 0 && offset >= info.Size {
		return nil, store.ErrRange
	}
	return io.NopCloser(bytes.NewReader(nil)), nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix, after string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		options := minio.ListObjectsOptions{Prefix: s.prefix + prefix, Recursive: true}
		if after != "" {
			options.StartAfter = s.prefix + after
		}
		for object := range s.core.ListObjectsIter(ctx, s.bucket, options) {
			if object.Err != nil {
				yield(store.Object{}, translate(object.Err))
				return
			}
			key := strings.TrimPrefix(object.Key, s.prefix)
			if key <= after {
				continue // servers that do not know start-after
			}
			if !yield(store.Object{Key: key, Size: object.Size, Modified: object.LastModified}, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(store.Object{}, err)
		}
	}
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := store.CheckKey(key); err != nil {
		return fmt.Errorf("key %q: %w", key, err)
	}
	err := translate(s.core.RemoveObject(ctx, s.bucket, s.prefix+key, minio.RemoveObjectOptions{}))
	if errors.Is(err, store.ErrNotExist) {
		return nil
	}
	return err
}
