package archiver

import (
	"context"
	"errors"
	"time"

	"pitr/archiver/replication"
	"pitr/internal/repo"
)

// backupSettings are recorded with a backup: those whose values recovery needs at least as high (CheckRequiredParameterValues in
// src/backend/access/transam/xlogrecovery.c), and what an operator wants to know before a restore.
const backupSettings = `SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ('max_connections', 'max_worker_processes',
 'max_wal_senders', 'max_prepared_transactions', 'max_locks_per_transaction', 'wal_level', 'data_checksums', 'server_version_num',
 'shared_preload_libraries', 'config_file', 'hba_file', 'data_directory', 'block_size',
 'segment_size', 'wal_log_hints', 'summarize_wal')`

// connect logs in to the server of the backup; database may be empty.
func (opt BackupOptions) connect(ctx context.Context, database string, walsender bool) (*replication.Conn, error) {
	return replication.Connect(ctx, replication.ConnectOptions{DSN: opt.DSN, Database: database, ApplicationName: "pitr backup", Replication: walsender, Only: opt.only})
}

// describeServer checks that the repository is this cluster's and gathers what the manifest says of the server.
func describeServer(ctx context.Context, opt BackupOptions) (b repo.Backup, err error) {
	conn, err := opt.connect(ctx, "", true)
	if err != nil {
		return b, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	system, err := conn.IdentifySystem(ctx)
	if err != nil {
		return b, err
	}
	size, err := conn.SegmentSize(ctx)
	if err != nil {
		return b, err
	}
	now, err := serverClock(ctx, opt)
	if err != nil {
		return b, err
	}
	cluster := repo.Cluster{SystemID: system.ID, SegmentSize: size, Created: now.Truncate(time.Second)}
	if err := opt.Repo.Bind(ctx, cluster); err != nil {
		return b, err
	}
	b = repo.Backup{SystemID: system.ID, SegmentSize: size, ServerVersion: conn.ServerVersion(), ExtentSize: repo.ExtentSize,
		StartTime: now}
	if b.Major, err = conn.Major(); err != nil {
		return b, err
	}
	if b.FromStandby, err = conn.InRecovery(ctx); err != nil {
		return b, err
	}
	b.Settings, err = readSettings(ctx, opt)
	return b, err
}

func readSettings(ctx context.Context, opt BackupOptions) (settings map[string]string, err error) {
	conn, err := opt.connect(ctx, "", false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	rows, err := conn.Query(ctx, backupSettings)
	if err != nil {
		return nil, err
	}
	settings = map[string]string{}
	for _, row := range rows {
		settings[row[0]] = row[1]
	}
	return settings, nil
}

// serverClock asks the server for its time. A restore to a time compares it with the times of commits, which are the server's too;
// the clock of this machine may differ.
func serverClock(ctx context.Context, opt BackupOptions) (now time.Time, err error) {
	conn, err := opt.connect(ctx, "", false)
	if err != nil {
		return time.Time{}, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	return readClock(ctx, conn)
}

// freeID is the id of a backup that begins now, or a second or more later when ids are taken.
// A backup that has stored nothing new has a manifest and no pack, and one that has just begun neither.
func freeID(now time.Time, taken func(id string) bool) string {
	for {
		id := now.Format(BackupIDLayout)
		if !taken(id) {
			return id
		}
		now = now.Add(time.Second)
	}
}
