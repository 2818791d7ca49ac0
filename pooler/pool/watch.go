package pool

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// watched reports whether the hosts are asked what they are, besides by new connections.
func (d dialer) watched() bool {
	return d.rule.interval > 0 && (len(d.targets) > 1 || d.rule.asks())
}

// watch keeps one sentry for each host that is to be watched.
func (s *Set) watch() {
	sentries := map[Address]context.CancelFunc{}
	defer func() {
		for _, stop := range sentries {
			stop()
		}
	}()
	timer := time.NewTimer(s.watchPause())
	defer timer.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-timer.C:
		}
		wanted := map[Address]bool{}
		for _, d := range s.proven() {
			for _, t := range d.targets {
				wanted[t.Address] = true
			}
		}
		for at, stop := range sentries {
			if !wanted[at] {
				stop()
				delete(sentries, at)
			}
		}
		for at := range wanted {
			if sentries[at] == nil {
				ctx, stop := context.WithCancel(s.ctx)
				sentries[at] = stop
				s.work.Go(func() { s.stand(ctx, at) })
			}
		}
		timer.Reset(s.watchPause())
	}
}

// watchPause is how often hosts are asked; a second where they are not, since a reload may change that.
func (s *Set) watchPause() time.Duration {
	if interval := s.now().HostPollInterval.D(); interval > 0 {
		return interval
	}
	return janitorPause
}

// proven returns how the pools log in whose hosts are watched and who have logged in before: what nobody has tried is not tried every second.
func (s *Set) proven() (list []dialer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pools {
		p.mu.Lock()
		if p.proven && !p.paused && p.dial.watched() { // whoever pauses a database wants no connection to it
			list = append(list, p.dial)
		}
		p.mu.Unlock()
	}
	return list
}

// stand asks one host again and again what it is, on a connection of its own.
func (s *Set) stand(ctx context.Context, at Address) {
	var conn *pgconn.PgConn
	defer func() {
		if conn != nil {
			discard(conn)
		}
	}()
	for {
		var pause time.Duration
		conn, pause = s.look(ctx, at, conn)
		s.reconsider(time.Now())
		if !waited(ctx, pause) {
			return
		}
	}
}

// look asks a host once, over the connection that there is or a new one. It returns the connection that is left, and how long to wait before the next look.
func (s *Set) look(ctx context.Context, at Address, conn *pgconn.PgConn) (*pgconn.PgConn, time.Duration) {
	limited, done := context.WithTimeout(ctx, s.now().ServerConnectTimeout.D())
	defer done()
	if conn != nil && !s.names.current(at, conn.Conn().RemoteAddr()) {
		discard(conn)
		conn = nil
	}
	if conn != nil {
		if s.inspect(limited, conn, at) == nil {
			return conn, s.watchPause()
		}
		discard(conn) // a new one tells whether the host is there
	}
	var err error
	if conn, err = s.visit(limited, at); err == nil {
		if err = s.inspect(limited, conn, at); err == nil {
			if s.hosts.turned(at, false) {
				s.log.Info("host check succeeded again", "server", at.String())
			}
			return conn, s.watchPause()
		}
		discard(conn)
	}
	switch {
	case ctx.Err() != nil || errors.Is(err, errNobody):
		return nil, s.watchPause()
	case passes(err):
		s.hosts.failed(at, time.Now().Add(max(s.now().ServerLoginRetry.D(), 2*s.watchPause())))
	}
	if s.hosts.turned(at, true) {
		s.log.Warn("host check failed", "server", at.String(), "error", err)
	}
	if passes(err) {
		return nil, s.watchPause()
	}
	return nil, max(s.now().ServerLoginRetry.D(), s.watchPause())
}

// errNobody says that no pool is left that could log in.
var errNobody = errors.New("no pool uses the server")

// visit logs in to a host as any of the pools does that use it.
func (s *Set) visit(ctx context.Context, at Address) (*pgconn.PgConn, error) {
	for _, d := range s.proven() {
		if i := slices.IndexFunc(d.targets, func(t target) bool { return t.Address == at }); i >= 0 {
			cfg := d.prepare(d.targets[i])
			cfg.RuntimeParams["application_name"] = "pitr host check"
			return pgconn.ConnectConfig(ctx, cfg)
		}
	}
	return nil, errNobody
}

// reconsider lets all pools look at their hosts again.
func (s *Set) reconsider(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := false
	for _, p := range s.pools {
		changed = p.reconsider(now) || changed
	}
	if changed {
		s.work.Go(s.asker.forget)
	}
}

// reconsider closes servers on hosts that are not fit any more, each as soon as nobody has it, and connects at once where another host is fit now. It reports whether
// anything is different.
func (p *Pool) reconsider(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || !p.dial.watched() {
		return false
	}
	fits := p.set.hosts.judge(p.dial, now)
	for server := range p.servers {
		if server.leaves == "" && misplaced(p.dial, fits, server.at) {
			server.leaves = becauseUnfit
			if server.state == stateIdle || server.state == stateUsed {
				p.remove(server, becauseUnfit)
			}
		}
	}
	if slices.Equal(fits, p.fits) {
		return false
	}
	p.fits = fits
	for _, l := range p.listeners {
		l.leave(func(at Address) bool { return misplaced(p.dial, fits, at) })
	}
	p.giveUp()
	p.retryAt = time.Time{}
	p.launch(now)
	return true
}

// misplaced reports whether a connection to a host is not what is wanted any more: it is unfit, or a better one can be had.
func misplaced(d dialer, fits []fit, at Address) bool {
	i := slices.IndexFunc(d.targets, func(t target) bool { return t.Address == at })
	if i < 0 {
		return false // it was moved, and somebody else sees to that
	}
	return fits[i] == unfit || fits[i] == serves && slices.Contains(fits, suits)
}

// giveUp ends the connects that are on their way: they are made again, perhaps to other hosts. The caller holds mu.
func (p *Pool) giveUp() {
	if p.abandon != nil {
		p.abandon()
	}
	p.attempts, p.abandon = context.WithCancel(p.set.ctx)
}
