package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"pitr/config"
	"pitr/internal/store/s3/s3test"
)

// retainNothing lets every backup but the newest expire at once, and parts be swept at once.
func (h *harness) retainNothing() {
	h.t.Helper()
	h.replace(`backup: {schedule: ""}`, `backup: {schedule: "", retention: {window: 0, minimum: 1, grace: 0}}`)
}

// asWriter gives what runs from now on credentials that may not delete.
func asWriter(t *testing.T, server *s3test.Server) {
	t.Helper()
	server.AddUser("writer", "writer-secret", s3test.Writer...)
	t.Setenv("AWS_ACCESS_KEY_ID", "writer")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "writer-secret")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/no/such/file")
}

// twoBackups fills an archive with two backups and some segments.
func (h *harness) twoBackups(ctx context.Context) {
	h.t.Helper()
	h.psql(ctx, "create table t (i int)")
	for i := range 2 {
		h.psql(ctx, fmt.Sprintf("insert into t values (%d)", i))
		h.psql(ctx, "select pg_switch_wal()")
		h.mustPitr(ctx, "backup")
	}
	h.psql(ctx, "insert into t values (2)")
	h.archived(ctx)
}

func objects(t *testing.T, server *s3test.Server, word string, versions bool) (n int) {
	t.Helper()
	for object := range server.Client().ListObjects(t.Context(), server.Bucket, minio.ListObjectsOptions{Recursive: true, WithVersions: versions}) {
		if object.Err != nil {
			t.Fatal(object.Err)
		}
		if strings.Contains(object.Key, word) && !object.IsDeleteMarker {
			n++
		}
	}
	return n
}

