package pooler

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/config"
	"pitr/internal/pgwire"
)

// hello logs in with a version of the protocol, and returns what came of it up to ReadyForQuery or the end.
func (w *wire) hello(version uint32, more map[string]string) (negotiated string) {
	w.t.Helper()
	parameters := map[string]string{"user": "postgres", "database": "postgres"}
	for name, value := range more {
		parameters[name] = value
	}
	w.send(&pgproto3.StartupMessage{ProtocolVersion: version, Parameters: parameters})
	for {
		kind, body, err := w.next()
		if err != nil {
			w.t.Fatal(err)
		}
		switch kind {
		case 'v':
			minor := binary.BigEndian.Uint32(body)
			options := strings.FieldsFunc(string(body[8:]), func(r rune) bool { return r == 0 })
			if len(options) != int(binary.BigEndian.Uint32(body[4:])) {
				w.t.Errorf("%d options are %v", body[4:8], options)
			}
			negotiated = fmt.Sprintf("%d.%d %v", minor>>16, minor&0xffff, options)
		case 'E':
			return string(body)
		case 'Z':
			return negotiated
		}
	}
}

// TestVersionsOfTheProtocol asks for what there is and what there is not, and compares cancel keys' lengths: clients and the console.
func TestVersionsOfTheProtocol(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) { cfg.Pooler.AdminUsers = []string{"postgres"} })
	for _, one := range []struct {
		version    uint32
		more       map[string]string
		negotiated string
		secret     int
	}{
		{pgwire.Version30, nil, "", 4},
		{3<<16 | 1, nil, "", 4},
		{pgwire.Version32, nil, "", 32},
		{3<<16 | 3, nil, "3.2 []", 32},
		{3<<16 | 9999, nil, "3.2 []", 32}, // what PostgreSQL 19's libpq asks for, to see whether it is told
		{3<<16 | 9999, map[string]string{"_pq_.test_protocol_negotiation": ""}, "3.2 [_pq_.test_protocol_negotiation]", 32},
		{pgwire.Version30, map[string]string{"_pq_.hm": "x"}, "3.0 [_pq_.hm]", 4},
		{pgwire.Version32, map[string]string{"_pq_.hm": "x"}, "3.2 [_pq_.hm]", 32},
	} {
		for _, database := range []string{"postgres", "pgbouncer"} {
			w := dial(t, r)
			more := map[string]string{"database": database}
			for name, value := range one.more {
				more[name] = value
			}
			if got := w.hello(one.version, more); got != one.negotiated || len(w.secret) != one.secret || w.process>>31 != 0 {
				t.Errorf("%d.%d %v to %s: %q with a secret of %d bytes for process %d", one.version>>16, one.version&0xffff, one.more, database, got, len(w.secret), int32(w.process))
			}
			if bytes.Count(w.secret, []byte{0}) == len(w.secret) {
				t.Error("the secret is all zero")
			}
		}
	}
	for _, version := range []uint32{2 << 16, 4 << 16} {
		if got := dial(t, r).hello(version, nil); !strings.Contains(got, "C0A000") || !strings.Contains(got, "server supports 3.0 to 3.2") {
			t.Errorf("version %d got %q", version>>16, got)
		}
	}
}

// TestWrongCancelKeysDoNothing sends keys that are nearly right, and then the right one.
func TestWrongCancelKeysDoNothing(t *testing.T) {
	pg := server(t)
	r := start(t, pg, nil)
	watch := connect(t, pg.dsn(""))
	for _, version := range []uint32{pgwire.Version30, pgwire.Version32} {
		victim := dial(t, r)
		victim.hello(version, nil)
		mark := fmt.Sprintf("select pg_sleep(100) /* %s %d */", t.Name(), version)
		victim.send(&pgproto3.Query{String: mark})
		eventually(t, "the statement runs", func() bool {
			return mustQuery(t, watch, "select count(*) from pg_stat_activity where state = 'active' and query = '"+mark+"'") == "1"
		})
		n := len(victim.secret)
		last, first := bytes.Clone(victim.secret), bytes.Clone(victim.secret)
		last[n-1] ^= 1
		first[0] ^= 0x80
		passed := r.Stats().CancelRequests
		for _, secret := range [][]byte{last, first, victim.secret[:n-1], victim.secret[:1], append(bytes.Clone(victim.secret), 0), bytes.Repeat([]byte{7}, 256), make([]byte, n)} {
			guess := dial(t, r)
			guess.send(&pgproto3.CancelRequest{ProcessID: victim.process, SecretKey: secret})
			if got := guess.rest(); got != "" {
				t.Errorf("a guess got %q", got)
			}
		}
		if n := r.Stats().CancelRequests; n != passed {
			t.Errorf("%d wrong cancel requests were passed on", n-passed)
		}
		right := dial(t, r)
		right.send(&pgproto3.CancelRequest{ProcessID: victim.process, SecretKey: victim.secret})
		right.rest()
		if got := victim.until('Z'); !strings.Contains(got, "57014") {
			t.Errorf("version %d: the statement that was canceled got %s", version&0xffff, got)
		}
	}
}

// TestPsql18SpeaksTheNewestProtocol runs psql of PostgreSQL 18 with the newest protocol, and interrupts it.
func TestPsql18SpeaksTheNewestProtocol(t *testing.T) {
	pg := server(t)
	bin, err := exec.Command("../scripts/pg.sh", "18").Output() // where it is; unpacked first if need be
	if err != nil {
		t.Fatal(err)
	}
	psql := strings.TrimSpace(string(bin)) + "/psql"
	r := start(t, pg, nil)
	watch := connect(t, pg.dsn(""))
	for version, shown := range map[string]string{"latest": "3.2", "3.0": "3.0"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		mark := "select pg_sleep(100) /* psql " + version + " */"
		cmd := exec.CommandContext(ctx, psql, "-X", "-c", `\conninfo`, "-c", mark)
		cmd.Env = append(os.Environ(), "PGHOST=127.0.0.1", "PGPORT="+strconv.Itoa(r.port), "PGUSER=postgres", "PGDATABASE=postgres", "PGMAXPROTOCOLVERSION="+version)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the statement runs", func() bool {
			return mustQuery(t, watch, "select count(*) from pg_stat_activity where state = 'active' and query = '"+mark+"'") == "1"
		})
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || !strings.Contains(out.String(), "canceling statement due to user request") {
			t.Errorf("psql said %v\n%s", err, out.String())
		}
		row := ""
		for line := range strings.Lines(out.String()) {
			if strings.Contains(line, "Protocol Version") {
				row = line
			}
		}
		if !strings.Contains(row, shown) {
			t.Errorf("psql with %s speaks another protocol: %q", version, row)
		}
	}
}
