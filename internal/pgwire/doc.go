// Package pgwire frames the PostgreSQL protocol, version 3, without decoding it: where a message begins, what it is, how long
// it is, and the few messages that a pooler makes itself. It owns the protocol's numbers and never reads, waits or allocates on
// behalf of a length that came from the wire. It follows "Frontend/Backend Protocol" of the PostgreSQL manual; every number
// names the source file and symbol that it comes from.
package pgwire
