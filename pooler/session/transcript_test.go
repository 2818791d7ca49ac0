package session

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"pitr/internal/pgwire"
)

// TestTranscripts plays testdata/*: what a client sends, what a server answers, and what the machine makes of it.
//
//	session [mode=session|statement] [prepared=N] [pipeline=N] [lazy=true] [listen=true] [replay=N] [objects=pin|refuse] [name=value …]   a new client, with settings
//	server N                                                          the server that the next link takes, made on first use
//	client / from                                                     messages, one a line: "Q select 1", "P s1 select 1", "B s1", "E", "S" …
//	link, unlink                                                      as a driver would
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		play := &transcript{servers: map[string]*Server{}}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string { return play.command(t, d) })
	})
}

type transcript struct {
	session *Session
	servers map[string]*Server
	server  *Server
	in      []byte
	said    strings.Builder
}

func (p *transcript) command(t *testing.T, d *datadriven.TestData) string {
	p.said.Reset()
	switch d.Cmd {
	case "session":
		p.newSession(t, d)
	case "server":
		name := d.CmdArgs[0].Key
		if p.servers[name] == nil {
			p.servers[name] = NewServer(nil)
		}
		p.server = p.servers[name]
	case "link":
		var out Output
		p.session.Link(p.server, &out)
		p.say("to server", out.Bytes())
		p.client()
	case "client":
		for line := range strings.SplitSeq(d.Input, "\n") {
			if line != "" {
				p.in = append(p.in, clientMessage(t, line)...)
			}
		}
		p.client()
	case "from":
		var in []byte
		for line := range strings.SplitSeq(d.Input, "\n") {
			in = append(in, serverMessage(t, line)...)
		}
		p.from(in)
	case "listens":
		channels, changed := p.session.Listens()
		fmt.Fprintf(&p.said, "%q, changed %v\n", channels, changed)
	case "notify":
		p.session.Notify(1, d.CmdArgs[0].Key, "payload")
		p.say("to client", p.session.TakeReplies())
	case "resend":
		p.say("to server", p.session.TakeResend())
	case "unlink":
		fmt.Fprintf(&p.said, "%s\n", [...]string{"clean", "dirty", "broken"}[p.session.Unlink()])
	case "clean":
		p.server.AppendClean(nil)
		n, done, err := p.server.Clean([]byte(joined(t, d.Input)))
		fmt.Fprintf(&p.said, "used %d, done %v, error %v\n", n, done, err)
	default:
		t.Fatalf("unknown command %s", d.Cmd)
	}
	return p.said.String()
}

func joined(t *testing.T, lines string) string {
	var in []byte
	for line := range strings.SplitSeq(lines, "\n") {
		in = append(in, serverMessage(t, line)...)
	}
	return string(in)
}

func (p *transcript) newSession(t *testing.T, d *datadriven.TestData) {
	options := &Options{Transaction: true, PreparedMax: 100, StatementLenMax: 200, StatementsMax: 3, PipelineMax: 100, SettingsLenMax: 1000}
	params := map[string]string{}
	for _, arg := range d.CmdArgs {
		switch arg.Key {
		case "mode":
			options.Transaction, options.Statement = arg.Vals[0] != "session", arg.Vals[0] == "statement"
		case "prepared":
			options.PreparedMax, _ = strconv.Atoi(arg.Vals[0])
		case "objects":
			options.Objects = map[string]ObjectPolicy{"pin": ObjectsPin, "refuse": ObjectsRefuse}[arg.Vals[0]]
		case "replay":
			options.ReplayLenMax, _ = strconv.Atoi(arg.Vals[0])
		case "listen":
			options.Listen = true
		case "lazy":
			options.LazyBegin = true
		case "pipeline":
			options.PipelineMax, _ = strconv.Atoi(arg.Vals[0])
		default:
			params[arg.Key] = arg.Vals[0]
		}
	}
	p.session, p.in = New(options, newParams(params)), nil
}

func (p *transcript) say(to string, out []byte) {
	if len(out) > 0 {
		fmt.Fprintf(&p.said, "%s: %s\n", to, messages(out))
	}
}

func (p *transcript) client() {
	var out Output
	out.Reset(p.in)
	step := p.session.FromClient(p.in, &out)
	p.say("to server", out.Bytes())
	p.in = append([]byte(nil), p.in[step.N:]...)
	p.say("to client", p.session.TakeReplies())
	switch step.Verdict {
	case Fail:
		fmt.Fprintf(&p.said, "fail: %v\n", step.Failure)
	case Read:
		if step.Want > 0 {
			fmt.Fprintf(&p.said, "want %d bytes\n", step.Want)
		}
	default:
		fmt.Fprintf(&p.said, "%s\n", [...]string{Need: "needs a server", Full: "full", Leave: "leaves"}[step.Verdict])
	}
	p.due()
}

func (p *transcript) from(in []byte) {
	var out Output
	out.Reset(in)
	n, failure := p.session.FromServer(in, &out)
	p.say("to client", out.Bytes())
	if failure != nil {
		fmt.Fprintf(&p.said, "fail: %v\n", failure)
	} else if n < len(in) {
		fmt.Fprintf(&p.said, "%d bytes left\n", len(in)-n)
	}
	p.due()
}

func (p *transcript) due() {
	if p.session.Due() {
		p.said.WriteString("server is due\n")
	}
}

