//go:build soak

package pooler

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// soakClients use the pooler at the same time.
const soakClients = 500

// soakPause is how often memory is looked at.
const soakPause = 10 * time.Second

// TestSoak lets many clients do everything that TestWhoseRowIsIt does, for PITR_SOAK_MINUTES, to the program PITR_BINARY, and fails if its memory
// grows once it is warm. See make soak.
func TestSoak(t *testing.T) {
	minutes, err := strconv.ParseFloat(os.Getenv("PITR_SOAK_MINUTES"), 64)
	if err != nil {
		t.Fatal("PITR_SOAK_MINUTES: ", err)
	}
	pg := server(t)
	admin := connect(t, pg.dsn(""))
	mustQuery(t, admin, "create database stress")
	inside := connect(t, pg.dsn("")+" dbname=stress")
	mustQuery(t, inside, stressTables)
	program := startProgram(t, pg, inside)
	counts := stress{reasons: map[string]int{}}
	seed := seedOf(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(minutes*float64(time.Minute)))
	defer cancel()
	samples := make(chan []int, 1)
	go func() { samples <- program.sample(ctx, t, &counts) }()
	crowd(t, soakClients, func(client int) error {
		random := rand.New(rand.NewPCG(seed, uint64(client)))
		for ctx.Err() == nil {
			c := &stressed{counts: &counts, running: &running{port: program.port}, client: client, random: random, mark: fmt.Sprintf("<c%04d>", client)}
			if err := c.live(ctx); err != nil {
				return fmt.Errorf("client %d: %w", client, err)
			}
		}
		return nil
	})
	judge(t, <-samples)
	if n := &counts; n.foreign.Load() > 0 || n.lost.Load() > 0 {
		t.Errorf("%d foreign bytes, %d clients lost a server that nobody has terminated: %v", n.foreign.Load(), n.lost.Load(), n.reasons)
	}
	program.stop(t)
}

// soaked is the program under test.
type soaked struct {
	cmd  *exec.Cmd
	port int
	log  bytes.Buffer

	inside *pgconn.PgConn // directly to the database
}

func startProgram(t *testing.T, pg *postgres, inside *pgconn.PgConn) *soaked {
	t.Helper()
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "pitr.yaml")
	text := fmt.Sprintf("postgres:\n  dsn: %q\npooler:\n  listen: [\"127.0.0.1:%d\"]\n  default_pool_size: 20\n  auth:\n    type: trust\nhttp:\n  pooler: \"\"\n", pg.dsn(""), port)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &soaked{cmd: exec.Command(os.Getenv("PITR_BINARY"), "--config", file, "pooler"), port: port, inside: inside}
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.cmd.Process.Kill() })
	eventually(t, "the program listens", func() bool {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return s
}

// stop lets the program drain, and reads what it has logged.
func (s *soaked) stop(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("the program ended with %v", err)
	}
	for line := range strings.Lines(s.log.String()) {
		if strings.Contains(line, "panic") || strings.Contains(line, "ERROR") {
			t.Errorf("the program says %s", line)
		}
	}
}

// sample returns the resident memory of the program in KiB, every soakPause.
func (s *soaked) sample(ctx context.Context, t *testing.T, counts *stress) (samples []int) {
	ticker := time.NewTicker(soakPause)
	defer ticker.Stop()
	begun := time.Now()
	for {
		select {
		case <-ctx.Done():
			return samples
		case <-ticker.C:
		}
		if _, err := query(s.inside, "truncate owned, copied"); err != nil {
			t.Error(err)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
		if err != nil {
			t.Error(err)
			return samples
		}
		_, rest, _ := strings.Cut(string(status), "VmRSS:")
		kib, err := strconv.Atoi(strings.Fields(rest)[0])
		if err != nil {
			t.Error(err)
			return samples
		}
		samples = append(samples, kib)
		t.Logf("%4.0f s: %6d KiB, %d connections, %d queries, %d transactions", time.Since(begun).Seconds(), kib, counts.connections.Load(), counts.queries.Load(),
			counts.transactions.Load())
	}
}

// judge compares the memory of the first and the last part of the time after the warm-up, which is a third of all.
func judge(t *testing.T, samples []int) {
	t.Helper()
	warm := samples[len(samples)/3:]
	if len(warm) < 4 {
		t.Fatalf("%d samples after the warm-up show nothing; soak for longer", len(warm))
	}
	part := max(2, len(warm)/4)
	first, last := median(warm[:part]), median(warm[len(warm)-part:])
	slack := max(4<<10, first/20)
	t.Logf("%d samples: at first %d KiB, after the warm-up %d, at the end %d, at most %d; allowed to grow by %d", len(samples), samples[0], first, last, slices.Max(samples), slack)
	if last > first+slack {
		t.Errorf("memory grew by %d KiB", last-first)
	}
}

func median(values []int) int {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
