package pgwire

import "testing"

// BenchmarkHeader scans the frames of a batch of the extended protocol.
func BenchmarkHeader(b *testing.B) {
	in := AppendQuery(nil, "select abalance from pgbench_accounts where aid = 1")
	in = AppendParse(in, "", "select 1\x00\x00\x00")
	in = AppendNamed(in, Describe, "s1")
	in = AppendEmpty(in, Sync)
	b.ReportAllocs()
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		for at := 0; at < len(in); {
			h, ok, err := ClientHeader(in[at:])
			if !ok || err != nil {
				b.Fatal(ok, err)
			}
			at += HeaderLen + h.Body
		}
	}
}
