package pooler

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"pitr/config"
	"pitr/internal/pgwire"
	"pitr/pooler/admin"
	"pitr/pooler/loop"
	"pitr/pooler/pool"
)

// asksForConsole reports whether a client means the console: by PgBouncer's name for it, or by ours if it is an operator and no database of that name is configured.
func (p *Pooler) asksForConsole(ask request) bool {
	if ask.database == admin.Database {
		return true
	}
	cfg := p.now()
	_, configured := cfg.Databases[admin.Alias]
	return ask.database == admin.Alias && !configured && admin.RoleOf(ask.user, cfg.AdminUsers, cfg.StatsUsers) != admin.RoleNone
}

// console serves an operator, whose connection counts in max_login_conn for as long as it lasts. Who is none learns that after a login like any other.
func (p *Pooler) console(conn net.Conn, in *bufio.Reader, ask request) error {
	if err := negotiate(conn, ask); err != nil {
		return err
	}
	last, _, err := p.authenticate(conn, in, ask)
	if err != nil {
		return err
	}
	role := admin.RoleOf(ask.user, p.now().AdminUsers, p.now().StatsUsers)
	if role == admin.RoleNone {
		return pgwire.Fatal("42501", fmt.Sprintf("user %q may not use the console (pooler.admin_users)", ask.user))
	}
	if _, err := conn.Write(last); err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	p.log.Info("console opened", "user", ask.user, "client", conn.RemoteAddr().String())
	o := &operator{who: identityOf(conn, ask), arrived: time.Now(), name: ask.params.Get("application_name"), conn: conn}
	console := &o.console
	console.In, console.Out, console.Role, console.Steering = in, conn, role, steering{p, ask.user}
	if err := p.attend(o, ask.version); err != nil {
		return err
	}
	defer p.dismiss(o)
	if err := console.Serve(context.Background()); err != nil { // drain closes the connection, which ends what waits
		p.log.Info("console lost", "user", ask.user, "error", err)
	}
	return nil
}

// operator is whom a console serves.
type operator struct {
	who     *identity
	arrived time.Time
	name    string // application_name
	conn    net.Conn
	console admin.Console
	key     cancelKey
}

// attend notes a console, and gives it a key for cancel requests that no client has.
func (p *Pooler) attend(o *operator, version uint32) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o.console.Process, o.key, err = p.newKey(version); err != nil {
		return err
	}
	o.console.Published, o.console.Secret = p.publish(o.console.Process), o.key.secret()
	p.notePublished(o.console.Process)
	p.consoles[o.console.Process] = o
	return nil
}

func (p *Pooler) dismiss(o *operator) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.consoles, o.console.Process)
	p.forgetPublished(o.console.Process)
}

// operators are those who have a console now.
func (p *Pooler) operators() []*operator {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Values(p.consoles))
}

// steering does what a console is told, and tells the log who has told it.
type steering struct {
	*Pooler
	user string
}

// told logs what was done, or why it was not.
func (s steering) told(done string, err error, facts ...any) {
	facts = append(facts, "by", s.user)
	if err != nil {
		s.log.Warn("console command failed", append(facts, "command", done, "error", err)...)
		return
	}
	s.log.Info(done, facts...)
}

func (s steering) Pause(ctx context.Context, database string) error {
	begin := time.Now()
	err := s.pools.Pause(ctx, database)
	s.told("database paused", err, "database", database, "after", time.Since(begin).Round(time.Millisecond))
	return err
}

func (s steering) Resume(database string) error {
	err := s.pools.Resume(database)
	s.told("database resumed", err, "database", database)
	return err
}

func (s steering) Move(database, host string, port int) (string, error) {
	to := pool.Address{Host: host, Port: port}
	from, err := s.pools.Move(database, to)
	s.told("database moved until the pooler ends", err, "database", database, "from", from.String(), "to", to.String())
	return from.String(), err
}

func (s steering) Enable(database string, enabled bool) error {
	err := s.pools.Enable(database, enabled)
	done := "database disabled"
	if enabled {
		done = "database enabled"
	}
	s.told(done, err, "database", database)
	return err
}

func (s steering) Reconnect(database string) error {
	err := s.pools.Reconnect(database)
	s.told("database reconnects", err, "database", database)
	return err
}

// errKilled is what clients get that KILL or KILL_CLIENT ends.
var errKilled = pgwire.Fatal("57P01", "admin forced disconnect")

func (s steering) Kill(database string) error {
	err := s.pools.Hold(database)
	if errors.Is(err, pool.ErrPaused) {
		err = nil
	}
	ended := 0
	if err == nil {
		s.eachClient(nil, func(one visit) {
			if database == "" || one.c.who.database == database {
				one.c.end(errKilled)
				ended++
			}
		})
	}
	s.told("database killed", err, "database", database, "clients", ended)
	return err
}

func (s steering) KillClient(id uint32) error {
	s.mu.Lock()
	c, o := s.clients[id], s.consoles[id]
	found := c != nil && c.entered
	s.mu.Unlock()
	if o != nil {
		s.told("console killed", nil, "id", id)
		return o.conn.Close()
	}
	done := make(chan struct{})
	if !found || !c.worker.Post(loop.Func(func() { c.end(errKilled); close(done) })) {
		return fmt.Errorf("client not found")
	}
	<-done
	s.told("client killed", nil, "id", id)
	return nil
}

func (s steering) WaitClose(ctx context.Context, database string) error {
	return s.pools.WaitClose(ctx, database)
}

func (s steering) Reload() ([]string, error) {
	changes, err := s.Pooler.Reload()
	s.told("configuration reloaded", err, "changes", len(changes))
	if err == nil && len(changes) == 0 {
		return []string{"nothing has changed"}, nil
	}
	return texts(changes), err
}

func (s steering) Set(name, value string) (string, error) {
	changes, err := s.Pooler.Set(name, value)
	s.told("setting changed until the next RELOAD", err, "setting", name)
	if err == nil && len(changes) == 0 {
		return "nothing has changed", nil
	}
	return strings.Join(texts(changes), "; "), err
}

func texts(changes []config.Change) (list []string) {
	for _, change := range changes {
		list = append(list, change.String())
	}
	return list
}

func (s steering) Shutdown(how admin.Shutdown) {
	s.told("shutdown", nil, "waits_for", [...]string{admin.ShutdownNow: "nothing", admin.ShutdownServers: "servers", admin.ShutdownClients: "clients"}[how])
	s.Pooler.Shutdown(how)
}

func (s steering) Show(table string) ([][]any, error) {
	rows := shows[table](s.Pooler)
	if table != "CONFIG" && table != "TOTALS" && table != "LISTS" && table != "STATE" && table != "MEM" && table != "WAITS" {
		slices.SortFunc(rows, func(a, b []any) int {
			return strings.Compare(fmt.Sprint(a[:min(2, len(a))]...), fmt.Sprint(b[:min(2, len(b))]...))
		})
	}
	return rows, nil
}
