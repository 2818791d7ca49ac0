package pooler

import (
	"context"
	"errors"
	"sync"
	"time"

	"pitr/config"
	"pitr/internal/pgwire"
	"pitr/pooler/admin"
	"pitr/pooler/pool"
)

// reloading is how the configuration is read again.
type reloading struct {
	// mu is held while settings are changed, so that one change is whole before the next begins.
	mu   sync.Mutex
	read func() (*config.Config, error)
}

// errNoFile says that there is nothing to be read again.
var errNoFile = errors.New("the pooler does not know where its configuration is")

// ReloadWith says how the configuration is read again: wholly checked, or an error. It is called before Run.
func (p *Pooler) ReloadWith(read func() (*config.Config, error)) { p.reloading.read = read }

// Reload reads the configuration again and lets it hold as far as that goes without a restart; it returns what is different. After an error nothing has changed.
func (p *Pooler) Reload() ([]config.Change, error) {
	p.reloading.mu.Lock()
	defer p.reloading.mu.Unlock()
	if p.reloading.read == nil {
		return nil, errNoFile
	}
	tell(p.upgrade.events.Reloading)
	defer tell(p.upgrade.events.Reloaded)
	to, err := p.reloading.read()
	if err != nil {
		return nil, err
	}
	return p.apply(to)
}

// Set changes one setting until the next Reload.
func (p *Pooler) Set(name, value string) ([]config.Change, error) {
	p.reloading.mu.Lock()
	defer p.reloading.mu.Unlock()
	to, err := config.SetPooler(*p.live.Load(), name, value)
	if err != nil {
		return nil, err
	}
	return p.apply(to)
}

// apply lets a configuration hold, and reads again the files that it names: users, rules and certificates. What needs a restart has no effect, since it is only looked at when the process begins; the log and the answer say so.
func (p *Pooler) apply(to *config.Config) ([]config.Change, error) {
	changes := config.Changes(p.live.Load(), to)
	to = config.InForce(p.live.Load(), to)
	g, err := p.newGate(to.Pooler)
	if err != nil {
		return nil, err
	}
	if err := p.pools.Reload(to.Pooler, func(user string) pool.Credentials { return credentials(g.users.Stored(user)) }); err != nil {
		return nil, err
	}
	p.gate.Store(g)
	p.live.Store(to)
	p.endRemoved()
	for _, change := range changes {
		if change.Reload {
			p.log.Info("setting changed", "setting", change.Key, "from", change.From, "to", change.To)
		} else {
			p.log.Warn("setting changed in the file, which takes a restart", "setting", change.Key, "from", change.From, "to", change.To)
		}
	}
	return changes, nil
}

// errRemoved is what clients get whose database is not configured any more.
var errRemoved = pgwire.Fatal("3D000", "database removed")

// endRemoved ends the clients of databases that are not configured any more.
func (p *Pooler) endRemoved() {
	if _, all := p.now().Databases["*"]; all || len(p.now().Databases) == 0 {
		return
	}
	p.eachClient(nil, func(one visit) {
		if _, found := p.pools.Database(one.c.who.database); !found {
			one.c.end(errRemoved)
		}
	})
}

// Shutdown ends Run.
func (p *Pooler) Shutdown(how admin.Shutdown) {
	select {
	case p.halt <- how:
	default: // it was said before
	}
}

// Pause is the console's PAUSE of all databases: it returns when no client has a server any more.
func (p *Pooler) Pause(ctx context.Context) error { return p.pools.Pause(ctx, "") }

// Resume is the console's RESUME of all databases.
func (p *Pooler) Resume() error { return p.pools.Resume("") }

// leavePause is how often it is looked whether all clients have left.
const leavePause = 50 * time.Millisecond

// halted waits for what a shutdown waits for, as long as ctx does not end, and returns when the rest is cut. It is nil where everything may take its time.
func (p *Pooler) halted(ctx context.Context, how admin.Shutdown, patience *time.Timer) (limit <-chan time.Time) {
	p.leaving.Store(true)
	switch how {
	case admin.ShutdownServers:
		return nil
	case admin.ShutdownClients:
		p.endUpgrades()
		p.closeListeners()
		ticker := time.NewTicker(leavePause)
		defer ticker.Stop()
		for p.Stats().Clients > 0 {
			select {
			case <-ctx.Done():
				patience.Reset(p.now().DrainTimeout.D())
				return patience.C
			case how := <-p.halt: // the operator has changed his mind
				return p.halted(ctx, how, patience)
			case <-ticker.C:
			}
		}
	}
	patience.Reset(0)
	return patience.C
}
