package copies

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pitr/internal/store"
	"pitr/internal/store/file"
	"pitr/internal/store/storetest"
)

// memory is a store in memory whose moods a test sets.
type memory struct {
	mu      sync.Mutex // guards what follows
	objects map[string][]byte
	fails   error                // of every request
	refuses error                // of deletes
	stalled chan struct{}        // closed: goes on; nil: it does not stall
	onPut   func(key string)     // before it
	breaks  int                  // bodies break off behind so many bytes; zero: never
	asked   map[string]int       // requests by operation
	put     map[string]time.Time // when an object was last put
}

func newMemory() *memory {
	return &memory{objects: map[string][]byte{}, asked: map[string]int{}, put: map[string]time.Time{}}
}

func (m *memory) enter(ctx context.Context, operation string) error {
	m.mu.Lock()
	stalled, fails := m.stalled, m.fails
	m.asked[operation]++
	m.mu.Unlock()
	if stalled != nil {
		select {
		case <-stalled:
		case <-ctx.Done():
		}
	}
	return errors.Join(ctx.Err(), fails)
}

func (m *memory) Put(ctx context.Context, key string, content []byte, opt store.PutOptions) error {
	if m.onPut != nil {
		m.onPut(key)
	}
	if err := m.enter(ctx, "put"); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, taken := m.objects[key]; taken && opt.IfAbsent {
		return store.ErrExist
	}
	m.objects[key] = bytes.Clone(content)
	m.put[key] = time.Now()
	return nil
}

func (m *memory) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := m.enter(ctx, "get"); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	content, found := m.objects[key]
	switch {
	case !found:
		return nil, store.ErrNotExist
	case offset < 0 || offset > 0 && offset >= int64(len(content)):
		return nil, store.ErrRange
	}
	content = content[offset:]
	if length >= 0 {
		content = content[:min(length, int64(len(content)))]
	}
	if m.breaks > 0 && len(content) > m.breaks {
		return io.NopCloser(io.MultiReader(bytes.NewReader(content[:m.breaks]), broken{})), nil
	}
	return io.NopCloser(bytes.NewReader(content)), nil
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func (m *memory) List(ctx context.Context, prefix, after string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		err := m.enter(ctx, "list")
		m.mu.Lock()
		var list []store.Object
		for _, key := range slices.Sorted(maps.Keys(m.objects)) {
			if strings.HasPrefix(key, prefix) && key > after {
				list = append(list, store.Object{Key: key, Size: int64(len(m.objects[key])), Modified: m.put[key]})
			}
		}
		m.mu.Unlock()
		if err != nil {
			yield(store.Object{}, err)
			return
		}
		for _, object := range list {
			if !yield(object, nil) {
				return
			}
		}
	}
}

func (m *memory) Delete(ctx context.Context, key string) error {
	if err := m.enter(ctx, "delete"); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuses != nil {
		return m.refuses
	}
	delete(m.objects, key)
	return nil
}

func (m *memory) refuse(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuses = err
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fails = err
}

func (m *memory) stall() (release func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	stalled := make(chan struct{})
	m.stalled = stalled
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.stalled = nil
		close(stalled)
	}
}

func (m *memory) has(key string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return string(m.objects[key])
}

func (m *memory) all() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := map[string]string{}
	for key, content := range m.objects {
		all[key] = string(content)
	}
	return all
}

// format is one whose objects are text: "c/anchor", WAL "c/wal/<n>" at the LSNs 10n to 10n+10, and "c/shown/<x>" last. Contents that
// differ only in case mean the same.
type format struct {
	mu   sync.Mutex // guards gone
	gone map[string]bool
}

func (*format) Bound([]byte) error { return nil }
func (*format) Root() string       { return "c/" }
func (*format) Anchor() string     { return "c/anchor" }
func (*format) Order() []string    { return []string{"c/wal/", "c/packs/", "c/shown/"} }
func (*format) Kept(string) bool   { return false }

func (*format) Same(_ context.Context, _ string, a, b []byte) error {
	if strings.EqualFold(string(a), string(b)) {
		return nil
	}
	return errConflict
}

func (*format) Position(key string) (start, end uint64, ok bool) {
	var n uint64
	if _, err := fmt.Sscanf(key, "c/wal/%d", &n); err != nil {
		return 0, 0, false
	}
	return 10 * n, 10*n + 10, true
}

