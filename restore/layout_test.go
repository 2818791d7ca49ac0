package restore

import (
	"errors"
	"strings"
	"testing"

	"pitr/internal/repo"
)

func TestTablespacesAreNeverMixed(t *testing.T) {
	m := &repo.Manifest{}
	m.Tablespaces = []repo.Tablespace{{OID: "16400", Path: "/one"}, {OID: "16401", Path: "/two"}}
	for _, wanted := range []map[string]string{{"16400": "/x", "16401": "/x"}, {"16400": "/x/y", "16401": "/x"}, {"16400": "/x", "16401": "/x/y/z/.."}} {
		l, err := newLayout("/data", m, wanted, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.check(false); err == nil || !strings.Contains(err.Error(), "lies in the directory of tablespace") {
			t.Errorf("%v: %v", wanted, err)
		}
	}
	l, err := newLayout("/data", m, map[string]string{"16400": "/absent-x", "16401": "/absent-xy"}, false)
	if err != nil || l.check(false) != nil {
		t.Errorf("two directories: %v, %v", err, l.check(false))
	}
}

// TestExtentsThatOverlapAreDamaged has a manifest say that extents lie within another one, as only somebody who has made it up does.
func TestExtentsThatOverlapAreDamaged(t *testing.T) {
	r, _, plan := smallBackup(t)
	m, err := r.ReadManifest(t.Context(), plan.BackupID)
	if err != nil {
		t.Fatal(err)
	}
	for i := range m.Entries {
		if extents := m.Entries[i].Extents; len(extents) == 3 {
			for n := 1; n < 3; n++ {
				extents[n].Offset, extents[n].Length = extents[0].Offset+int64(n), 1
			}
		}
	}
	plan.manifest = m
	dir := newDir(t)
	if _, err := CarryOut(t.Context(), r, plan, into(dir)); !errors.Is(err, repo.ErrDamaged) {
		t.Errorf("%v", err)
	}
	notStartable(t, "overlapping extents", dir)
}
