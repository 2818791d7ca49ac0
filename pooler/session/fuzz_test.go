package session

import (
	"testing"

	"pgregory.net/rapid"

	"pitr/internal/pgwire"
)

// FuzzScripts looks for a script, and an order of events, in which a client sees anything but what Postgres would tell it. What is mutated is
// the choices of TestClientsSeeWhatPostgresWouldTellThem, so that there is coverage to go by.
func FuzzScripts(f *testing.F) {
	choices := func(step byte) []byte {
		out := make([]byte, 4096)
		for i := range out {
			out[i] = byte(i/8) * step
		}
		return out
	}
	f.Add(choices(0))  // the first choice everywhere
	f.Add(choices(1))  // small choices
	f.Add(choices(37)) // all kinds
	f.Fuzz(rapid.MakeFuzz(asPostgres))
}

// FuzzClean lets a server answer DISCARD ALL with anything. It is clean only after exactly that was carried out.
func FuzzClean(f *testing.F) {
	done := append(pgwire.AppendHeader(nil, 'C', len(discardTag)), discardTag...)
	ready := pgwire.AppendReady(nil, pgwire.Idle)
	refused := pgwire.AppendError(nil, &pgwire.Failure{Severity: "ERROR", Code: "25001", Message: "no"})
	param := pgwire.AppendParameterStatus(nil, pgwire.Param{Name: "TimeZone", Value: "UTC"})
	f.Add(join(done, ready), uint8(1))                                       // as it should be
	f.Add(join(param, done, param, ready), uint8(3))                         // with what it tells of its settings
	f.Add(join(refused, ready), uint8(200))                                  // an error
	f.Add(join(ready), uint8(9))                                             // nothing done
	f.Add(join(done, done, ready), uint8(9))                                 // done twice
	f.Add(join(done, ready, ready), uint8(250))                              // more behind it
	f.Add(join(done, pgwire.AppendReady(nil, pgwire.Transaction)), uint8(4)) // in a transaction
	f.Add([]byte("C\x7f\xff\xff\xffDISCARD ALL"), uint8(4))                  // a length that is absurd
	f.Fuzz(func(t *testing.T, in []byte, piece uint8) {
		s := NewServer(map[string]string{"TimeZone": ""})
		s.dirty = true
		s.AppendClean(nil)
		var have, said []byte // what was not used yet, and all
		for len(in) > 0 {
			n := min(int(piece)+1, len(in))
			have, said, in = append(have, in[:n]...), append(said, in[:n]...), in[n:]
			used, clean, err := s.Clean(have)
			if used < 0 || used > len(have) {
				t.Fatalf("used %d of %d", used, len(have))
			}
			if err != nil {
				return
			}
			if have = have[used:]; len(have) > cleanMessageMax+pgwire.HeaderLen+int(piece)+1 {
				t.Fatalf("%d bytes are kept", len(have))
			}
			if clean {
				if s.dirty || len(have) > 0 || !cleaned(said) {
					t.Fatalf("clean after %q", said)
				}
				return
			}
		}
	})
}

// cleaned reports whether these messages say once that DISCARD ALL was done, and then, as the last thing, that no transaction is open.
func cleaned(in []byte) bool {
	tags := 0
	for len(in) > 0 {
		h, ok, err := pgwire.ServerHeader(in)
		if err != nil || !ok || len(in) < pgwire.HeaderLen+h.Body {
			return false
		}
		body := string(in[pgwire.HeaderLen:][:h.Body])
		in = in[pgwire.HeaderLen+h.Body:]
		switch h.Type {
		case 'C':
			tags++
			if body != discardTag {
				return false
			}
		case 'Z':
			return body == "I" && tags == 1 && len(in) == 0
		case 'S', 'N', 'A':
		default:
			return false
		}
	}
	return false
}

func join(parts ...[]byte) (all []byte) {
	for _, part := range parts {
		all = append(all, part...)
	}
	return all
}
