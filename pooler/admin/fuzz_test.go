package admin

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// FuzzConsole sends anything to a console of an operator: it answers in whole messages, or ends.
func FuzzConsole(f *testing.F) {
	seed := func(messages ...pgproto3.FrontendMessage) {
		var in []byte
		for _, m := range messages {
			var err error
			if in, err = m.Encode(in); err != nil {
				f.Fatal(err)
			}
		}
		f.Add(in)
		f.Add(in[:len(in)-1]) // cut off
	}
	seed(query("SHOW POOLS"), query("SET a='"), query("KILL_CLIENT 99999999999"), query("MOVE a TO b 70000"))
	seed(&pgproto3.Parse{Query: "SHOW LISTS"}, &pgproto3.Describe{ObjectType: 'S'}, &pgproto3.Bind{ResultFormatCodes: []int16{1}}, &pgproto3.Execute{MaxRows: 1}, &pgproto3.Sync{})
	seed(&pgproto3.Bind{ParameterFormatCodes: []int16{1, 1}, Parameters: [][]byte{{1}, nil}}, &pgproto3.Close{ObjectType: 'X'}, &pgproto3.Sync{})
	seed(&pgproto3.Describe{ObjectType: '?'}, &pgproto3.Flush{}, &pgproto3.CopyData{}, &pgproto3.Sync{}, &pgproto3.Sync{})
	f.Add([]byte{'Q', 0, 0, 0, 3})                          // shorter than its length
	f.Add([]byte{'Q', 0xff, 0xff, 0xff, 0xff})              // longer than anything
	f.Add([]byte{'B', 0, 0, 0, 10, 0, 0, 0xff, 0xff, 0, 0}) // a Bind of 65,535 formats
	f.Fuzz(func(t *testing.T, in []byte) {
		var out sink
		c := Console{In: bufio.NewReader(bytes.NewReader(in)), Out: &out, Role: RoleAdmin, Steering: &recorder{}, Secret: make([]byte, 4)}
		_ = c.Serve(t.Context()) // input that makes no sense is an error
		for rest := out.Bytes(); len(rest) > 0; {
			if len(rest) < 5 || int(binary.BigEndian.Uint32(rest[1:]))+1 > len(rest) {
				t.Fatalf("half a message: %q", rest)
			}
			rest = rest[binary.BigEndian.Uint32(rest[1:])+1:]
		}
	})
}
