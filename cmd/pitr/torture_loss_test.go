package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A disaster is judged by loss when neither the store, nor Postgres, nor the archiver has had a fault for calmSpan. That is
// decided by what the test has done, not by what the archiver says.
const (
	calmSpan   = 5 * time.Second
	lossBound  = 1500 * time.Millisecond // at the 99th percentile
	boundSlack = time.Second             // between when WAL is written and when it arrives, on a machine that is busy
)

// disaster is the loss of the archiver and all servers at once, and what came back from the store.
type disaster struct {
	calm     bool          // nothing else was wrong, and commits were being acknowledged
	missing  int           // acknowledged transactions that did not come back
	loss     time.Duration // age, at the disaster, of the oldest of them
	restored *content
}

// strikeDisaster kills everything at the same instant, restores the latest state from the store alone, measures what is missing, and
// then lets the servers come back as they would after a power cut.
func (t *torture) strikeDisaster(ctx context.Context) {
	t.t.Helper()
	bound, sampled, isKnown := t.unarchivedSeconds(ctx)
	d := disaster{calm: !t.sick && time.Since(t.lastFault) >= calmSpan}
	struck := time.Now()
	t.killEverything()
	t.heal(ctx)
	waitFor(ctx, 100*time.Millisecond) // for the pooler to tell the clients
	acked := t.work.acknowledgedSoFar()
	got, err := t.restored(ctx, "latest")
	if err != nil {
		t.t.Fatalf("after a disaster: %v\n%s", err, t.logs())
	}
	d.restored = got
	there := got.transactions()
	lively := false
	for _, a := range acked {
		lively = lively || struck.Sub(a.at) < time.Second
	}
	d.calm = d.calm && lively
	var exceeded int
	var worst time.Duration
	for id, a := range acked {
		if there[id] || t.forgiven[id] {
			continue
		}
		d.missing++
		d.loss = max(d.loss, struck.Sub(a.at))
		// An archiver that has just been started does not know what was before.
		if age := min(sampled.Sub(a.at), sampled.Sub(t.launched["archiver"])); isKnown && age > bound+boundSlack {
			exceeded++
			worst = max(worst, age)
		}
	}
	if exceeded > 0 && t.timed {
		t.t.Errorf("pitr_wal_unarchived_seconds said %s, and %d commits up to %s old were lost", bound, exceeded, worst)
	}
	if t.synchronous && d.missing > 0 {
		t.t.Errorf("%d acknowledged commits did not come back although commits wait for the archive; the oldest was %s old", d.missing, d.loss)
	}
	if d.calm && d.loss > lossBound {
		t.t.Logf("the loss was %s, of %d commits, after %s without a fault\n%s", d.loss, d.missing, struck.Sub(t.lastFault).Round(time.Millisecond), t.logs())
	}
	t.disasters = append(t.disasters, d)
	t.recover(ctx)
}

// killEverything ends the archiver and all servers at the same instant.
func (t *torture) killEverything() {
	t.t.Helper()
	var all sync.WaitGroup
	all.Go(func() { t.kill("archiver") })
	for _, n := range []*node{t.primary, t.standby} {
		if n != nil {
			all.Go(func() {
				if pid := n.server.Pid(); pid != 0 {
					_ = syscall.Kill(pid, syscall.SIGKILL) // kill sees to the rest
				}
				n.kill()
			})
		}
	}
	all.Wait()
}

// recover brings servers and archiver back.
func (t *torture) recover(ctx context.Context) {
	t.t.Helper()
	t.startPrimary(ctx)
	if t.standby != nil {
		t.standby.start(ctx)
	}
	t.launch("archiver")
	t.lastFault = time.Now()
}

var unarchivedLine = regexp.MustCompile(`(?m)^pitr_wal_unarchived_seconds (\S+)$`)

// unarchivedSeconds is what the archiver says that a disaster would cost now.
func (t *torture) unarchivedSeconds(ctx context.Context) (bound time.Duration, at time.Time, isKnown bool) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/metrics", t.metrics["archiver"]), nil)
	if err != nil {
		t.t.Fatal(err)
	}
	at = time.Now()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, at, false // it has only just been started
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, at, false
	}
	m := unarchivedLine.FindSubmatch(body)
	if m == nil {
		t.t.Errorf("the archiver's metrics lack pitr_wal_unarchived_seconds:\n%s", body)
		return 0, at, false
	}
	seconds, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.t.Fatal(err)
	}
	return time.Duration(seconds * float64(time.Second)), at, true
}

// checkDisasters compares what came back after each disaster with the ledger: it must be what was committed up to some point.
func (t *torture) checkDisasters(l *ledger) {
	t.t.Helper()
	old := slices.DeleteFunc(slices.Clone(l.ends), func(e ledgerEnd) bool { return e.Timeline != 1 })
	branches := [][]ledgerEnd{l.ends, append(old, l.dead...)}
	for i, d := range t.disasters {
		best := difference{missing: len(d.restored.journal) + 1}
		for _, ends := range branches {
			prefix := ends[:lastIn(ends, d.restored)]
			if diff := compare(d.restored, contentAfter(prefix)); diff.missing+diff.extra+diff.wrong < best.missing+best.extra+best.wrong {
				best = diff
			}
		}
		t.result.difference.add(best)
		t.result.restores++
		if best.any() {
			t.t.Errorf("what came back after disaster %d was never the state of the database: %d rows are missing, %d are extra, %d differ", i+1, best.missing, best.extra, best.wrong)
		}
		if t.synchronous {
			t.result.lostAcknowledged += d.missing
		} else if d.calm {
			t.result.losses = append(t.result.losses, d.loss)
		}
	}
}

// lastIn is how many ends there are up to the last of which a copy holds something.
func lastIn(ends []ledgerEnd, c *content) int {
	for i, end := range slices.Backward(ends) {
		if len(end.Entries) > 0 && c.journal[end.Entries[0]] {
			return i + 1
		}
	}
	return 0
}

// percentile is the least loss that a share of all does not exceed.
func percentile(losses []time.Duration, share float64) time.Duration {
	if len(losses) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(losses))
	i := int(share*float64(len(sorted))+0.999999) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

// lossText is a line about losses.
func lossText(losses []time.Duration) string {
	if len(losses) == 0 {
		return "loss not measured"
	}
	var text []string
	for _, p := range []struct {
		name  string
		share float64
	}{{"p50", 0.5}, {"p99", 0.99}, {"max", 1}} {
		text = append(text, fmt.Sprintf("%s %s", p.name, percentile(losses, p.share).Round(time.Millisecond)))
	}
	return fmt.Sprintf("loss of %d disasters %s", len(losses), strings.Join(text, ", "))
}
