// Package s3 keeps objects in a bucket of any S3-compatible server. It owns minio-go. Puts are single requests whose SHA-256 the
// server checks; conditional puts use If-None-Match.
package s3

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/encrypt"

	"pitr/internal/store"
)

// Store is a store.Store in one bucket.
type Store struct {
	core    minio.Core
	remover minio.Core // with the credentials that may delete
	opt     Options
	prefix  string // "" or ends in a slash
	sse     encrypt.ServerSide
	dated   *dated
	now     func() time.Time
}

var (
	_ store.Store = (*Store)(nil)
	_ store.Dated = (*Store)(nil)
)

// Open prepares the client. It sends nothing yet: a bucket that cannot be reached shows with the first request.
func Open(opt Options) (*Store, error) {
	endpoint, secure, err := opt.host()
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	transport, err := opt.newTransport(secure)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{opt: opt, now: time.Now, dated: &dated{RoundTripper: transport, now: time.Now}}
	client := func(profile string) (minio.Core, error) {
		made, err := minio.New(endpoint, &minio.Options{
			Creds:  credentials.New(newChain(opt, profile)),
			Secure: secure, Region: opt.Region, BucketLookup: opt.lookup(), Transport: s.dated,
			MaxRetries: 1, // store.Retry decides
		})
		if err != nil {
			return minio.Core{}, fmt.Errorf("open store s3://%s: %w", opt.Bucket, err)
		}
		return minio.Core{Client: made}, nil
	}
	if s.core, err = client(opt.Profile); err != nil {
		return nil, err
	}
	s.remover = s.core
	if opt.ExpiryProfile != "" {
		if s.remover, err = client(opt.ExpiryProfile); err != nil {
			return nil, err
		}
	}
	if s.sse, err = opt.encryption(); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
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
	case response.Code == "RequestTimeTooSkewed": // https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
		return fmt.Errorf("the clock of this machine and the server's differ too much: %w: %w", err, store.ErrPermanent)
	case response.StatusCode == http.StatusForbidden || response.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("the server refuses these credentials (%s): %w: %w: %w", response.Code, err, store.ErrDenied, store.ErrPermanent)
	}
	return err
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, content []byte, opt store.PutOptions) error {
	if err := store.CheckKey(key); err != nil {
		return fmt.Errorf("key %q: %w", key, err)
	}
	options := s.putOptions(s.use(key))
	if opt.IfAbsent {
		options.SetMatchETagExcept("*")
	}
	return s.put(ctx, key, content, options)
}

func (s *Store) put(ctx context.Context, key string, content []byte, options minio.PutObjectOptions) error {
	sum := sha256.Sum256(content)
	md5Base64 := ""
	if options.Mode != "" { // S3 takes a put with a retention only with this sum, or with one of its newer ones
		old := md5.Sum(content)
		md5Base64 = base64.StdEncoding.EncodeToString(old[:])
	}
	_, err := s.core.PutObject(ctx, s.opt.Bucket, s.prefix+key, bytes.NewReader(content), int64(len(content)), md5Base64, hex.EncodeToString(sum[:]), options)
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
	body, _, _, err := s.core.GetObject(ctx, s.opt.Bucket, s.prefix+key, options)
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
	info, err := s.core.StatObject(ctx, s.opt.Bucket, s.prefix+key, minio.StatObjectOptions{})
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
		for object := range s.core.ListObjectsIter(ctx, s.opt.Bucket, options) {
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
	err := s.remover.RemoveObject(ctx, s.opt.Bucket, s.prefix+key, minio.RemoveObjectOptions{})
	switch translated := translate(err); {
	case errors.Is(translated, store.ErrNotExist):
		return nil
	case isLocked(err):
		return fmt.Errorf("%w: %w: %w", store.ErrLocked, err, store.ErrPermanent)
	default:
		return translated
	}
}
