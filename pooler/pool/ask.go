package pool

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// asker has the connections on which auth_query is asked. They are lent to no client, nothing of a client is set on them, and each has at
// most one query at a time.
type asker struct {
	slots chan struct{} // one token for each connection, and each that is being made

	// mu guards the fields below. Nothing is waited for while it is held.
	mu     sync.Mutex
	idle   []*asking // the last one is used first
	closed bool
}

// asking is one of these connections.
type asking struct {
	conn        *pgconn.PgConn
	to          Key
	born, since time.Time
}

// AuthDatabase returns the database that is asked about the users of a client's database, and as whom; false if nobody is asked. As with
// PgBouncer nobody is asked for a database that does not exist, unless another one is to be asked.
func (s *Set) AuthDatabase(database string) (key Key, query string, asked bool) {
	key = Key{Database: database, User: s.now().Auth.User}
	query = s.now().Auth.Query
	db, found := s.Database(database)
	home := s.now().Auth.DBName
	if found && db.AuthDBName != "" {
		home = db.AuthDBName
	}
	if home != "" {
		key.Database = home
		_, found = s.Database(home)
	}
	if db.AuthUser != "" {
		key.User = db.AuthUser
	}
	if db.AuthQuery != "" {
		query = db.AuthQuery
	}
	return key, query, found && key.User != ""
}

// AskSecret asks for the secret of a user as auth_query says, of the database that AuthDatabase names for a client's. found is false if
// nobody may log in by that name. The name is always a parameter. It waits for a connection as long as ctx lasts.
func (s *Set) AskSecret(ctx context.Context, database, user string) (secret string, found bool, err error) {
	key, query, asked := s.AuthDatabase(database)
	if !asked {
		return "", false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.now().ClientLoginTimeout.D())
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	select {
	case s.asker.slots <- struct{}{}:
		defer func() { <-s.asker.slots }()
	case <-ctx.Done():
		return "", false, fmt.Errorf("auth_query: %w", ctx.Err())
	}
	for {
		one, fresh, err := s.connectAsking(ctx, key)
		if err != nil {
			return "", false, fmt.Errorf("auth_query: %w", err)
		}
		secret, found, err = ask(ctx, one.conn, query, user)
		var refused *pgconn.PgError
		if err == nil || errors.As(err, &refused) && !one.conn.IsClosed() {
			s.asker.put(one)
		} else {
			discard(one.conn)
			if !fresh && ctx.Err() == nil {
				continue // it had been idle, and has ended meanwhile; a new one will tell
			}
		}
		if err != nil {
			return "", false, fmt.Errorf("auth_query: %w", err)
		}
		return secret, found, nil
	}
}

// ask asks, and takes nothing but what was asked for: no row, or one row of a name and a secret.
func ask(ctx context.Context, conn *pgconn.PgConn, query, user string) (secret string, found bool, err error) {
	result := conn.ExecParams(ctx, query, [][]byte{[]byte(user)}, nil, nil, nil).Read()
	switch {
	case result.Err != nil:
		return "", false, result.Err
	case len(result.Rows) == 0:
		return "", false, nil
	case len(result.Rows[0]) != 2:
		return "", false, fmt.Errorf("the answer has %d columns, not a name and a secret", len(result.Rows[0]))
	case result.Rows[0][0] == nil:
		return "", false, nil
	case len(result.Rows) > 1:
		return "", false, fmt.Errorf("the answer has %d rows, not one", len(result.Rows))
	case string(result.Rows[0][0]) != user:
		return "", false, fmt.Errorf("the answer is about %q, not about %q", result.Rows[0][0], user)
	}
	return string(result.Rows[0][1]), true, nil
}

// connectAsking takes an idle connection or makes one. The caller has a slot.
func (s *Set) connectAsking(ctx context.Context, key Key) (one *asking, fresh bool, err error) {
	one, superfluous := s.asker.take(key)
	if superfluous != nil {
		discard(superfluous.conn)
	}
	if one != nil {
		return one, false, nil
	}
	db, _ := s.Database(key.Database)
	if db.User != key.User {
		db.Password = "" // it is somebody else's
	}
	s.mu.Lock()
	dial, err := s.newDialer(s.moved(key.Database, db), key, s.passwords(key.User))
	s.mu.Unlock()
	if err != nil {
		return nil, false, err
	}
	for pause := backoffMin; ; pause = min(2*pause, busyBackoffMax) {
		conn, _, err := s.reach(ctx, dial, 0, func(cfg *pgconn.Config) { cfg.RuntimeParams["application_name"] = "pitr auth_query" })
		if err == nil {
			return &asking{conn: conn, to: key, born: time.Now()}, true, nil
		}
		// Who logs in while Postgres restarts waits, like those who have logged in.
		if why := connectError(err); !why.busy() && !(passes(err) && s.hosts.everReached(dial.targets)) || !waited(ctx, pause) {
			return nil, false, err
		}
	}
}

// waited reports whether a pause has passed before ctx has ended.
func waited(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// take returns an idle connection to this database, or one that has to make room for it.
func (a *asker) take(key Key) (one, superfluous *asking) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := len(a.idle) - 1; i >= 0; i-- {
		if a.idle[i].to == key {
			one = a.idle[i]
			a.idle = append(a.idle[:i], a.idle[i+1:]...)
			return one, nil
		}
	}
	if len(a.idle) > 0 && len(a.idle)+len(a.slots) > cap(a.slots) {
		superfluous = a.idle[0]
		a.idle = a.idle[1:]
	}
	return nil, superfluous
}

func (a *asker) put(one *asking) {
	one.since = time.Now()
	a.mu.Lock()
	closed := a.closed
	if !closed {
		a.idle = append(a.idle, one)
	}
	a.mu.Unlock()
	if closed {
		discard(one.conn)
	}
}

// sweep closes what was idle for too long or is too old.
func (a *asker) sweep(now time.Time, idleMax, ageMax time.Duration) {
	a.mu.Lock()
	var kept, over []*asking
	for _, one := range a.idle {
		if idleMax > 0 && now.Sub(one.since) > idleMax || ageMax > 0 && now.Sub(one.born) > ageMax {
			over = append(over, one)
		} else {
			kept = append(kept, one)
		}
	}
	a.idle = kept
	a.mu.Unlock()
	for _, one := range over {
		discard(one.conn)
	}
}

func (a *asker) close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.forget()
}

// forget closes what is idle.
func (a *asker) forget() {
	a.mu.Lock()
	over := a.idle
	a.idle = nil
	a.mu.Unlock()
	for _, one := range over {
		discard(one.conn)
	}
}

// discardTimeout bounds the goodbye to a server.
const discardTimeout = time.Second

func discard(conn *pgconn.PgConn) {
	ctx, done := context.WithTimeout(context.Background(), discardTimeout)
	defer done()
	_ = conn.Close(ctx) // there is nothing more to be had from it
}
