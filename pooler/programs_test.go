package pooler

import (
	"strings"
	"testing"

	"pitr/config"
)

func inMode(mode string) func(*config.Config) {
	return func(cfg *config.Config) { cfg.Pooler.PoolMode = mode }
}

func TestPsqlWorks(t *testing.T) {
	pg := server(t)
	for _, mode := range []string{"session", "transaction"} {
		r := start(t, pg, inMode(mode))
		out := r.run(t, pg, "psql", "-X", "-At", "-c", "select 'it ' || 'works'", "-c", `\conninfo`, "-c", `\d pg_class`)
		if !strings.HasPrefix(out, "it works\n") || !strings.Contains(out, "relname") {
			t.Errorf("%s mode: psql printed %q", mode, out)
		}
	}
}

func TestPgbenchWorksInEveryModeAndProtocol(t *testing.T) {
	pg := server(t)
	for _, mode := range []string{"session", "transaction"} {
		r := start(t, pg, func(cfg *config.Config) { cfg.Pooler.PoolMode = mode; cfg.Pooler.DefaultPoolSize = 8 })
		r.run(t, pg, "pgbench", "-i", "-q", "-s", "1")
		for _, protocol := range []string{"simple", "extended", "prepared"} {
			for _, script := range []string{"select-only", "tpcb-like"} {
				out := r.run(t, pg, "pgbench", "-n", "-M", protocol, "-b", script, "-c", "8", "-j", "2", "-t", "100")
				if !strings.Contains(out, "number of transactions actually processed: 800/800") {
					t.Errorf("%s mode, %s: %s", mode, protocol, out)
				}
			}
		}
	}
}
