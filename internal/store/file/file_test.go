package file_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pitr/internal/store"
	"pitr/internal/store/file"
	"pitr/internal/store/storetest"
)

func TestFileKeepsTheContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		s, err := file.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestVolumeThatIsNotMountedIsNoEmptyStore(t *testing.T) {
	root := filepath.Join(t.TempDir(), "volume")
	if _, err := file.Open(root); err == nil || errors.Is(err, store.ErrNotExist) {
		t.Errorf("opening an absent directory: %v", err)
	}
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := file.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(root); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "key", 0, -1); err == nil || errors.Is(err, store.ErrNotExist) {
		t.Errorf("get from a directory that has gone: %v", err)
	}
	if err := s.Put(t.Context(), "key", nil, store.PutOptions{}); err == nil {
		t.Error("put made the directory anew")
	}
	for _, err := range s.List(t.Context(), "", "") {
		if err == nil || errors.Is(err, store.ErrNotExist) {
			t.Errorf("list: %v", err)
		}
	}
}

func TestTemporaryFilesAreNoObjectsAndAreSwept(t *testing.T) {
	root := t.TempDir()
	s, err := file.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	young, old := filepath.Join(root, ".pitr-tmp-1"), filepath.Join(root, ".pitr-tmp-2")
	for _, name := range []string{young, old} {
		if err := os.WriteFile(name, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(old, time.Time{}, time.Now().Add(-25*time.Hour)); err != nil {
		t.Fatal(err)
	}
	for object, err := range s.List(t.Context(), "", "") {
		t.Errorf("listed %v, %v", object, err)
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old leftover is still there: %v", err)
	}
	if _, err := os.Stat(young); err != nil {
		t.Errorf("the file that somebody may be writing is gone: %v", err)
	}
}
