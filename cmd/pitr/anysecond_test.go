package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
)

// How many instants TestAnySecond asks for, and the seed of all that is random in it.
const (
	secondsEnv     = "PITR_SECONDS"
	secondsSeedEnv = "PITR_SECONDS_SEED"
	secondsDefault = 8
)

// instant is one that is asked for.
type instant struct {
	kind string
	at   time.Time
	text string // as it is written
}

// tally is what became of the instants.
type tally map[string]int

// TestAnySecond lets a server do all that moves files about, and restores to instants of all kinds. What comes back must be what was there then, row by row, and what the plan
// said; or it is refused, for the reason that there is. PITR_SECONDS=100 asks for more instants than `make test` does.
func TestAnySecond(t *testing.T) {
	count, seed := secondsDefault, rand.Uint64()
	for name, read := range map[string]func(string) error{
		secondsEnv:     func(text string) (err error) { count, err = strconv.Atoi(text); return err },
		secondsSeedEnv: func(text string) (err error) { seed, err = strconv.ParseUint(text, 10, 64); return err },
	} {
		if text := os.Getenv(name); text != "" {
			if err := read(text); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	t.Logf("%s=%d", secondsSeedEnv, seed)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute+time.Duration(count)*20*time.Second)
	defer cancel()
	s := newSeconds(ctx, t, rand.New(rand.NewPCG(seed, 0)))
	s.work(ctx, 24+2*count)
	found := tally{}
	for i := range count {
		found[s.try(ctx, s.choose(i))]++
	}
	t.Logf("PostgreSQL %d, %d commits, %d backups: %v", s.install.Major, len(s.moments), len(s.backups), found)
	if found["restored"] == 0 || found["refused"] == 0 {
		t.Error("nothing was restored, or nothing refused: the test shows nothing")
	}
}

// work does so many steps, with rests and backups between them.
func (s *seconds) work(ctx context.Context, steps int) {
	s.t.Helper()
	s.sql(ctx, "postgres", "create table aside (t text)")
	s.makeTable(ctx, "postgres")
	s.look(ctx)
	for i := range steps {
		switch {
		case i == steps/10, i == steps/2, i == steps*3/4:
			s.takeBackup(ctx)
		case i == steps/3:
			s.rest(ctx, clockSetBack.Add(-time.Minute).Sub(s.now(ctx))) // to the hour that is there twice
		case i == steps*2/3:
			s.rest(ctx, time.Hour)
		}
		s.step(ctx)
	}
	for len(s.prepared) > 1 {
		s.endPrepared(ctx)
		s.look(ctx)
	}
	s.rest(ctx, 10*time.Minute)
	s.step(ctx)
	s.archived(ctx)
	if err := json.Unmarshal([]byte(s.mustPitr(ctx, "backups", "--json")), &s.backups); err != nil {
		s.t.Fatal(err)
	}
	slices.SortFunc(s.backups, func(a, b backupJSON) int { return a.StopTime.Compare(b.StopTime) })
}

// takeBackup has either the server or pitr read the files.
func (s *seconds) takeBackup(ctx context.Context) {
	s.t.Helper()
	config, err := os.ReadFile(s.config)
	if err != nil {
		s.t.Fatal(err)
	}
	source := []string{"server", "files"}[s.rng.IntN(2)]
	text := strings.NewReplacer(`backup: {schedule: ""}`, `backup: {schedule: "", source: `+source+"}",
		"postgres: {", "postgres: {data_directory: "+s.node.options.Dir+", ").Replace(string(config))
	if text == string(config) {
		s.t.Fatal("the configuration is another than it was")
	}
	if err := os.WriteFile(s.config, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.mustPitr(ctx, "backup")
	if err := os.WriteFile(s.config, config, 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.t.Logf("a backup from source %s", source)
}

// choose draws an instant; each kind comes by turns.
func (s *seconds) choose(i int) instant {
	micro := func(kind string, at time.Time) instant {
		return instant{kind, at, at.UTC().Format("2006-01-02 15:04:05.999999Z07:00")}
	}
	any := s.moments[s.rng.IntN(len(s.moments))]
	first, last := s.moments[0].at, s.moments[len(s.moments)-1].at
	zone, err := time.LoadLocation(berlin)
	if err != nil {
		s.t.Fatal(err)
	}
	switch i % 8 {
	case 0:
		return micro("at a commit", any.at)
	case 1:
		return micro("just before a commit", any.at.Add(-time.Microsecond))
	case 2:
		return micro("in idle time", s.idle[s.rng.IntN(len(s.idle))].Truncate(time.Microsecond))
	case 3: // with its zone an hour that is there twice means one instant
		at := clockSetBack.Add(time.Duration(s.rng.Int64N(int64(4*time.Minute))) - 2*time.Minute).Truncate(time.Microsecond)
		return instant{"in the hour that is there twice", at, at.In(zone).Format("2006-01-02 15:04:05.999999-07:00")}
	case 4:
		return []instant{
			{"in the future", time.Now().Add(time.Hour), time.Now().Add(time.Hour).UTC().Format("2006-01-02 15:04:05Z07:00")},
			{"before the first backup", first.Add(-time.Second), first.Add(-time.Second).Format("2006-01-02 15:04:05Z07:00")},
			{"behind the archive", last.Add(24 * time.Hour), last.Add(24 * time.Hour).Format("2006-01-02 15:04:05Z07:00")},
			{"ambiguous", time.Time{}, "2026-10-25 02:30:00"},
			{"non-existent", time.Time{}, "2026-03-29 02:30:00"},
		}[i/8%5]
	case 5: // without a zone it is the configured one
		at := last.Truncate(time.Microsecond)
		const form = "2006-01-02 15:04:05.999999"
		text := at.In(zone).Format(form)
		if text == at.Add(time.Hour).In(zone).Format(form) || text == at.Add(-time.Hour).In(zone).Format(form) {
			return instant{"ambiguous", time.Time{}, text} // the work has ended within the hour that is there twice
		}
		return instant{"in the configured zone", at, text}
	}
	return micro("anywhere", first.Add(time.Duration(s.rng.Int64N(int64(last.Sub(first))))).Truncate(time.Microsecond))
}

// refusals are words of the reasons.
var refusals = map[string]string{"in the future": "future", "before the first backup": "first base backup", "behind the archive": "the archive knows what happened up to", "ambiguous": "twice", "non-existent": "does not exist"}

// try restores to an instant and says what became of it.
func (s *seconds) try(ctx context.Context, in instant) string {
	s.t.Helper()
	into, port := filepath.Join(s.dir, "restored"), postmastertest.FreePort(s.t)
	out, err := s.pitr(ctx, "restore", "--to", in.text, "--into", into, "--start", "--port", strconv.Itoa(port), "--json")
	copied := s.install.Attach(into, port)
	defer func() {
		err := copied.Stop(ctx, postmaster.Immediate)
		for _, left := range []string{"", ".tablespaces", ".log"} {
			err = errors.Join(err, os.RemoveAll(into+left))
		}
		if err != nil {
			s.t.Error(err)
		}
	}()
	what := fmt.Sprintf("%s, %s", in.kind, in.text)
	if err != nil {
		if reason := s.mayRefuse(in); reason == "" || !strings.Contains(err.Error(), reason) {
			s.t.Errorf("%s: refused, and the reason can only be %q: %v", what, reason, err)
		}
		return "refused"
	}
	if s.mustRefuse(in) {
		s.t.Errorf("%s: it was not refused", what)
		return "wrong"
	}
	var answer restored
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		s.t.Fatalf("%v\n%s", err, out)
	}
	content, err := contentOf(ctx, copied)
	if err != nil {
		s.t.Errorf("%s: %v", what, err)
		return "wrong"
	}
	last, next := s.expected(in.at)
	invalid, err := copied.Query(ctx, "postgres", "postgres", "select coalesce(string_agg(datname, ' '), '') from pg_database where datconnlimit = "+invalidDatabase)
	if err != nil {
		s.t.Error(err)
	}
	want := last.content
	if invalid != "" { // the next transaction drops it, and had begun to
		want = regexp.MustCompile(`(?s)== `+invalid+`\n.*?(== |$)`).ReplaceAllString(want, "$1")
		if next == nil || strings.Contains(next.content, "== "+invalid+"\n") || !slices.ContainsFunc(answer.Plan.Warnings, func(w string) bool { return strings.Contains(w, "cannot be used at this target") }) {
			s.t.Errorf("%s: the database %s cannot be used; the next transaction is %+v, and the plan warns %q", what, invalid, next, answer.Plan.Warnings)
		}
	}
	if content != want {
		s.t.Errorf("%s: what came back is not what was there at the commit of xid %s:\n%s\nwant\n%s", what, last.xid, content, want)
	}
	s.comparePlan(ctx, what, answer, last, next, copied)
	return "restored"
}

// mustRefuse reports whether an instant cannot be reached.
func (s *seconds) mustRefuse(in instant) bool {
	return refusals[in.kind] != "" || in.at.Before(s.backups[0].StopTime)
}

// mayRefuse is a word of the reason for which an instant may be refused; "" when it must be restored.
func (s *seconds) mayRefuse(in instant) string {
	if word := refusals[in.kind]; word != "" {
		return word
	}
	if in.at.Before(s.backups[0].StopTime) {
		return "first base backup"
	}
	// Which backup is taken is the plan's business; of those before the instant, one lies before the tablespace.
	for _, space := range s.spaces {
		for _, b := range s.backups {
			if !b.StopTime.After(in.at) && b.StartTime.Before(space.at) && !space.at.After(in.at) {
				return "recovery makes it there again; that directory holds"
			}
		}
	}
	return ""
}

// comparePlan holds what the plan has said against what is there.
func (s *seconds) comparePlan(ctx context.Context, what string, answer restored, last, next *moment, copied *postmaster.Server) {
	s.t.Helper()
	plan := answer.Plan
	known := func(xid uint32) *moment {
		for i := range s.moments {
			if s.moments[i].xid == strconv.FormatUint(uint64(xid), 10) {
				return &s.moments[i]
			}
		}
		return nil
	}
	if x := plan.LastIncluded; x == nil {
		if last.at.After(s.backups[0].StopTime) {
			s.t.Errorf("%s: the plan includes nothing behind the backup, and xid %s was committed", what, last.xid)
		}
	} else if m := known(x.XID); x.Committed && m != nil && m != last || x.Time.Before(last.at) {
		s.t.Errorf("%s: the plan includes up to %s, and the last was xid %s at %s", what, x, last.xid, last.at)
	}
	switch x := plan.FirstExcluded; {
	case x == nil:
		if next != nil {
			s.t.Errorf("%s: the plan excludes nothing, and xid %s was committed at %s", what, next.xid, next.at)
		}
	case x.Committed && known(x.XID) != nil && known(x.XID) != next, next != nil && x.Time.After(next.at):
		s.t.Errorf("%s: the plan excludes from %s on, and the next was %+v", what, x, next)
	}
	gids, err := copied.Query(ctx, "postgres", "postgres", "select coalesce(string_agg(gid, ' ' order by transaction::text::int8), '') from pg_prepared_xacts")
	if err != nil {
		s.t.Error(err)
	}
	var planned []string
	for _, p := range plan.Prepared {
		planned = append(planned, p.GID)
	}
	if strings.Join(planned, " ") != gids {
		s.t.Errorf("%s: the plan says that %v are prepared, and there are %q", what, planned, gids)
	}
}
