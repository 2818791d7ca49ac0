package admin

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Role says what a user may do on the console. The zero value may do nothing.
type Role uint8

// The roles, in the order of what they may do.
const (
	RoleNone  Role = iota
	RoleStats      // pooler.stats_users: look
	RoleAdmin      // pooler.admin_users: everything
)

// RoleOf returns the role of a user. Who is named nowhere has none.
func RoleOf(user string, admins, stats []string) Role {
	switch {
	case slices.Contains(admins, user):
		return RoleAdmin
	case slices.Contains(stats, user):
		return RoleStats
	}
	return RoleNone
}

// Shutdown says what a pooler waits for before it ends.
type Shutdown uint8

// The ways to shut down.
const (
	ShutdownNow     Shutdown = iota
	ShutdownServers          // until every transaction has ended
	ShutdownClients          // until every client has left by itself
)

// Steering is what commands do. An empty database stands for all of them.
type Steering interface {
	// Show returns the rows of one of the tables in Columns.
	Show(table string) ([][]any, error)
	// Pause returns when no server of the database is lent any more, or when ctx ends; then nothing has changed.
	Pause(ctx context.Context, database string) error
	Resume(database string) error
	// Move sends a paused database's connections elsewhere and returns where they went before.
	Move(database, host string, port int) (from string, err error)
	// Enable lets new clients in, or keeps them out.
	Enable(database string, enabled bool) error
	// Reconnect closes the servers that there are now as soon as nobody has them.
	Reconnect(database string) error
	// Kill ends all clients and servers; who comes waits for Resume.
	Kill(database string) error
	// KillClient ends the client with this id of SHOW CLIENTS.
	KillClient(id uint32) error
	// WaitClose returns when all servers that Reconnect has marked are closed, or when ctx ends.
	WaitClose(ctx context.Context, database string) error
	// Reload reads the configuration again, and returns what has changed.
	Reload() (changes []string, err error)
	// Set changes a setting until the next Reload, and returns what has changed.
	Set(name, value string) (change string, err error)
	// Shutdown ends the pooler, and this console with it. It is called when the answer was sent.
	Shutdown(how Shutdown)
}

// answer is what a command has to say.
type answer struct {
	notices []*pgproto3.NoticeResponse
	rows    [][]any
	after   func() // is done when the answer was sent; nil: nothing
}

// plan is a command that was understood.
type plan struct {
	verb    string
	role    Role // that it takes
	tag     string
	columns []Column // of its answer; nil when it has no rows
	run     func(context.Context, Steering) (answer, error)
}

// refusal is why a text is no command that can be carried out.
type refusal struct{ code, text string }

func (r *refusal) Error() string { return r.text }

// verb is one row of the console's table of commands.
type verb struct {
	name string
	role Role
	// read makes a plan of the words behind the verb; nil says that they make no sense.
	read func(words []word) (*plan, error)
}

var verbs = []verb{
	{"SHOW", RoleStats, readShow},
	{"HELP", RoleStats, readHelp},
	{"PAUSE", RoleAdmin, onDatabase(func(ctx context.Context, s Steering, database string) error { return s.Pause(ctx, database) })},
	{"RESUME", RoleAdmin, onDatabase(func(_ context.Context, s Steering, database string) error { return s.Resume(database) })},
	{"MOVE", RoleAdmin, readMove},
	{"DISABLE", RoleAdmin, needsDatabase(func(s Steering, database string) error { return s.Enable(database, false) })},
	{"ENABLE", RoleAdmin, needsDatabase(func(s Steering, database string) error { return s.Enable(database, true) })},
	{"RECONNECT", RoleAdmin, onDatabase(func(_ context.Context, s Steering, database string) error { return s.Reconnect(database) })},
	{"KILL", RoleAdmin, onDatabase(func(_ context.Context, s Steering, database string) error { return s.Kill(database) })},
	{"KILL_CLIENT", RoleAdmin, readKillClient},
	{"WAIT_CLOSE", RoleAdmin, onDatabase(func(ctx context.Context, s Steering, database string) error { return s.WaitClose(ctx, database) })},
	{"RELOAD", RoleAdmin, readReload},
	{"SET", RoleAdmin, readSet},
	{"SHUTDOWN", RoleAdmin, readShutdown},
	{"SUSPEND", RoleAdmin, readSuspend},
}

// understand makes a plan of a command. It returns no plan and no error for an empty text.
func understand(text string) (*plan, error) {
	words, err := split(text)
	if err != nil {
		return nil, &refusal{"42601", err.Error()}
	}
	if len(words) == 0 {
		return nil, nil
	}
	for _, v := range verbs {
		if !words[0].is(v.name) {
			continue
		}
		p, err := v.read(words[1:])
		if p == nil && err == nil {
			break
		}
		if p != nil {
			p.verb = v.name
			if p.role == RoleNone {
				p.role = v.role
			}
			if p.tag == "" {
				p.tag = v.name
			}
		} else if v.role > RoleStats {
			p = &plan{verb: v.name, role: v.role} // who may not say it does not learn what is wrong with it
		}
		return p, err
	}
	return nil, &refusal{"42601", fmt.Sprintf("invalid command '%s', use SHOW HELP;", strings.TrimRight(text, "\x00"))}
}

// silent is a plan without an answer.
func silent(do func(context.Context, Steering) error) *plan {
	return &plan{run: func(ctx context.Context, s Steering) (answer, error) { return answer{}, do(ctx, s) }}
}