// clientMessage makes a message of a line such as "P s1 select 1".
func clientMessage(t *testing.T, line string) []byte {
	kind, rest, _ := strings.Cut(line, " ")
	name, text, _ := strings.Cut(rest, " ")
	if name == "-" {
		name = ""
	}
	switch kind {
	case "Q":
		return pgwire.AppendQuery(nil, rest)
	case "P":
		return pgwire.AppendParse(nil, name, text+"\x00\x00\x00")
	case "B":
		return bindMessage("", name)
	case "E":
		return executeMessage("")
	case "DS", "DP", "CS", "CP":
		return named(kind[0], kind[1], name)
	case "d", "f":
		return append(pgwire.AppendHeader(nil, kind[0], len(rest)+1), rest+"\x00"...)
	case "S", "H", "c", "X", "F":
		return pgwire.AppendEmpty(nil, kind[0])
	case "raw":
		text, err := strconv.Unquote(rest)
		if err != nil {
			t.Fatal(err)
		}
		return []byte(text)
	}
	t.Fatalf("unknown message %q", line)
	return nil
}

// serverMessage makes a message of a line such as "C SELECT 1" or "E 22012 division by zero".
func serverMessage(t *testing.T, line string) []byte {
	kind, rest, _ := strings.Cut(line, " ")
	switch kind {
	case "Z":
		return pgwire.AppendReady(nil, rest[0])
	case "raw":
		text, err := strconv.Unquote(rest)
		if err != nil {
			t.Fatal(err)
		}
		return []byte(text)
	case "E":
		code, text, found := strings.Cut(rest, " ")
		if !found {
			text = "message"
		}
		return pgwire.AppendError(nil, &pgwire.Failure{Severity: "ERROR", Code: code, Message: text})
	case "S":
		name, value, _ := strings.Cut(rest, " ")
		return pgwire.AppendParameterStatus(nil, pgwire.Param{Name: name, Value: value})
	case "C":
		return append(pgwire.AppendHeader(nil, 'C', len(rest)+1), rest+"\x00"...)
	}
	if len(kind) != 1 {
		t.Fatalf("unknown message %q", line)
	}
	if number, found := strings.CutPrefix(rest, "raw"); found && kind == "D" { // one column
		rest = "\x00\x01\x00\x00\x00\x01" + number
	}
	return append(pgwire.AppendHeader(nil, kind[0], len(rest)), rest...)
}

func FuzzSession(f *testing.F) {
	query := pgwire.AppendQuery(nil, "select 1")
	f.Add(query, pgwire.AppendReady([]byte("C\x00\x00\x00\x0dSELECT 1\x00"), 'I'), uint8(3), true)                // a query and its answer
	f.Add(pgwire.AppendParse(nil, "s1", "select 1\x00\x00\x00"), []byte("1\x00\x00\x00\x04"), uint8(1), true)     // a statement
	f.Add(append(bindMessage("", "s1"), executeMessage("")...), []byte("E\x00\x00\x00\x05\x00"), uint8(9), false) // an error
	f.Add([]byte("Q\x00\x00\x00\x0acopy\x00d\x00\x00\x00\x04"), []byte("G\x00\x00\x00\x04"), uint8(2), true)      // a COPY
	f.Add([]byte{}, []byte("S\x00\x00\x00\x0eTimeZone\x00X\x00A\x00\x00\x00\x04"), uint8(200), true)              // nothing asked, much said
	f.Add(query, []byte("?\x00\x00\x00\x04"), uint8(50), true)                                                    // a type that no server sends
	begin := append(pgwire.AppendQuery(nil, "begin"), pgwire.AppendQuery(nil, "set x.y = 1")...)
	f.Add(begin, []byte("1\x00\x00\x00\x042\x00\x00\x00\x04C\x00\x00\x00\x0aBEGIN\x00E\x00\x00\x00\x05\x00"), uint8(200), true) // a begin that comes late
	f.Fuzz(func(t *testing.T, fromClient, fromServer []byte, piece uint8, transaction bool) {
		s := New(&Options{Transaction: transaction, PreparedMax: 2, StatementLenMax: 100, StatementsMax: 2, PipelineMax: 10,
			SettingsLenMax: 100, ReplayLenMax: 100, LazyBegin: true, Objects: ObjectsPin, Listen: piece%2 == 0}, NoParams)
		size := int(piece) + 1
		var client, server []byte
		var out Output
		for len(fromClient)+len(fromServer) > 0 {
			n := min(size, len(fromClient))
			client, fromClient = append(client, fromClient[:n]...), fromClient[n:]
			out.Reset(client)
			step := s.FromClient(client, &out)
			if step.N < 0 || step.N > len(client) || len(out.Bytes()) > len(client)+1000 {
				t.Fatalf("used %d of %d, sent %d", step.N, len(client), len(out.Bytes()))
			}
			client = client[step.N:]
			switch step.Verdict {
			case Need:
				s.Link(NewServer(nil), &out)
			case Leave, Fail:
				return
			}
			if s.Linked() == nil {
				if len(fromClient) == 0 {
					return
				}
				continue
			}
			n = min(size, len(fromServer))
			server, fromServer = append(server, fromServer[:n]...), fromServer[n:]
			out.Reset(server)
			used, failure := s.FromServer(server, &out)
			if failure != nil {
				if s.Unlink() != Broken {
					t.Fatal("a server in doubt was kept")
				}
				return
			}
			if server = server[used:]; len(server) > gatherMax+pgwire.HeaderLen+size {
				t.Fatalf("%d bytes of a server are gathered", len(server))
			}
			if s.Due() && s.Unlink() == Broken && !s.doubt {
				t.Fatal("a server that was due is broken")
			}
		}
	})
}
