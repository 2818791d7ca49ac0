package pooler

import (
	"pitr/config"
	"pitr/pooler/session"
)

// options returns how the client's session is to be held.
func (p *Pooler) options(ask request) *session.Options {
	db, _ := p.pools.Database(ask.database)
	return p.sessions[poolMode(p.now(), db, ask.user)]
}

func poolMode(cfg *config.Pooler, db config.Database, user string) string {
	mode := cfg.PoolMode
	for _, override := range []string{db.PoolMode, cfg.Users[user].PoolMode} {
		if override != "" {
			mode = override
		}
	}
	return mode
}

// sessionOptions returns how sessions of each pool mode are held.
func sessionOptions(cfg config.Pooler) map[string]*session.Options {
	modes := map[string]*session.Options{}
	for _, mode := range []string{"session", "transaction", "statement"} {
		modes[mode] = &session.Options{
			Transaction: mode != "session", Statement: mode == "statement", Listen: mode == "transaction",
			PreparedMax: cfg.MaxPreparedStatements, StatementLenMax: int(cfg.PreparedStatementSizeMax),
			StatementsMax: cfg.MaxClientPreparedStatements, PipelineMax: cfg.MaxPipelineMessages, ReplayLenMax: int(cfg.ReplaySizeMax),
			SettingsLenMax: int(cfg.MaxClientSettingsSize), LazyBegin: cfg.LazyBegin == "on", ReuseUnnamed: cfg.ReuseUnnamedStatements == "on", RefuseSimple: cfg.DisablePQExec == "on", Objects: sessionObjects[cfg.SessionObjects],
		}
	}
	return modes
}

var sessionObjects = map[string]session.ObjectPolicy{"pin": session.ObjectsPin, "refuse": session.ObjectsRefuse, "reset": session.ObjectsReset}
