package auth

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pitr/config"
)

// asking is a database that knows alice.
func asking(t *testing.T, cfg config.Auth, listed map[string]config.User) (users *Users, asked *atomic.Int64, password *atomic.Value) {
	t.Helper()
	asked, password = &atomic.Int64{}, &atomic.Value{}
	password.Store("right")
	cfg.Type, cfg.User = "scram-sha-256", "asker"
	users, err := Load(cfg, listed, func(_ context.Context, database, user string) (string, bool, error) {
		asked.Add(1)
		switch {
		case user == "broken":
			return "", false, errors.New("no answer")
		case user == "malformed":
			return "SCRAM-SHA-256$x", true, nil
		case user == "expired":
			return "", true, nil
		}
		return password.Load().(string), user == "alice" && database == "db", nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return users, asked, password
}

func TestAnswersAreRememberedForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		users, asked, password := asking(t, config.Auth{QueryCacheMax: 10, QueryCacheLifetime: config.Duration(time.Minute)}, map[string]config.User{"listed": {Password: "x"}})
		try := func(name, password string, good bool, questions int64) {
			t.Helper()
			if _, _, err := login(t, users, name, password); good != (err == nil) || !good && !isRefused(err, name) {
				t.Errorf("%s with %s: %v", name, password, err)
			}
			if got := asked.Swap(0); got != questions {
				t.Errorf("%s with %s: %d questions, want %d", name, password, got, questions)
			}
		}
		try("listed", "x", true, 0)
		try("alice", "right", true, 1)
		try("alice", "right", true, 0)
		try("nobody", "right", false, 1)
		try("nobody", "right", false, 0)
		try("expired", "", false, 1)
		try("expired", "right", false, 0)
		try(strings.Repeat("x", userNameMax), "right", false, 0)
		password.Store("changed")
		try("alice", "right", true, 0)    // for as long as it is remembered
		try("alice", "changed", false, 0) // nothing is asked again at once
		<-time.After(staleAfter + time.Millisecond)
		try("alice", "changed", false, 0) // this failure makes the next one ask
		try("alice", "changed", true, 1)
		<-time.After(time.Minute)
		try("alice", "changed", true, 1)
	})
}

func TestAnswersAreBounded(t *testing.T) {
	users, asked, _ := asking(t, config.Auth{QueryCacheMax: 3, QueryCacheLifetime: config.Duration(time.Hour)}, nil)
	for i := range 20 {
		if _, _, err := login(t, users, fmt.Sprint("user", i), "x"); err == nil {
			t.Error("let in")
		}
	}
	if n := len(users.queries.entries); n > 3 || asked.Load() != 20 || users.QueryCacheOverflows() != 17 {
		t.Errorf("%d answers are kept, %d questions, %d overflows", n, asked.Load(), users.QueryCacheOverflows())
	}
}

func TestQuestionsThatFailAreNoAnswers(t *testing.T) {
	users, asked, _ := asking(t, config.Auth{QueryCacheMax: 3, QueryCacheLifetime: config.Duration(time.Hour)}, nil)
	for _, name := range []string{"broken", "broken", "malformed"} {
		_, err := users.Begin(t.Context(), Request{User: name, Lookup: "db"})
		var denial *Denial
		if err == nil || errors.As(err, &denial) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if asked.Load() != 3 || len(users.queries.entries) != 0 {
		t.Errorf("%d questions, %d answers", asked.Load(), len(users.queries.entries))
	}
	if _, _, err := func() (string, Credentials, error) {
		ask := begin(t, users, Request{User: "alice"}, Mechanism)
		_, _, err := ask.Step([]byte("n,,n=,r=x"))
		return "", Credentials{}, err
	}(); err != nil || asked.Load() != 3 {
		t.Errorf("without a database to ask: %v, %d questions", err, asked.Load())
	}
}

func TestOneQuestionForAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan string)
		var asked atomic.Int64
		users, err := Load(config.Auth{Type: "trust", QueryCacheMax: 3, QueryCacheLifetime: config.Duration(time.Hour)}, nil, func(context.Context, string, string) (string, bool, error) {
			asked.Add(1)
			return <-answer, true, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		results := make(chan error)
		for range 5 {
			go func() {
				_, err := users.Begin(context.Background(), Request{User: "alice", Lookup: "db"})
				results <- err
			}()
		}
		impatient, cancel := context.WithCancel(context.Background())
		synctest.Wait()
		cancel()
		if _, err := users.Begin(impatient, Request{User: "alice", Lookup: "db"}); !errors.Is(err, context.Canceled) {
			t.Errorf("who cannot wait got %v", err)
		}
		answer <- "x"
		for range 5 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		if asked.Load() != 1 {
			t.Errorf("%d questions", asked.Load())
		}
	})
}
