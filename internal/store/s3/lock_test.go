package s3_test

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"pitr/internal/store"
	"pitr/internal/store/s3"
	"pitr/internal/store/s3/s3test"
	"pitr/internal/store/storetest"
)

func openLocked(t *testing.T, url string) *s3.Store {
	t.Helper()
	opt, err := s3.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	opt.Lock = s3.Lock{For: 30 * 24 * time.Hour}
	s, err := s3.Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestBucketWithVersionsAndRetentionKeepsTheContract(t *testing.T) {
	server := s3test.StartLocking(t)
	n := 0
	storetest.Run(t, func(t *testing.T) store.Store {
		n++
		return openLocked(t, server.URL("prefix"+strconv.Itoa(n)))
	})
}

func TestWhatIsRetainedCannotBeDestroyedThoughItCanBeHidden(t *testing.T) {
	server := s3test.StartLocking(t)
	s := openLocked(t, server.URL("p"))
	if err := s.Put(t.Context(), "key", []byte("content"), store.PutOptions{IfAbsent: true}); err != nil {
		t.Fatal(err)
	}
	info, err := server.Client().StatObject(t.Context(), server.Bucket, "p/key", minio.StatObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	until, err := time.Parse(time.RFC3339, info.Metadata.Get("X-Amz-Object-Lock-Retain-Until-Date"))
	if err != nil || info.Metadata.Get("X-Amz-Object-Lock-Mode") != "GOVERNANCE" || time.Until(until) < 29*24*time.Hour {
		t.Fatalf("the object has %v: %v", info.Metadata, err)
	}
	if err := server.Client().RemoveObject(t.Context(), server.Bucket, "p/key", minio.RemoveObjectOptions{VersionID: info.VersionID}); err == nil {
		t.Fatal("a retained version was destroyed")
	} else {
		t.Logf("the server's answer: %+v", minio.ToErrorResponse(err))
	}
	err = s.Delete(t.Context(), "key")
	switch {
	case errors.Is(err, store.ErrLocked): // a server that refuses to hide it too
	case err != nil:
		t.Fatal(err)
	default:
		if _, err := s.Get(t.Context(), "key", 0, -1); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("what was removed is there: %v", err)
		}
		for object, err := range s.List(t.Context(), "", "") {
			t.Errorf("the listing shows %v %v", object, err)
		}
	}
	body, err := server.Client().GetObject(t.Context(), server.Bucket, "p/key", minio.GetObjectOptions{VersionID: info.VersionID})
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, 7)
	if _, err := body.Read(content); string(content) != "content" {
		t.Errorf("its version holds %q: %v", content, err)
	}
}

func TestABucketWithoutObjectLockIsFoundOut(t *testing.T) {
	server := s3test.Start(t)
	if detail, err := openLocked(t, server.URL("p")).ProbeLock(t.Context()); err == nil {
		t.Errorf("a bucket without Object Lock passed: %s", detail)
	} else {
		t.Log(err)
	}
	locking := s3test.StartLocking(t)
	detail, err := openLocked(t, locking.URL("p")).ProbeLock(t.Context())
	if err != nil || !strings.Contains(detail, "retained") {
		t.Errorf("a bucket with Object Lock: %q, %v", detail, err)
	}
}

func TestWhoMayNotDeleteIsToldSoAndAnotherProfileMay(t *testing.T) {
	server := s3test.StartWithUsers(t)
	server.AddUser("writer", "writer-secret", s3test.Writer...)
	t.Setenv("AWS_ACCESS_KEY_ID", "writer")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "writer-secret")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", s3test.CredentialsFile(t, "expiry", s3test.AccessKey, s3test.SecretKey))
	s := open(t, server.URL("p"))
	if err := s.Put(t.Context(), "key", []byte("content"), store.PutOptions{IfAbsent: true}); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), "key"); !errors.Is(err, store.ErrDenied) {
		t.Errorf("a delete that is not allowed said %v", err)
	}
	absent := open(t, server.URL("p")+"&expiry_profile=nobody")
	if err := absent.Delete(t.Context(), "key"); !errors.Is(err, store.ErrDenied) || !strings.Contains(err.Error(), "profile nobody") {
		t.Errorf("a delete with a profile that is not here said %v", err)
	}
	if content, err := store.ReadAll(t.Context(), absent, "key", 100); err != nil || string(content) != "content" {
		t.Errorf("reading needs no such profile: %q %v", content, err)
	}
	other := open(t, server.URL("p")+"&expiry_profile=expiry")
	if err := other.Delete(t.Context(), "key"); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(t.Context(), "key", 0, -1); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestAServerThatPassesOverWhatTheURLSaysIsFoundOut(t *testing.T) {
	server := s3test.Start(t) // it has no encryption and one class
	for query, want := range map[string]string{
		"": "", "&storage_class=STANDARD": "",
		"&sse=AES256":                            `it says that it encrypts with "", sse is AES256`,
		"&sse=aws:kms&storage_class=STANDARD_IA": "it keeps objects in class STANDARD, storage_class is STANDARD_IA",
	} {
		opt, err := s3.ParseURL(server.URL("p") + query)
		if err != nil {
			t.Fatal(err)
		}
		opt.Use = func(string) store.Use { return store.Bulk }
		s, err := s3.Open(opt)
		if err != nil {
			t.Fatal(err)
		}
		problem, err := s.ProbeHeaders(t.Context())
		if err != nil || !strings.Contains(problem, want) || want == "" && problem != "" {
			t.Errorf("%s: %q, %v", query, problem, err)
		}
		for object := range s.List(t.Context(), "", "") {
			t.Errorf("%s was left behind", object.Key)
		}
	}
}
