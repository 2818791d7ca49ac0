package pooler

import (
	"context"
	"log/slog"
	"net"
	"slices"

	"pitr/internal/pgwire"
	"pitr/pooler/session"
)

// unnamed is the application_name of a client that has not said its own, where the host is added: client_proto.c of PgBouncer, set_appname.
const unnamed = "app"

// announced are the settings that a client logs in with: with application_name_add_host its application_name tells where it comes from.
func (p *Pooler) announced(ask request, conn net.Conn) (*session.Params, error) {
	if p.now().ApplicationNameAddHost != "on" {
		return ask.params, nil
	}
	from := conn.RemoteAddr().String()
	if conn.RemoteAddr().Network() == "unix" {
		from = "unix:" + conn.LocalAddr().String()
	}
	startup := slices.Clone(ask.startup)
	at := slices.IndexFunc(startup, func(param pgwire.Param) bool { return param.Name == "application_name" })
	if at < 0 {
		at, startup = len(startup), append(startup, pgwire.Param{Name: "application_name", Value: unnamed})
	}
	startup[at].Value += " - " + from
	params, err := session.StartupParams(startup)
	if err != nil {
		return nil, pgwire.Fatal("22023", err.Error())
	}
	return params, nil
}

// welcomed tells the log that a client is in, and the client what an operator wants it to know.
func (c *client) welcomed(out []byte) []byte {
	p := c.pooler
	level := slog.LevelDebug
	if p.now().LogConnections == "on" {
		level = slog.LevelInfo
	}
	if p.log.Enabled(context.Background(), level) {
		p.log.Log(context.Background(), level, "login succeeded", "database", c.who.database, "user", c.who.user, "client", c.who.remote.String(), "id", c.process)
	}
	if text := p.now().LoginNotifyMessage; text != "" {
		out = append(out, noticeOf(text)...)
	}
	return out
}

// errorLevel is that of what is logged of clients that are refused, or ended.
func (p *Pooler) errorLevel() slog.Level {
	if p.now().LogPoolerErrors == "off" {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// goodbyeLevel is that of what is logged of clients that leave.
func (p *Pooler) goodbyeLevel() slog.Level {
	if p.now().LogDisconnections == "on" {
		return slog.LevelInfo
	}
	return slog.LevelDebug
}
