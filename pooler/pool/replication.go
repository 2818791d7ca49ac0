package pool

import (
	"context"
	"errors"
	"maps"
	"net"

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
	dial.mute = true
	made, _, err := s.reach(ctx, dial, 0, func(cfg *pgconn.Config) {
		cfg.DialFunc = (&net.Dialer{}).DialContext // no loop has it
		cfg.RuntimeParams = maps.Clone(params)
	})
	if err == nil {
		conn, err = made.Hijack()
	}
	if err != nil {
		release()
		return nil, nil, connectError(err)
	}
	return conn, release, nil
}

// Replications is how many connections in replication mode there are, and how often one was refused for max_replication_connections.
func (s *Set) Replications() (now int, hits uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.replications, s.replicationHits
}