func (f *format) Sole() []string { return []string{"leases/"} }

func (f *format) Judge(context.Context) (func(key, next string) bool, error) {
	return func(key, _ string) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.gone[key]
	}, nil
}

func (f *format) removed(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone[key] = true
}

// world is a Store of members in memory.
type world struct {
	*Store
	t      *testing.T
	stores []*memory
	format *format
	log    *bytes.Buffer
}

type lockedWriter struct {
	mu sync.Mutex
	b  *bytes.Buffer
}

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func newWorld(t *testing.T, members, quorum int) *world {
	w := &world{t: t, format: &format{gone: map[string]bool{}}, log: &bytes.Buffer{}}
	for range members {
		w.stores = append(w.stores, newMemory())
	}
	w.open(quorum)
	t.Cleanup(func() { w.close() })
	return w
}

// open joins the stores as a new process does.
func (w *world) open(quorum int) {
	opt := Options{Quorum: quorum, BufferMax: 1 << 20, Check: time.Hour, Format: w.format, Log: slog.New(slog.NewTextHandler(&lockedWriter{b: w.log}, nil))}
	for i, m := range w.stores {
		opt.Members = append(opt.Members, Member{Name: fmt.Sprintf("store%d", i), Store: m})
	}
	w.Store = New(opt)
}

func (w *world) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := w.Close(ctx); err != nil {
		w.t.Error(err)
	}
}

func (w *world) put(key, content string) error {
	return w.Put(w.t.Context(), key, []byte(content), store.PutOptions{IfAbsent: true})
}

func (w *world) mustPut(key, content string) {
	w.t.Helper()
	if err := w.put(key, content); err != nil {
		w.t.Fatalf("put %s: %v", key, err)
	}
}

func (w *world) fill() {
	w.t.Helper()
	if err := w.Fill(w.t.Context(), nil); err != nil {
		w.t.Fatalf("fill: %v", err)
	}
}

// landed waits until nothing is on its way.
func (w *world) landed() { w.tasks.Wait() }

func (w *world) equal() {
	w.t.Helper()
	w.landed()
	want := w.stores[0].all()
	for i, m := range w.stores[1:] {
		if got := m.all(); !maps.Equal(got, want) {
			w.t.Errorf("store%d holds %v, store0 %v", i+1, got, want)
		}
	}
}

func (w *world) state(i int) string { return w.Stats()[i].State }

func TestContract(t *testing.T) {
	inMemory := func(*testing.T) store.Store { return newMemory() }
	inFiles := func(t *testing.T) store.Store {
		s, err := file.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for members := 1; members <= 3; members++ {
		for quorum := 1; quorum <= members; quorum++ {
			contract(t, "memory", members, quorum, inMemory)
		}
	}
	contract(t, "files", 2, 1, inFiles)
}

func contract(t *testing.T, kind string, members, quorum int, open func(*testing.T) store.Store) {
	t.Run(fmt.Sprintf("%s, %d members, quorum %d", kind, members, quorum), func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) store.Store {
			opt := Options{Quorum: quorum, BufferMax: 1 << 30, Check: time.Hour, Log: slog.New(slog.DiscardHandler)}
			for i := range members {
				opt.Members = append(opt.Members, Member{Name: fmt.Sprint(i), Store: open(t)})
			}
			s := New(opt)
			t.Cleanup(func() {
				if err := s.Close(context.Background()); err != nil {
					t.Error(err)
				}
			})
			return s
		})
	})
}

func TestWhatOneStoreAloneDecidesIsNotCopied(t *testing.T) {
	w := newWorld(t, 2, 2)
	w.mustPut("wal/1", "one")
	w.mustPut("leases/1", "ours")
	if err := w.put("leases/1", "theirs"); !errors.Is(err, store.ErrExist) {
		t.Errorf("the second lease: %v", err)
	}
	w.fill()
	w.landed()
	if n := len(w.stores[1].all()); n != 1 || len(w.stores[0].all()) != 2 {
		t.Errorf("the stores hold %v and %v", w.stores[0].all(), w.stores[1].all())
	}
	if err := w.Delete(t.Context(), "leases/1"); err != nil || len(w.stores[0].all()) != 1 {
		t.Errorf("delete: %v, %v is left", err, w.stores[0].all())
	}
}
