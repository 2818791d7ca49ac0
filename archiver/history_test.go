package archiver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/internal/store"
)

// shelf is a store that is fast, and that stops answering after some requests, as if whoever asks was killed.
type shelf struct {
	mu      sync.Mutex // guards objects; what follows is for those who ask one after the other
	objects map[string][]byte
	left    int // requests; negative: no end

	meanwhile func() // somebody else, when so many requests were made; nil: nobody
	after     int
}

var errKilled = errors.New("injected: killed")

func (m *shelf) ask() error {
	if m.meanwhile != nil {
		if m.after--; m.after < 0 {
			somebody, left := m.meanwhile, m.left
			m.meanwhile, m.left = nil, -1
			somebody()
			m.left = left
		}
	}
	switch {
	case m.left == 0:
		return errKilled
	case m.left > 0:
		m.left--
	}
	return nil
}

func (m *shelf) Put(_ context.Context, key string, content []byte, opt store.PutOptions) error {
	if err := m.ask(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, taken := m.objects[key]; taken && opt.IfAbsent {
		return store.ErrExist
	}
	m.objects[key] = bytes.Clone(content)
	return nil
}

func (m *shelf) Get(_ context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := m.ask(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	content, there := m.objects[key]
	m.mu.Unlock()
	if !there {
		return nil, store.ErrNotExist
	}
	content = content[min(offset, int64(len(content))):]
	if length >= 0 {
		content = content[:min(length, int64(len(content)))]
	}
	return io.NopCloser(bytes.NewReader(content)), nil
}

func (m *shelf) List(_ context.Context, prefix, after string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		if err := m.ask(); err != nil {
			yield(store.Object{}, err)
			return
		}
		m.mu.Lock()
		objects := maps.Clone(m.objects)
		m.mu.Unlock()
		for _, key := range slices.Sorted(maps.Keys(objects)) {
			if len(key) < len(prefix) || key[:len(prefix)] != prefix || key <= after {
				continue
			}
			if !yield(store.Object{Key: key, Size: int64(len(objects[key]))}, nil) {
				return
			}
		}
	}
}

func (m *shelf) Delete(_ context.Context, key string) error {
	if err := m.ask(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, key)
	return nil
}

// history is the life of a repository, and what was promised in it.
type history struct {
	*shelf
	repo      *repo.Repo
	retention Retention
	now       time.Time
	end       pg.LSN // of WAL

	published []repo.Backup
	kept      map[string]bool
	proven    string // the last one
	gone      map[string]bool
	running   *repo.Backup
	planned   *Expiry
	number    int
}

func historyOf(t interface{ Fatal(...any) }) *history {
	compressor, err := repo.NewCompressor("zstd:1")
	if err != nil {
		t.Fatal(err)
	}
	m := &shelf{objects: map[string][]byte{}, left: -1}
	h := &history{shelf: m, repo: repo.New(m, "main", compressor), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), end: pg.LSN(mib), kept: map[string]bool{}, gone: map[string]bool{}}
	if err := h.repo.Bind(context.Background(), repo.Cluster{SystemID: 77, SegmentSize: mib}); err != nil {
		t.Fatal(err)
	}
	return h
}

func newHistory(rt *rapid.T) *history {
	h := historyOf(rt)
	h.retention = Retention{Window: time.Duration(rapid.IntRange(0, 240).Draw(rt, "window")) * time.Hour, Minimum: rapid.IntRange(0, 3).Draw(rt, "minimum"),
		Grace: time.Duration(rapid.SampledFrom([]int{0, 1, 24}).Draw(rt, "grace")) * time.Hour}
	h.segment(rt)
	return h
}

