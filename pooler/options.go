package pooler

import (
	"pitr/config"
	"pitr/pooler/session"
)

// options returns how the client's session is to be held.
func (p *Pooler) options(ask request) *session.Options {
	db, _ := p.pools.Database(ask.database)
	mode := p.cfg.PoolMode
	for _, override := range []string{db.PoolMode, p.cfg.Users[ask.user].PoolMode} {
		if override != "" {
			mode = override
		}
	}
	options := sessionOptions(p.cfg, mode != "session")
	options.Listen = options.Transaction && mode != "statement"
	options.Statement = mode == "statement"
	return options
}

func sessionOptions(cfg config.Pooler, transaction bool) *session.Options {
	return &session.Options{
		Transaction: transaction, PreparedMax: cfg.MaxPreparedStatements, StatementLenMax: int(cfg.PreparedStatementSizeMax),
		StatementsMax: cfg.MaxClientPreparedStatements, PipelineMax: cfg.MaxPipelineMessages,
		SettingsLenMax: int(cfg.MaxClientSettingsSize), LazyBegin: cfg.LazyBegin == "on", Objects: sessionObjects[cfg.SessionObjects],
	}
}

var sessionObjects = map[string]session.ObjectPolicy{"pin": session.ObjectsPin, "refuse": session.ObjectsRefuse, "reset": session.ObjectsReset}
