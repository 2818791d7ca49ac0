package pool

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"
)

// ErrTooManyReplications says that max_replication_connections is reached.
var ErrTooManyReplications = errors.New("no more replication connections allowed (max_replication_connections)")

// Replicate logs in to the server of a database for a client that has a connection of its own there: one in replication mode, which no pool can share. params are those of
// the client's startup packet. It waits as long as server_connect_timeout says. The caller closes the connection, and then calls release.
func (s *Set) Replicate(ctx context.Context, database, user string, shown Credentials, params map[string]string) (conn *pgconn.HijackedConn, release func(), err error) {
	s.mu.Lock()
	db, found := s.Database(database)
	settings := s.now()
	switch {
	case !found:
		err = ErrUnknownDatabase
	case s.steered[database].disabled:
		err = ErrDisabled
	case s.ctx.Err() != nil:
		err = ErrClosed
	case s.replications >= settings.MaxReplicationConnections:
		s.replicationHits++
		err = ErrTooManyReplications
	}
	if err != nil {
		s.mu.Unlock()
		return nil, nil, err
	}
	key := Key{Database: database, User: user}
	known := shown
	if db.User != "" && db.User != user {
		key.User, known = db.User, Credentials{}
	}
	if known.empty() {
		known = s.passwords(key.User)
	}
	dial, err := s.newDialer(s.moved(database, db), key, known)
	if err == nil {
		s.replications++
	}
	s.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	release = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.replications--
	}
	if conn, err = s.replicate(ctx, dial, params); err != nil {
		release()
		return nil, nil, connectError(err)
	}
	return conn, release, nil
}

// replicate makes one connection with the client's own parameters. In physical replication a server knows no SQL, so that another connection asks it what it is, where that matters.
func (s *Set) replicate(ctx context.Context, dial dialer, params map[string]string) (*pgconn.HijackedConn, error) {
	plainly := func(cfg *pgconn.Config) { cfg.DialFunc = (&net.Dialer{}).DialContext } // no loop has it
	if dial.rule.asks() {
		asked, at, err := s.reach(ctx, dial, 0, plainly)
		if err != nil {
			return nil, err
		}
		discard(asked)
		dial.targets = slices.DeleteFunc(slices.Clone(dial.targets), func(t target) bool { return t.Address != at })
	}
	dial.rule = rule{attrs: "any"}
	conn, _, err := s.reach(ctx, dial, 0, func(cfg *pgconn.Config) {
		plainly(cfg)
		cfg.RuntimeParams = maps.Clone(params)
	})
	if err != nil {
		return nil, err
	}
	ctx, done := context.WithTimeout(ctx, s.now().ServerConnectTimeout.D())
	defer done()
	return takeFrom(ctx, conn)
}

// Replications is how many connections in replication mode there are, and how often one was refused for max_replication_connections.
func (s *Set) Replications() (now int, hits uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.replications, s.replicationHits
}
