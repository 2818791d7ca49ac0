package pooler

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"pitr/internal/pgwire"
	"pitr/pooler/admin"
	"pitr/pooler/pool"
)

// console serves an operator, whose connection counts in max_login_conn for as long as it lasts. Who is none learns that after a login like any other.
func (p *Pooler) console(conn net.Conn, in *bufio.Reader, ask request) error {
	if err := negotiate(conn, ask); err != nil {
		return err
	}
	last, _, err := p.authenticate(conn, in, ask)
	if err != nil {
		return err
	}
	if !slices.Contains(p.cfg.AdminUsers, ask.user) {
		return pgwire.Fatal("42501", fmt.Sprintf("user %q may not use the console (pooler.admin_users)", ask.user))
	}
	if _, err := conn.Write(last); err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	p.log.Info("console opened", "user", ask.user, "client", conn.RemoteAddr().String())
	console := admin.Console{In: in, Out: conn, Steering: steering{p, ask.user}}
	if err := console.Serve(context.Background()); err != nil { // drain closes the connection, which ends what waits
		p.log.Info("console lost", "user", ask.user, "error", err)
	}
	return nil
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