// backup takes one that refers to nothing.
func (h *history) backup(t *testing.T) repo.Backup {
	t.Helper()
	h.now = h.now.Add(time.Second)
	b := repo.Backup{ID: h.now.Format(BackupIDLayout), SystemID: 77, SegmentSize: mib, Timeline: 1, StopTime: h.now, ExtentSize: repo.ExtentSize}
	builder := h.repo.NewPack()
	builder.Add(h.repo.CompressExtent([]byte(b.ID)))
	pack, err := h.repo.PutPack(t.Context(), b.ID, 0, builder)
	b.Packs = []repo.Pack{pack}
	if err == nil {
		err = h.repo.NewManifest().Publish(t.Context(), b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (h *history) try(rt *rapid.T, err error) {
	if err != nil {
		rt.Fatal(err)
	}
}

// segment writes one more of WAL.
func (h *history) segment(rt *rapid.T) {
	var b repo.StretchBuilder
	b.Add(make([]byte, mib), h.repo.Pack(make([]byte, mib)))
	h.try(rt, h.repo.PutStretch(context.Background(), mib, repo.Part{Timeline: 1, Start: h.end, End: h.end + pg.LSN(mib)}, h.now, &b))
	h.end += pg.LSN(mib)
}

func (h *history) pass(rt *rapid.T) {
	h.now = h.now.Add(time.Duration(rapid.IntRange(1, 80).Draw(rt, "hours")) * time.Hour)
	h.segment(rt)
}

// begin starts a backup that refers to some packs of another. An action that cannot be in this state says so by Skip, and rapid
// draws another one in its place; it fails when there is none.
func (h *history) begin(rt *rapid.T) {
	if h.running != nil {
		rt.Skip()
	}
	h.now = h.now.Add(time.Second)
	b := repo.Backup{ID: h.now.Format(BackupIDLayout), SystemID: 77, SegmentSize: mib, Timeline: 1, Start: h.end - 0x1000, StartTime: h.now, ExtentSize: repo.ExtentSize}
	before, err := h.repo.Backups(context.Background())
	h.try(rt, err)
	mark := repo.Running{Since: h.now}
	if len(before) > 0 {
		mark.Bases = []string{rapid.SampledFrom(before).Draw(rt, "base").ID}
	}
	bases, err := h.repo.BeginBackup(context.Background(), b.ID, mark)
	h.try(rt, err)
	for _, base := range before {
		if !slices.Contains(bases, base.ID) {
			continue
		}
		for _, pack := range base.Packs {
			if rapid.Bool().Draw(rt, "refers") {
				b.Packs = append(b.Packs, pack)
			}
		}
	}
	builder := h.repo.NewPack()
	builder.Add(h.repo.CompressExtent([]byte(b.ID)))
	pack, err := h.repo.PutPack(context.Background(), b.ID, 0, builder)
	h.try(rt, err)
	b.Packs = append(b.Packs, pack)
	h.running = &b
}

func (h *history) finish(rt *rapid.T) {
	if h.running == nil {
		rt.Skip()
	}
	b := *h.running
	h.running = nil
	if rapid.IntRange(0, 4).Draw(rt, "killed") == 0 || h.now.Sub(b.StartTime) >= orphanAge {
		return // killed, or longer than any backup takes
	}
	h.segment(rt)
	h.now = h.now.Add(time.Second)
	b.Stop, b.StopTime = h.end-0x100, h.now
	h.try(rt, h.repo.NewManifest().Publish(context.Background(), b))
	h.published = append(h.published, b)
	h.whole(rt, b) // nothing that it refers to has gone while it was taken
	if rapid.IntRange(0, 4).Draw(rt, "killed before it says so") > 0 {
		h.try(rt, h.repo.EndBackup(context.Background(), b.ID))
	}
}

func (h *history) plan(rt *rapid.T) {
	catalogue, err := LoadCatalogue(context.Background(), h.repo)
	h.try(rt, err)
	plan := PlanExpiry(catalogue, h.now, h.retention)
	h.planned = &plan
}

// expire carries out a plan that may have been made long ago, and may be killed.
func (h *history) expire(rt *rapid.T) {
	if h.planned == nil {
		rt.Skip()
	}
	if rapid.Bool().Draw(rt, "is killed") {
		h.left = rapid.IntRange(0, 60).Draw(rt, "after requests")
	}
	h.after = rapid.IntRange(0, 40).Draw(rt, "meanwhile, after requests")
	switch meanwhile := rapid.IntRange(0, 3).Draw(rt, "meanwhile"); {
	case meanwhile == 0 && h.running == nil:
		h.meanwhile = func() { h.begin(rt) }
	case meanwhile == 1 && h.running != nil:
		h.meanwhile = func() { h.finish(rt) }
	}
	now := h.now
	_, err := h.planned.CarryOut(context.Background(), h.repo, now)
	h.left, h.meanwhile = -1, nil
	if err != nil && !errors.Is(err, errKilled) {
		rt.Fatal(err)
	}
	h.planned = nil
	h.gone = map[string]bool{}
	for _, b := range h.published {
		_, there := h.objects["main/backups/"+b.ID+"/manifest"]
		h.gone[b.ID] = !there
	}
}

func (h *history) choose(rt *rapid.T) repo.Backup {
	there := slices.DeleteFunc(slices.Clone(h.published), func(b repo.Backup) bool { return h.gone[b.ID] })
	if len(there) == 0 {
		rt.Skip()
	}
	return rapid.SampledFrom(there).Draw(rt, "backup")
}

func (h *history) keep(rt *rapid.T) {
	b := h.choose(rt)
	if h.kept[b.ID] {
		h.try(rt, h.repo.DeleteKeep(context.Background(), b.ID))
		delete(h.kept, b.ID)
		return
	}
	h.try(rt, h.repo.PutKeep(context.Background(), b.ID, repo.Keep{Since: h.now}))
	h.kept[b.ID] = true
}

func (h *history) prove(rt *rapid.T) {
	b := h.choose(rt)
	h.now = h.now.Add(time.Second)
	h.try(rt, h.repo.PutProof(context.Background(), repo.Proof{Backup: b.ID, Time: h.now, OK: true}))
	h.proven = b.ID
}

// whole asserts that a backup can be restored to its own end.
func (h *history) whole(rt *rapid.T, b repo.Backup) {
	for _, pack := range b.Packs {
		if _, there := h.objects["main/"+pack.Key]; !there {
			rt.Fatalf("backup %s is there, and its pack %s is not", b.ID, pack.Key)
		}
	}
	h.wal(rt, b, b.Stop)
}

func (h *history) wal(rt *rapid.T, b repo.Backup, to pg.LSN) {
	for at := mib.Start(b.Start); at < to; at += pg.LSN(mib) {
		if _, there := h.objects["main/wal/00000001/"+mib.Segment(1, at).Name(mib)]; !there {
			rt.Fatalf("backup %s needs WAL of %s, up to %s, and it has gone", b.ID, at, to)
		}
	}
}

// promised asserts what the retention promises, by its own words.
func (h *history) promised(rt *rapid.T) {
	left := 0
	for i, b := range h.published {
		if h.gone[b.ID] {
			if h.kept[b.ID] || b.ID == h.proven || b.StopTime.After(h.now.Add(-h.retention.Window)) || i == len(h.published)-1 {
				rt.Fatalf("backup %s has gone: kept %v, proven last %v, ended %s before now", b.ID, h.kept[b.ID], b.ID == h.proven, h.now.Sub(b.StopTime))
			}
			continue
		}
		left++
		h.whole(rt, b)
	}
	if left < min(h.retention.Minimum, len(h.published)) {
		rt.Fatalf("%d backups are left of %d", left, len(h.published))
	}
	for instant := h.now.Add(-h.retention.Window); !instant.After(h.now); instant = instant.Add(7 * time.Hour) {
		if b, was := newestBefore(h.published, instant); was {
			if h.gone[b.ID] {
				rt.Fatalf("%s before now began with backup %s, which has gone", h.now.Sub(instant), b.ID)
			}
			h.wal(rt, b, h.end)
		}
	}
}

// settle lets everything expire that is not needed: nothing needless may stay for ever.
func (h *history) settle(rt *rapid.T) {
	h.running = nil
	h.now = h.now.Add(orphanAge + h.retention.Window + h.retention.Grace)
	for range 2 {
		h.plan(rt)
		_, err := h.planned.CarryOut(context.Background(), h.repo, h.now)
		h.try(rt, err)
		h.now = h.now.Add(h.retention.Grace)
	}
	catalogue, err := LoadCatalogue(context.Background(), h.repo)
	h.try(rt, err)
	plan := PlanExpiry(catalogue, h.now, h.retention)
	needed := map[string]bool{}
	for _, b := range plan.Keep {
		for _, pack := range b.Packs {
			needed[pack.Key] = true
		}
	}
	packs, err := h.repo.StoredPacks(context.Background())
	h.try(rt, err)
	for _, stored := range packs {
		for _, pack := range stored {
			if !needed[pack.Key] {
				rt.Errorf("pack %s stays for ever", pack.Key)
			}
		}
	}
	if n := len(plan.Expire) + len(plan.Pardon) + len(catalogue.Running); n > 0 || len(catalogue.Keeps) != len(h.kept) {
		rt.Errorf("it is never done: %+v, %v are marked as running, and %v kept", plan, catalogue.Running, catalogue.Keeps)
	}
	for number := uint64(1); number < uint64(h.end)/uint64(mib); number++ {
		segment := pg.Segment{Timeline: 1, Number: number}
		_, there := h.objects["main/wal/00000001/"+segment.Name(mib)]
		if there && !plan.needs(segment.Start(mib), segment.End(mib)) { // the other way round: of one that was kept by hand, what lies behind its own may have gone
			rt.Errorf("segment %s stays for ever", segment.Name(mib))
		}
	}
}

// TestWhateverWasPromisedStaysRestorable lets backups be taken, referred to, kept, proven, given up and killed in any order, while an expiry is planned, carried
// out much later, and killed.
func TestWhateverWasPromisedStaysRestorable(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := newHistory(rt)
		rt.Repeat(map[string]func(*rapid.T){
			"": h.promised, "time passes": h.pass, "a backup begins": h.begin, "it ends": h.finish, "expiry plans": h.plan, "expiry": h.expire,
			"keep or release": h.keep, "prove": h.prove,
		})
		h.settle(rt)
	})
}

// TestABackupThatBeginsInTheMidstOfAnExpiryLosesNothing has one begin at every request that an expiry makes.
func TestABackupThatBeginsInTheMidstOfAnExpiryLosesNothing(t *testing.T) {
	ctx := t.Context()
	mayRefer, mayNot := 0, 0
	for after := 0; ; after++ {
		h := historyOf(t)
		old, kept := h.backup(t), h.backup(t)
		plan := PlanExpiry(Catalogue{Backups: []repo.Backup{old, kept}}, h.now, Retention{Minimum: 1})
		if len(plan.Expire) != 1 {
			t.Fatalf("%+v", plan)
		}
		begun := false
		h.after = after
		h.meanwhile = func() {
			begun = true
			bases, err := h.repo.BeginBackup(ctx, "20260301T000000Z", repo.Running{Since: h.now, Bases: []string{old.ID}})
			if err != nil {
				t.Fatal(err)
			}
			if mayNot++; len(bases) == 1 {
				mayRefer++
				mayNot--
				kept = old // it stays
			}
		}
		if _, err := plan.CarryOut(ctx, h.repo, h.now); err != nil {
			t.Fatal(err)
		}
		if !begun {
			break
		}
		for _, pack := range kept.Packs {
			if _, there := h.objects["main/"+pack.Key]; !there {
				t.Errorf("begun after %d requests, a backup refers to %s, which has gone", after, pack.Key)
			}
		}
	}
	if mayRefer == 0 || mayNot == 0 {
		t.Errorf("%d could refer to the old backup, %d could not: the test shows nothing", mayRefer, mayNot)
	}
}