// TestAWriterThatMayNotDeleteLeavesExpiryToAnother goes through the life of an archive in a bucket with Object Lock whose writer has no
// right to delete.
func TestAWriterThatMayNotDeleteLeavesExpiryToAnother(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	server := s3test.StartLocking(t)
	h := newHarness(t, "")
	h.retainNothing()
	h.stores(fmt.Sprintf("lock: 30d, sweep_grace: 0, lease: 2s, store: %q", server.URL("p")+"&expiry_profile=expiry"))
	asWriter(t, server)
	h.start(ctx, "archiver")
	h.twoBackups(ctx)

	out, err := h.pitr(ctx, "config", "check")
	for _, line := range []string{"limited store, delete: ", "profile expiry of the AWS credentials file", "ok      store, object lock: ", "ok      archive.lock: 30d", "ok      store, clock: differs by "} {
		if err != nil || !strings.Contains(out, line) {
			t.Errorf("config check does not say %q: %v\n%s", line, err, out)
		}
	}
	if out, err := h.pitr(ctx, "expire"); err == nil || !strings.Contains(err.Error(), "error: expire, after 0 objects: these credentials may not delete") || !strings.Contains(err.Error(), "hint: `expiry_profile=`") {
		t.Errorf("expire as the writer: %v\n%s", err, out)
	}
	if err := h.stop("archiver"); err != nil {
		t.Fatal(err)
	}
	if log := h.logs(); strings.Count(log, "may not delete") != 1 || strings.Contains(log, "level=ERROR") {
		t.Errorf("the log of an archiver that may not delete:\n%s", log)
	}
	parts, leases, manifests := objects(t, server, ".parts/", false), objects(t, server, "/leases/", false), objects(t, server, "/manifest", false)
	if parts == 0 || leases == 0 || manifests != 2 {
		t.Fatalf("%d parts, %d leases, %d manifests: the test shows nothing", parts, leases, manifests)
	}

	// Elsewhere, with a profile that may.
	file := filepath.Join(h.dir, "credentials")
	content := fmt.Sprintf("[expiry]\naws_access_key_id = %s\naws_secret_access_key = %s\n", s3test.AccessKey, s3test.SecretKey)
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	plan := h.mustPitr(ctx, "expire", "--dry-run")
	if strings.Count(plan, "expires  ") != 1 || strings.Count(plan, "stays    ") != 1 || objects(t, server, "/manifest", false) != 2 {
		t.Errorf("the plan:\n%s", plan)
	}
	if out := h.mustPitr(ctx, "expire"); !strings.Contains(out, "objects were removed") {
		t.Errorf("expire:\n%s", out)
	}
	if n := objects(t, server, "/manifest", false); n != 1 {
		t.Errorf("%d backups are left", n)
	}
	if n := objects(t, server, "pitr-probe/", false); n != 0 {
		t.Errorf("%d objects of config check are left", n)
	}
	if n := objects(t, server, ".parts/", false); n >= parts {
		t.Errorf("%d parts of %d are left", n, parts)
	}
	if all := objects(t, server, "/manifest", true); all != 2 {
		t.Errorf("%d versions of manifests: what is retained can be destroyed", all)
	}
	if rows := h.restored(ctx, "restored", "select count(*) from t"); rows != "3" {
		t.Errorf("%s rows came back", rows)
	}

	// Somebody deletes everything, and the owner takes his delete markers away.
	for _, marker := range versionsOf(t, server, func(o minio.ObjectInfo) bool { return !o.IsDeleteMarker && o.IsLatest }) {
		if err := server.Client().RemoveObject(ctx, server.Bucket, marker.Key, minio.RemoveObjectOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if out := h.mustPitr(ctx, "backups"); !strings.Contains(out, "no backups") {
		t.Errorf("everything was deleted, and there is\n%s", out)
	}
	for _, marker := range versionsOf(t, server, func(o minio.ObjectInfo) bool { return o.IsDeleteMarker && o.IsLatest }) {
		if err := server.Client().RemoveObject(ctx, server.Bucket, marker.Key, minio.RemoveObjectOptions{VersionID: marker.VersionID}); err != nil {
			t.Fatal(err)
		}
	}
	if rows := h.restored(ctx, "undeleted", "select count(*) from t"); rows != "3" {
		t.Errorf("%s rows came back after everything was deleted", rows)
	}
}

func versionsOf(t *testing.T, server *s3test.Server, wanted func(minio.ObjectInfo) bool) (list []minio.ObjectInfo) {
	t.Helper()
	for object := range server.Client().ListObjects(t.Context(), server.Bucket, minio.ListObjectsOptions{Recursive: true, WithVersions: true}) {
		if object.Err != nil {
			t.Fatal(object.Err)
		}
		if wanted(object) {
			list = append(list, object)
		}
	}
	return list
}

// TestACopyThatCannotBeDeletedFromIsNotBehindAndBringsNothingBack has the main store a directory and a copy that denies deletes.
func TestACopyThatCannotBeDeletedFromIsNotBehindAndBringsNothingBack(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	server := s3test.StartWithUsers(t)
	h := newHarness(t, "")
	h.retainNothing()
	second := server.URL("copy")
	name := config.StoreName(second)
	h.stores(fmt.Sprintf("sweep_grace: 0, store: \"file://%s\", copies: [%q]", filepath.Join(h.dir, "repository"), second))
	asWriter(t, server)
	h.start(ctx, "archiver")
	h.filled(ctx, name)
	h.twoBackups(ctx)
	h.filled(ctx, name)
	manifests := func() int {
		list, err := filepath.Glob(filepath.Join(h.dir, "repository", "test", "backups", "*", "manifest"))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	if n := manifests(); n != 2 {
		t.Fatalf("%d backups: the test shows nothing", n)
	}
	h.mustPitr(ctx, "expire")
	check := func(when string) {
		t.Helper()
		if here, there := manifests(), objects(t, server, "/manifest", false); here != 1 || there != 2 {
			t.Errorf("%s %d backups are in the main store and %d in the copy", when, here, there)
		}
		if log := h.logs(); strings.Contains(log, "a store has fallen behind") {
			t.Errorf("%s:\n%s", when, log)
		}
	}
	check("after expiry")
	if err := h.stop("archiver"); err != nil {
		t.Fatal(err)
	}
	h.start(ctx, "archiver") // it compares the stores when it begins
	h.filled(ctx, name)
	h.psql(ctx, "insert into t values (3)")
	h.archived(ctx)
	check("after the stores were compared")
	if rows := h.restored(ctx, "restored", "select count(*) from t"); rows != "4" {
		t.Errorf("%s rows came back", rows)
	}
}

func TestALockThatEndsWithinTheWindowIsNamedWithItsConsequence(t *testing.T) {
	for lock, want := range map[string]string{"0": "", "7d": "limited archive.lock: 7d is no longer than backup.retention.window, 7d; so objects that a restore still needs", "8d": "ok      archive.lock: 8d"} {
		cfg, err := config.Parse("pitr.yaml", []byte("archive: {store: \"s3://b/p\", lock: "+lock+"}\n"))
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		checkLock(&out, cfg)
		if !strings.HasPrefix(out.String(), want) || want == "" && out.String() != "" {
			t.Errorf("lock %s: %q", lock, out.String())
		}
	}
}

// TestNoPartsStayForEverAfterKills kills the archiver again and again while segments end, pushes some besides, and expires.
func TestNoPartsStayForEverAfterKills(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	h := newHarness(t, "")
	root := filepath.Join(h.dir, "repository")
	h.stores(fmt.Sprintf("sweep_grace: 0, store: \"file://%s\"", root))
	h.psql(ctx, "create table t (i int)")
	replaced := func() (parts []string) {
		list, err := filepath.Glob(filepath.Join(root, "test", "wal", "*", "*.parts", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range list {
			if _, err := os.Stat(strings.TrimSuffix(filepath.Dir(part), ".parts")); err == nil {
				parts = append(parts, part)
			}
		}
		return parts
	}
	left := 0
	for i := range 6 {
		h.start(ctx, "archiver")
		h.psql(ctx, fmt.Sprintf("insert into t values (%d)", i))
		h.archived(ctx)
		open := h.psql(ctx, "select pg_walfile_name(pg_current_wal_insert_lsn())")
		h.psql(ctx, "insert into t values (-1)")
		if i%2 == 0 {
			h.kill("archiver")
			h.psql(ctx, "select pg_switch_wal()")
			h.mustPitr(ctx, "wal", "push", filepath.Join(h.server.Dir, "pg_wal", open))
		} else {
			h.psql(ctx, "select pg_switch_wal()")
			h.kill("archiver")
		}
		left += len(replaced())
	}
	if left == 0 {
		t.Fatal("nothing was left: the test shows nothing")
	}
	h.mustPitr(ctx, "expire")
	if parts := replaced(); len(parts) > 0 {
		t.Errorf("%d parts are left: %v", len(parts), parts)
	}
	t.Logf("%d parts were left by kills", left)
}
