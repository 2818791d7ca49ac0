package s3

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"pitr/internal/store"
)

// Lock is the retention under S3 Object Lock that objects are put with. docs/decisions/0012-object-stores.md.
type Lock struct {
	For        time.Duration // from the put on; zero: none
	Compliance bool          // nobody can shorten it; otherwise who has s3:BypassGovernanceRetention can
}

// briefLock is the most for which Brief objects are retained: lifecycle rules count in days, so that what has been removed from a bucket
// with versions stays for so long anyway.
const briefLock = 24 * time.Hour

func (s *Store) use(key string) store.Use {
	if s.opt.Use == nil {
		return store.Kept
	}
	return s.opt.Use(key)
}

// putOptions are the headers of a put. Classes other than the bucket's own bill small objects, and such that soon go, as if they were
// large and old, and so are for Bulk alone.
func (s *Store) putOptions(use store.Use) minio.PutObjectOptions {
	options := minio.PutObjectOptions{ContentType: "application/octet-stream", DisableMultipart: true, ServerSideEncryption: s.sse}
	if use == store.Bulk {
		options.StorageClass = s.opt.StorageClass
	}
	span := s.opt.Lock.For
	switch use {
	case store.Brief:
		span = min(span, briefLock)
	case store.Passing:
		span = 0
	}
	s.lock(&options, span)
	return options
}

func (s *Store) unlock(options *minio.PutObjectOptions) {
	options.Mode, options.RetainUntilDate = "", time.Time{}
}

func (s *Store) lock(options *minio.PutObjectOptions, span time.Duration) {
	if span == 0 {
		return
	}
	options.Mode = minio.Governance
	if s.opt.Lock.Compliance {
		options.Mode = minio.Compliance
	}
	// Rounded up: the header has no fractions.
	options.RetainUntilDate = s.now().Add(span + time.Second - 1).Truncate(time.Second)
}

// isLocked recognises the answer to a delete of what is retained. Servers have no common code for it: Amazon and MinIO say AccessDenied
// and explain, versitygw explains.
func isLocked(err error) bool {
	if err == nil {
		return false
	}
	response := minio.ToErrorResponse(err)
	if response.StatusCode != http.StatusForbidden && response.StatusCode != http.StatusBadRequest {
		return false
	}
	text := strings.ToLower(response.Code + " " + response.Message)
	for _, word := range []string{"objectlock", "object lock", "object is locked", "worm protected", "retention period"} {
		if strings.Contains(text, word) {
			return true
		}
	}
	return false
}

// probeLock is how long the object stays by which ProbeLock tries.
const probeLock = time.Minute

// ProbeLock puts an object with a short retention, sees whether the server keeps that, and removes the object, of which a version stays for
// a minute.
func (s *Store) ProbeLock(ctx context.Context) (detail string, err error) {
	key := store.ProbePrefix + "lock-" + rand.Text()
	options := s.putOptions(store.Passing)
	s.lock(&options, probeLock)
	options.Mode = minio.Governance // of a probe nobody needs more
	if err := s.put(ctx, key, []byte("pitr puts this to see whether the bucket can retain objects"), options); err != nil {
		return "", err
	}
	info, err := s.core.StatObject(ctx, s.opt.Bucket, s.prefix+key, minio.StatObjectOptions{})
	switch err = translate(err); {
	case err != nil:
	case info.Metadata.Get("X-Amz-Object-Lock-Mode") != "":
		detail = fmt.Sprintf("objects are retained for %s", s.opt.Lock.For)
	case info.VersionID == "":
		err = errors.New("the server took an object with a retention, and keeps neither the retention nor versions")
	default:
		detail = "the bucket takes objects with a retention, and does not show it to these credentials (s3:GetObjectRetention)"
	}
	deleted := s.Delete(ctx, key)
	if errors.Is(deleted, store.ErrDenied) || errors.Is(deleted, store.ErrLocked) {
		deleted = nil // a version of it would have stayed anyway
	}
	return detail, errors.Join(err, deleted)
}

// ProbeHeaders puts an object and sees whether the server has done with it what the URL says: servers pass over what they do not know.
// problem says what it has not done; "" when it has, or nothing was asked.
func (s *Store) ProbeHeaders(ctx context.Context) (problem string, err error) {
	if s.opt.SSE == "" && s.opt.StorageClass == "" {
		return "", nil
	}
	key := store.ProbePrefix + "headers-" + rand.Text()
	options := s.putOptions(store.Bulk)
	s.unlock(&options)
	if err := s.put(ctx, key, []byte("pitr puts this to see how the server stores it, and removes it"), options); err != nil {
		return "", err
	}
	info, err := s.core.StatObject(ctx, s.opt.Bucket, s.prefix+key, minio.StatObjectOptions{})
	if err := translate(err); err != nil {
		return "", err
	}
	var problems []string
	if got := info.Metadata.Get("X-Amz-Server-Side-Encryption"); s.opt.SSE != "" && got != s.opt.SSE {
		problems = append(problems, fmt.Sprintf("it says that it encrypts with %q, sse is %s: who has its disks may read what is there", got, s.opt.SSE))
	}
	if got := cmp.Or(info.Metadata.Get("X-Amz-Storage-Class"), "STANDARD"); s.opt.StorageClass != "" && got != s.opt.StorageClass {
		problems = append(problems, fmt.Sprintf("it keeps objects in class %s, storage_class is %s: they cost what that costs", got, s.opt.StorageClass))
	}
	err = s.Delete(ctx, key)
	if errors.Is(err, store.ErrDenied) || errors.Is(err, store.ErrLocked) {
		err = nil // a sweep removes it
	}
	return strings.Join(problems, "; "), err
}
