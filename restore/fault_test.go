package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"testing"
)

// closing is a reader with the Close of another.
type closing struct {
	io.Reader
	io.Closer
}

// faults are what can happen to an answer.
var faults = map[string]func(body io.ReadCloser) (io.ReadCloser, error){
	"refused": func(body io.ReadCloser) (io.ReadCloser, error) {
		return nil, errors.Join(errors.New("503 SlowDown"), body.Close())
	},
	"truncated": func(body io.ReadCloser) (io.ReadCloser, error) {
		content, err := io.ReadAll(body)
		return closing{io.MultiReader(bytes.NewReader(content[:len(content)/2]), errorReader{io.ErrUnexpectedEOF}), body}, err
	},
	"cut short without an error": func(body io.ReadCloser) (io.ReadCloser, error) {
		content, err := io.ReadAll(body)
		return closing{bytes.NewReader(content[:len(content)/2]), body}, err
	},
	"corrupted": func(body io.ReadCloser) (io.ReadCloser, error) {
		content, err := io.ReadAll(body)
		content[len(content)-1] ^= 0x40
		content[len(content)/2] ^= 0x40
		return closing{bytes.NewReader(content), body}, err
	},
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }

// TestNoFaultOfTheStoreLeavesADirectoryThatStarts makes each answer of the store bad in turn, once and for good.
func TestNoFaultOfTheStoreLeavesADirectoryThatStarts(t *testing.T) {
	r, f, plan := smallBackup(t)
	f.onGet(nil)
	if _, err := CarryOut(t.Context(), r, plan, into(newDir(t))); err != nil {
		t.Fatal(err)
	}
	gets := f.count()
	if gets < 6 {
		t.Fatalf("a restore makes %d requests: the test shows nothing", gets)
	}
	failed, mended := 0, 0
	for name, fault := range faults {
		for n := 1; n <= gets; n++ {
			for _, lasting := range []bool{false, true} {
				dir := newDir(t)
				f.onGet(func(i int, _ string, body io.ReadCloser) (io.ReadCloser, error) {
					if i == n || lasting && i > n {
						return fault(body)
					}
					return body, nil
				})
				what := fmt.Sprintf("answer %d %s, lasting %t", n, name, lasting)
				if _, err := CarryOut(t.Context(), r, plan, into(dir)); err != nil {
					failed++
					notStartable(t, what, dir)
					f.onGet(nil)
					if _, err := CarryOut(t.Context(), r, plan, into(dir)); err != nil {
						t.Fatalf("%s: the restore that follows fails: %v", what, err)
					}
				} else {
					mended++
					if lasting {
						t.Errorf("%s: the restore says that it succeeded", what)
					}
				}
				if err := isWhole(dir); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			}
		}
	}
	if failed == 0 || mended == 0 {
		t.Errorf("%d restores failed, %d were mended: the test shows nothing", failed, mended)
	}
}

func notStartable(t *testing.T, what, dir string) {
	t.Helper()
	if exists(filepath.Join(dir, controlFile)) {
		t.Fatalf("%s: the restore failed and left a directory that starts", what)
	}
}

func TestARestoreThatIsInterruptedAnywhereCannotStartAndCanBeBegunAnew(t *testing.T) {
	r, f, plan := smallBackup(t)
	if _, err := CarryOut(t.Context(), r, plan, into(newDir(t))); err != nil {
		t.Fatal(err)
	}
	gets := f.count()
	for n := 1; n <= gets; n++ {
		dir := newDir(t)
		ctx, cancel := context.WithCancel(t.Context())
		f.onGet(func(i int, _ string, body io.ReadCloser) (io.ReadCloser, error) {
			if i == n {
				cancel()
			}
			return body, nil
		})
		if _, err := CarryOut(ctx, r, plan, into(dir)); err == nil {
			t.Fatalf("interrupted at request %d, the restore says that it succeeded", n)
		}
		notStartable(t, fmt.Sprintf("interrupted at request %d", n), dir)
		f.onGet(nil)
		if _, err := CarryOut(t.Context(), r, plan, into(dir)); err != nil {
			t.Fatal(err)
		}
		if err := isWhole(dir); err != nil {
			t.Errorf("after an interruption at request %d of %d: %v", n, gets, err)
		}
	}
}

// TestEveryErrorOfTheDiskLeavesADirectoryThatDoesNotStart fails each change of owner in turn, the last step before the directory is published.
func TestEveryErrorOfTheDiskLeavesADirectoryThatDoesNotStart(t *testing.T) {
	r, _, plan := smallBackup(t)
	for n := 1; ; n++ {
		dir, calls := newDir(t), 0
		opt := into(dir)
		opt.Own = func(string) error {
			calls++
			if calls == n {
				return errors.New("no space left on device")
			}
			return nil
		}
		if _, err := CarryOut(t.Context(), r, plan, opt); err == nil {
			if calls >= n {
				t.Errorf("the restore says that it succeeded, and call %d failed", n)
			}
			if n == 1 {
				t.Error("no owner was ever set")
			}
			return
		}
		notStartable(t, fmt.Sprintf("call %d of Own failed", n), dir)
	}
}
