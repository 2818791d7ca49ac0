package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/internal/repo"
)

// TestATestRestoreProvesWhatItSays lets real restores be proven: of good data, of data that breaks a promise of its owner, of an index out of order, and of a pack with a
// wrong byte.
func TestATestRestoreProvesWhatItSays(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	h := newHarness(t, "")
	h.settings("verify: {directory: " + h.dir + ", queries: [\"select count(*) > 1 from t\", \"select 'all is well'\", \"select max(i) > 0 from t\", \"select i from t limit 1\"]}")
	h.start(ctx, "archiver")
	h.psql(ctx, "create table t (i int primary key); insert into t select generate_series(1, 1000)")
	h.mustPitr(ctx, "backup")
	h.psql(ctx, "insert into t select generate_series(1001, 2000)")
	h.archived(ctx)

	prove := func(arguments ...string) (repo.Proof, error) {
		t.Helper()
		out, err := h.pitr(ctx, append([]string{"verify", "--level", "restore", "--json"}, arguments...)...)
		var proof repo.Proof
		if jsonErr := json.Unmarshal([]byte(out), &proof); jsonErr != nil {
			t.Fatalf("%v: %v\n%s", err, jsonErr, out)
		}
		if left, globErr := filepath.Glob(filepath.Join(h.dir, "pitr-verify-*")); globErr != nil || len(left) > 0 {
			t.Errorf("%q is left (%v)", left, globErr)
		}
		return proof, err
	}
	outcome := func(p repo.Proof, name string) repo.Outcome {
		for _, check := range p.Checks {
			if check.Name == name {
				return check.Outcome
			}
		}
		return "absent"
	}
	for _, arguments := range [][]string{{"--to", "latest"}, {"--seed", "7"}} {
		proof, err := prove(arguments...)
		if err != nil || !proof.OK || proof.RecoverySeconds <= 0 || proof.FetchSeconds <= 0 {
			t.Fatalf("%v: %v: %+v", arguments, err, proof)
		}
		for _, name := range []string{"restore", "recovery", "query 1", "query 2", "query 3", "query 4", "pg_amcheck", "pg_checksums"} {
			if outcome(proof, name) != repo.Passed {
				t.Errorf("%v: %s: %s: %+v", arguments, name, outcome(proof, name), proof)
			}
		}
	}

	// The owner's promise is broken.
	h.psql(ctx, "delete from t")
	h.archived(ctx)
	if proof, err := prove("--to", "latest"); err == nil || proof.OK || outcome(proof, "query 1") != repo.Failed || outcome(proof, "pg_amcheck") != repo.Passed {
		t.Errorf("with an empty table: %v: %+v", err, proof)
	}
	// So is one about rows that are not there: it has no answer.
	if proof, err := prove("--to", "latest"); err == nil || outcome(proof, "query 2") != repo.Passed || outcome(proof, "query 3") != repo.Failed || outcome(proof, "query 4") != repo.Failed {
		t.Errorf("with an empty table: %v: %+v", err, proof)
	}
	h.psql(ctx, "insert into t select generate_series(1, 2000)")

	// An index is in another order than its operator class says, as after a change of the libc's collations.
	h.psql(ctx, `create function cmp(int, int) returns int immutable language sql as 'select btint4cmp($1, $2)';
		create operator class odd for type int using btree as operator 1 <, operator 2 <=, operator 3 =, operator 4 >=, operator 5 >, function 1 cmp(int, int);
		create index on t (i odd); create or replace function cmp(int, int) returns int immutable language sql as 'select btint4cmp($2, $1)'`)
	h.archived(ctx)
	if proof, err := prove("--to", "latest"); err == nil || proof.OK || outcome(proof, "pg_amcheck") != repo.Failed || outcome(proof, "pg_checksums") != repo.Passed {
		t.Errorf("with an index out of order: %v: %+v", err, proof)
	}

	// A byte of a pack is wrong.
	packs, err := filepath.Glob(filepath.Join(h.dir, "repository", "test", "packs", "*", "000000"))
	if err != nil || len(packs) == 0 {
		t.Fatal(err, packs)
	}
	newest := packs[len(packs)-1]
	content, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)/2] ^= 1
	if err := os.Chmod(newest, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(newest, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if proof, err := prove("--to", "latest"); err == nil || proof.OK || outcome(proof, "restore") != repo.Failed {
		t.Errorf("with a damaged pack: %v: %+v", err, proof)
	}
	if out, err := h.pitr(ctx, "verify", "--level", "checksum"); err == nil || !strings.Contains(out, "defect: ") {
		t.Errorf("checksum: %v\n%s", err, out)
	}
	proofs, err := filepath.Glob(filepath.Join(h.dir, "repository", "test", "proofs", "*", "*.json"))
	if err != nil || len(proofs) != 6 {
		t.Errorf("%d proofs are stored: %v", len(proofs), err)
	}
}

// settings adds lines to the configuration.
func (h *harness) settings(lines string) {
	h.t.Helper()
	text, err := os.ReadFile(h.config)
	if err == nil {
		err = os.WriteFile(h.config, append(text, lines+"\n"...), 0o644)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}