func onDatabase(do func(context.Context, Steering, string) error) func([]word) (*plan, error) {
	return func(words []word) (*plan, error) {
		if len(words) > 1 {
			return nil, nil
		}
		database := ""
		if len(words) == 1 {
			database = words[0].text
		}
		if len(words) == 1 && (database == "" || database == Database) {
			return nil, &refusal{"22023", fmt.Sprintf("%q is no database with servers", database)}
		}
		return silent(func(ctx context.Context, s Steering) error { return do(ctx, s, database) }), nil
	}
}

func needsDatabase(do func(Steering, string) error) func([]word) (*plan, error) {
	read := onDatabase(func(_ context.Context, s Steering, database string) error { return do(s, database) })
	return func(words []word) (*plan, error) {
		if len(words) == 0 {
			return nil, &refusal{"42601", "a database is required"}
		}
		return read(words)
	}
}

func readMove(words []word) (*plan, error) {
	if len(words) != 4 || !words[1].is("TO") {
		return nil, nil
	}
	port, err := strconv.Atoi(words[3].text)
	if err != nil || port < 1 || port > 65535 {
		return nil, &refusal{"22023", fmt.Sprintf("%q is no port", words[3].text)}
	}
	return &plan{columns: movedColumns, run: func(_ context.Context, s Steering) (answer, error) {
		from, err := s.Move(words[0].text, words[2].text, port)
		return answer{rows: [][]any{{from}}}, err
	}}, nil
}

func readKillClient(words []word) (*plan, error) {
	if len(words) != 1 {
		return nil, nil
	}
	id, err := strconv.ParseUint(words[0].text, 10, 32)
	if err != nil {
		return nil, &refusal{"22023", fmt.Sprintf("%q is no id of a client: see SHOW CLIENTS", words[0].text)}
	}
	return silent(func(_ context.Context, s Steering) error { return s.KillClient(uint32(id)) }), nil
}

func readReload(words []word) (*plan, error) {
	if len(words) > 0 {
		return nil, nil
	}
	return &plan{run: func(_ context.Context, s Steering) (answer, error) {
		changes, err := s.Reload()
		var a answer
		for _, change := range changes {
			a.notices = append(a.notices, notice(change, ""))
		}
		return a, err
	}}, nil
}

// clientSettings are what clients SET when they have connected, without having been asked to. It has no meaning here.
var clientSettings = []string{"application_name", "bytea_output", "client_encoding", "client_min_messages", "datestyle", "extra_float_digits", "intervalstyle", "session", "standard_conforming_strings", "statement_timeout", "timezone"}

func readSet(words []word) (*plan, error) {
	if len(words) < 2 || words[0].quoted {
		return nil, nil
	}
	name := strings.ToLower(words[0].text)
	if slices.Contains(clientSettings, name) {
		p := silent(func(context.Context, Steering) error { return nil })
		p.role = RoleStats
		return p, nil
	}
	if len(words) != 3 || !words[1].is("=") && !words[1].is("TO") {
		return nil, nil
	}
	return &plan{run: func(_ context.Context, s Steering) (answer, error) {
		change, err := s.Set(name, words[2].text)
		return answer{notices: []*pgproto3.NoticeResponse{notice(change, "")}}, err
	}}, nil
}

func readShutdown(words []word) (*plan, error) {
	how := ShutdownNow
	switch {
	case len(words) == 0:
	case len(words) == 1 && words[0].is("WAIT_FOR_SERVERS"):
		how = ShutdownServers
	case len(words) == 1 && words[0].is("WAIT_FOR_CLIENTS"):
		how = ShutdownClients
	default:
		return nil, nil
	}
	return &plan{run: func(_ context.Context, s Steering) (answer, error) {
		return answer{after: func() { s.Shutdown(how) }}, nil
	}}, nil
}

// readSuspend refuses what PgBouncer had for its takeover, and has no more since 1.26 (src/admin.c).
func readSuspend([]word) (*plan, error) {
	return nil, &refusal{"0A000", "SUSPEND served PgBouncer's takeover by -R, which 1.26 does not have any more: use PAUSE, or SHUTDOWN WAIT_FOR_CLIENTS"}
}

func readShow(words []word) (*plan, error) {
	if len(words) != 1 || words[0].quoted {
		return nil, nil
	}
	name := strings.ToUpper(words[0].text)
	switch name {
	case "HELP":
		return readHelp(nil)
	case "FDS":
		return nil, &refusal{"0A000", "SHOW FDS served PgBouncer's takeover by -R, which 1.26 does not have any more"}
	}
	columns, known := tables[name]
	if !known {
		return nil, nil
	}
	return &plan{tag: "SHOW", columns: columns, run: func(_ context.Context, s Steering) (answer, error) {
		rows, err := s.Show(name)
		return answer{rows: rows}, err
	}}, nil
}

const usage = `
	SHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION
	SHOW PEERS|PEER_POOLS
	SHOW SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE
	SHOW DNS_HOSTS|DNS_ZONES
	SHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS
	SHOW WAITS
	SET key = arg
	RELOAD
	PAUSE [<db>]
	RESUME [<db>]
	MOVE <db> TO <host> <port>
	DISABLE <db>
	ENABLE <db>
	RECONNECT [<db>]
	KILL [<db>]
	KILL_CLIENT <client_id>
	SHUTDOWN
	SHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS
	WAIT_CLOSE [<db>]`

func readHelp(words []word) (*plan, error) {
	if len(words) > 0 {
		return nil, nil
	}
	return &plan{tag: "SHOW", run: func(context.Context, Steering) (answer, error) {
		return answer{notices: []*pgproto3.NoticeResponse{notice("Console usage", usage)}}, nil
	}}, nil
}

func notice(text, detail string) *pgproto3.NoticeResponse {
	return &pgproto3.NoticeResponse{Severity: "NOTICE", SeverityUnlocalized: "NOTICE", Code: "00000", Message: text, Detail: detail}
}
