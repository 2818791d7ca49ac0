package pooler

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"pitr/internal/pgwire"
	"pitr/pooler/pool"
)

// replicate serves a client that asks for a connection in replication mode: it gets one of its own, whose bytes are passed on as they come. Both count in max_replication_connections,
// and in max_login_conn, for as long as it lasts.
func (p *Pooler) replicate(conn net.Conn, in *bufio.Reader, ask request) error {
	if err := negotiate(conn, ask); err != nil {
		return err
	}
	last, shown, err := p.authenticate(conn, in, ask)
	if err != nil {
		return err
	}
	params := map[string]string{}
	for _, param := range ask.startup {
		if param.Name != "user" && param.Name != "database" && !strings.HasPrefix(param.Name, "_pq_.") {
			params[param.Name] = param.Value
		}
	}
	server, release, err := p.pools.Replicate(context.Background(), ask.database, ask.user, shown, params)
	if err != nil {
		return p.notReplicated(ask, err)
	}
	defer release()
	defer server.Conn.Close()
	out := append(pgwire.AppendHeader(last, 'R', 4), 0, 0, 0, 0) // AuthenticationOk
	for name, value := range server.ParameterStatuses {
		out = pgwire.AppendParameterStatus(out, pgwire.Param{Name: name, Value: value})
	}
	if _, err := conn.Write(pgwire.AppendReady(out, pgwire.Idle)); err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	p.log.Info("replication connection opened", "database", ask.database, "user", ask.user, "client", conn.RemoteAddr().String(), "pid", server.PID)
	began := time.Now()
	err = exchange(conn, in, server.Conn)
	p.log.Info("replication connection closed", "database", ask.database, "user", ask.user, "client", conn.RemoteAddr().String(), "pid", server.PID,
		"after", time.Since(began).Round(time.Millisecond), "error", err)
	conn.Close()
	return nil
}

// notReplicated makes of a connection that could not be had what the client is told.
func (p *Pooler) notReplicated(ask request, err error) error {
	var refused *pool.ConnectError
	switch {
	case errors.Is(err, pool.ErrTooManyReplications):
		return pgwire.Fatal("53300", err.Error())
	case errors.Is(err, pool.ErrDisabled):
		return pgwire.Fatal("08P01", fmt.Sprintf("database %q is disabled", ask.database))
	case errors.Is(err, pool.ErrUnknownDatabase):
		return pgwire.Fatal("3D000", fmt.Sprintf("database %q does not exist", ask.database))
	case errors.As(err, &refused):
		p.log.Warn("replication connection not made", "database", ask.database, "user", ask.user, "error", err)
		return pgwire.Fatal(refused.Code, refused.Reason())
	}
	p.log.Error("replication connection not made", "database", ask.database, "user", ask.user, "error", err)
	return pgwire.Fatal("58000", "the pooler's configuration for this database cannot be used; its log says why")
}

// exchange passes bytes in both directions until one side ends; what the server has still sent then reaches the client. in has what the client has sent already.
func exchange(client net.Conn, in io.Reader, server net.Conn) error {
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(server, in)
		if half, ok := server.(interface{ CloseWrite() error }); ok && err == nil {
			err = half.CloseWrite()
		} else {
			server.Close()
		}
		done <- err
	}()
	_, err := io.Copy(client, server)
	client.Close() // ends the other direction
	sent := <-done
	if errors.Is(sent, net.ErrClosed) {
		sent = nil
	}
	return errors.Join(err, sent)
}
