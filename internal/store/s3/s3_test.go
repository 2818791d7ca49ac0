package s3_test

import (
	"errors"
	"strconv"
	"testing"

	"pitr/internal/store"
	"pitr/internal/store/s3"
	"pitr/internal/store/s3/s3test"
	"pitr/internal/store/storetest"
)

func open(t *testing.T, url string) store.Store {
	t.Helper()
	opt, err := s3.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	s, err := s3.Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestS3KeepsTheContract(t *testing.T) {
	server := s3test.Start(t)
	n := 0
	storetest.Run(t, func(t *testing.T) store.Store {
		n++
		return open(t, server.URL("prefix"+strconv.Itoa(n)+"/deep"))
	})
}

func TestWhatIsNotCertainIsNotAbsent(t *testing.T) {
	server := s3test.Start(t)
	uncertain := func(name string, s store.Store) {
		t.Helper()
		_, err := s.Get(t.Context(), "key", 0, -1)
		if err == nil || errors.Is(err, store.ErrNotExist) {
			t.Errorf("%s: get said %v", name, err)
		}
		listed := false
		for _, err := range s.List(t.Context(), "", "") {
			listed = listed || err != nil
		}
		if !listed {
			t.Errorf("%s: the listing ended as if it were complete", name)
		}
	}
	uncertain("an absent bucket", open(t, "s3://nosuchbucket/p?region=us-east-1&path_style=true&endpoint="+server.Endpoint))
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	uncertain("a wrong secret", open(t, server.URL("p")))
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3test.SecretKey)
	s := open(t, server.URL("p"))
	server.Kill()
	uncertain("a dead server", s)
	server.Restart()
	if _, err := s.Get(t.Context(), "key", 0, -1); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("the server is back, and get says %v", err)
	}
}

func TestURLsAreChecked(t *testing.T) {
	for _, url := range []string{"s3://", "file:///x", "s3://b?endpiont=http://x", "s3://b?path_style=maybe"} {
		if opt, err := s3.ParseURL(url); err == nil {
			t.Errorf("%s was read as %+v", url, opt)
		}
	}
	if _, err := s3.Open(s3.Options{Bucket: "b", Endpoint: "host:80"}); err == nil {
		t.Error("an endpoint without a scheme was accepted")
	}
}
