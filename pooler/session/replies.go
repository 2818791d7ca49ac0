package session

// replyKind is what a server owes for one message that was sent to it.
type replyKind uint8

const (
	replyPrelude   replyKind = iota + 1 // everything up to ReadyForQuery; none of it is the client's
	replyQuery                          // anything up to ReadyForQuery
	replyFunction                       // FunctionCallResponse, then ReadyForQuery
	replySync                           // ReadyForQuery
	replyParse                          // ParseComplete
	replyBind                           // BindComplete
	replyDescribe                       // perhaps ParameterDescription, then RowDescription or NoData
	replyExecute                        // rows or COPY, then CommandComplete, EmptyQueryResponse or PortalSuspended
	replyClose                          // CloseComplete
	replyOurParse                       // nothing comes: the machine itself answers ParseComplete in this place
	replyOurClose                       // nothing comes: the machine itself answers CloseComplete in this place
	replyOurReady                       // nothing comes: the machine itself answers ReadyForQuery in this place
	replyOurReport                      // nothing comes: the machine itself tells in this place what the server reports
	replyBegin                          // the answers to a begin that is not the client's: from ParseComplete to two CloseCompletes
	replyCopyEnd                        // nothing comes: the place where the client ended a COPY
)

// reply is one thing that a server owes.
type reply struct {
	kind      replyKind
	swallow   bool       // the client did not ask for it
	parses    bool       // Bind: ParseComplete waits for its outcome, see Session.reuse
	dropped   bool       // Query, Close: it has dropped the unnamed statement
	serial    uint32     // which unnamed statement was parsed or dropped
	statement *statement // the client's named statement that was parsed or closed
	prepared  *prepared  // Parse of a named statement: what the server then has
	script    *script    // Query, Execute: what it does, where that matters
	sql       string     // Prelude: the statement that it PREPAREs, which may fail
	probe     bool       // Prelude: a question about session objects
	done      int        // Query: how many statements of the script were answered; Begin: how many Closes
}

// endsBatch reports whether a server that skips to the next Sync goes on here.
func (r *reply) endsBatch() bool { return r.kind == replySync }

// replies is a queue in a ring. It grows; the session's PipelineMax bounds it.
type replies struct {
	ring []reply // its length is zero or a power of two
	head int
	n    int
	// readies is how many of them end with ReadyForQuery: as long as there are any, the transaction's state to come is unknown.
	readies int
}

// ready reports whether it ends with a ReadyForQuery of the client's.
func (r *reply) ready() bool {
	return r.kind == replyQuery || r.kind == replyFunction || r.kind == replySync
}

// given notes that the client gets a reply that the machine itself gives: from now on it is certain.
func (r *reply) given() {
	if r.kind == replyOurParse {
		r.statement.valid = true
	}
}

func (q *replies) len() int { return q.n }

func (q *replies) at(i int) *reply { return &q.ring[(q.head+i)&(len(q.ring)-1)] }

func (q *replies) front() *reply {
	if q.n == 0 {
		return nil
	}
	return q.at(0)
}

// nothing is the queue of a session without a server. It stays empty.
var nothing replies

func (q *replies) push(r reply) {
	if q == &nothing {
		panic("session: a reply is owed by no server")
	}
	if q.n == len(q.ring) {
		grown := make([]reply, max(16, 2*len(q.ring)))
		for i := range q.n {
			grown[i] = *q.at(i)
		}
		q.ring, q.head = grown, 0
	}
	q.n++
	*q.at(q.n - 1) = r
	if r.ready() {
		q.readies++
	}
}

func (q *replies) pop() reply {
	r := *q.at(0)
	*q.at(0) = reply{}
	q.head = (q.head + 1) & (len(q.ring) - 1)
	q.n--
	if r.ready() {
		q.readies--
	}
	return r
}

func (q *replies) clear() {
	clear(q.ring)
	q.head, q.n, q.readies = 0, 0, 0
}

// ringKept is the length of the longest ring that a server keeps between two clients.
const ringKept = 64

// shrink gives back the memory of a pipeline that was long. The queue is empty.
func (q *replies) shrink() {
	if len(q.ring) > ringKept {
		q.ring, q.head = nil, 0
	}
}

// dropSyncs takes out the Syncs from the i-th place up to where the client ended its COPY, or sent what does not belong into one.
// It reports how many there were, whether that end is in the queue, and how many Syncs are left behind it.
func (q *replies) dropSyncs(i int) (dropped int, ended bool, left int) {
	kept := i
	for ; i < q.n; i++ {
		r := *q.at(i)
		ended = ended || r.kind != replySync
		if r.kind == replySync && !ended {
			dropped++
			q.readies--
			continue
		}
		if r.kind == replySync {
			left++
		}
		*q.at(kept) = r
		kept++
	}
	for i := kept; i < q.n; i++ {
		*q.at(i) = reply{}
	}
	q.n = kept
	return dropped, ended, left
}
