package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"pitr/internal/repo"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if builtIn != "" {
		if err := os.RemoveAll(builtIn); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
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
