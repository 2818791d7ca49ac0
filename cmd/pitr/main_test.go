package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"pitr/internal/repo"
)

func TestMain(m *testing.M) {
	testscript.Main(cleaning{m}, map[string]func(){"pitr": main})
}

// cleaning removes the built binaries when the tests are done.
type cleaning struct{ m *testing.M }

func (c cleaning) Run() int {
	code := c.m.Run()
	if err := removeBinaries(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// backupOf returns the first backup in the repository.
func backupOf(ctx context.Context, t *testing.T, h *harness) repo.Backup {
	t.Helper()
	var backups []struct {
		repo.Backup
		Packs int `json:"packs"`
	}
	if err := json.Unmarshal([]byte(h.mustPitr(ctx, "backups", "--json")), &backups); err != nil || len(backups) == 0 {
		t.Fatalf("no backups: %v", err)
	}
	return backups[0].Backup
}
