package pgwire

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgproto3"
)

func TestHeaderRefusesWhatPostgresRefuses(t *testing.T) {
	check := func(in string, wantOK, wantErr bool) {
		t.Helper()
		_, ok, err := ClientHeader([]byte(in))
		if ok != wantOK || (err != nil) != wantErr {
			t.Errorf("ClientHeader(%q) = %v, %v", in, ok, err)
		}
	}
	check("", false, false)
	check("Q\x00\x00\x00", false, false)
	check("Q\x00\x00\x00\x04", true, false)
	check("Q\x00\x00\x00\x03", false, true)
	check("Q\x3f\xff\xff\xfe", true, false)
	check("Q\x3f\xff\xff\xff", false, true)
	check("S\x00\x00\x27\x10", true, false)
	check("S\x00\x00\x27\x11", false, true)
	check("p", false, true)
	check("\x00", false, true)
	if _, _, err := ServerHeader([]byte{'?'}); err == nil {
		t.Error("a server's message type ? was accepted")
	}
	if h, ok, err := ServerHeader([]byte("Z\x00\x00\x00\x05I")); !ok || err != nil || h != (Header{'Z', 1}) {
		t.Errorf("ServerHeader(Z) = %v %v %v", h, ok, err)
	}
}

func TestScannerFindsTheBorderInAnyChunking(t *testing.T) {
	for chunk := 1; chunk < 12; chunk++ {
		var s Scanner
		s.Open(10)
		body := bytes.Repeat([]byte{'x'}, 25)
		seen := 0
		for s.Inside() {
			seen += s.Take(body[seen:min(seen+chunk, len(body))])
		}
		if seen != 10 {
			t.Errorf("chunks of %d: the body ended after %d bytes", chunk, seen)
		}
	}
}

func TestStartupIsReadAsPgprotoWritesIt(t *testing.T) {
	message := pgproto3.StartupMessage{ProtocolVersion: Version30, Parameters: map[string]string{"user": "app"}}
	packet, err := message.Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseStartup(packet)
	if err != nil {
		t.Fatal(err)
	}
	want := Startup{Kind: StartupSession, Version: Version30, Params: []Param{{"user", "app"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	cancel := pgproto3.CancelRequest{ProcessID: 7, SecretKey: []byte{1, 2, 3, 4}}
	packet, _ = cancel.Encode(nil)
	if got, err = ParseStartup(packet); err != nil || got.Kind != StartupCancel || got.Process != 7 || !bytes.Equal(got.Secret, []byte{1, 2, 3, 4}) {
		t.Errorf("cancel request: %+v, %v", got, err)
	}
}

func TestStartupBoundIsPostgres(t *testing.T) {
	for length, ok := range map[uint32]bool{0: false, 7: false, 8: true, 10_000: true, 10_001: false, 1 << 31: false} {
		var head [4]byte
		binary.BigEndian.PutUint32(head[:], length)
		if _, err := StartupLen(head); (err == nil) != ok {
			t.Errorf("StartupLen(%d): %v", length, err)
		}
	}
}

func TestMessagesAreReadByPgproto(t *testing.T) {
	out := AppendError(nil, &Failure{Severity: "FATAL", Code: "53300", Message: "no more", Hint: "wait"})
	var message pgproto3.ErrorResponse
	if err := message.Decode(out[HeaderLen:]); err != nil {
		t.Fatal(err)
	}
	if message.Severity != "FATAL" || message.Code != "53300" || message.Message != "no more" || message.Hint != "wait" {
		t.Errorf("got %+v", message)
	}
	if got := ErrorField(out[HeaderLen:], 'M'); got != "no more" {
		t.Errorf("ErrorField(M) = %q", got)
	}
	var parse pgproto3.Parse
	if err := parse.Decode(AppendParse(nil, "s1", "select 1\x00\x00\x00")[HeaderLen:]); err != nil || parse.Name != "s1" || parse.Query != "select 1" {
		t.Errorf("got %+v, %v", parse, err)
	}
	var query pgproto3.Query
	if err := query.Decode(AppendQuery(nil, "select 2")[HeaderLen:]); err != nil || query.String != "select 2" {
		t.Errorf("got %+v, %v", query, err)
	}
	var closing pgproto3.Close
	if err := closing.Decode(AppendNamed(nil, Close, "s1")[HeaderLen:]); err != nil || closing.Name != "s1" || closing.ObjectType != 'S' {
		t.Errorf("got %+v, %v", closing, err)
	}
	var status pgproto3.ParameterStatus
	if err := status.Decode(AppendParameterStatus(nil, Param{"TimeZone", "UTC"})[HeaderLen:]); err != nil || status.Value != "UTC" {
		t.Errorf("got %+v, %v", status, err)
	}
}

func FuzzParseStartup(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x08\x04\xd2\x16\x2f"))                     // SSLRequest
	f.Add([]byte("\x00\x00\x00\x10\x04\xd2\x16\x2e\x00\x00\x00\x01abcd")) // CancelRequest
	f.Add([]byte("\x00\x00\x00\x12\x00\x03\x00\x00user\x00a\x00\x00"))    // a session of user a
	f.Add([]byte("\x00\x00\x00\x12\x00\x03\x00\x00user\x00a\x00"))        // its last terminator is missing
	f.Fuzz(func(t *testing.T, packet []byte) {
		got, err := ParseStartup(packet)
		if err != nil {
			return
		}
		if got.Kind == 0 {
			t.Error("accepted a packet of no kind")
		}
		for _, p := range got.Params {
			if p.Name == "" || strings.IndexByte(p.Name+p.Value, 0) >= 0 {
				t.Errorf("parameter %q = %q", p.Name, p.Value)
			}
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte("Q\x00\x00\x00\x04"))      // the shortest query
	f.Add([]byte("S\x00\x00\x27\x11"))      // one byte more than a small message may have
	f.Add([]byte("B\xff\xff\xff\xff"))      // a negative length
	f.Add([]byte("Z\x00\x00\x00\x05Imore")) // a server's message with something behind it
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, read := range []func([]byte) (Header, bool, error){ClientHeader, ServerHeader} {
			h, ok, err := read(in)
			if ok && err != nil {
				t.Error("both a header and an error")
			}
			if ok && (len(in) < HeaderLen || h.Body < 0 || h.Body > largeMessageMax) {
				t.Errorf("%q gave %+v", in, h)
			}
		}
	})
}
