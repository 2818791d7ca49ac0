package archiver

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"pitr/archiver/replication"
	"pitr/internal/pg"
	"pitr/internal/repo"
)

// Source says who reads the files of a backup.
type Source string

// The zero Source is the server.
const (
	SourceServer Source = "server" // BASE_BACKUP streams them
	SourceFiles  Source = "files"  // they are read here, in BackupRules.Directory
)

// openBackup is a backup that the server knows of, begun with pg_backup_start. It lasts as long as its connection.
type openBackup struct {
	conn  *replication.Conn
	major int
}

// beginBackup has the server begin a backup with a fast checkpoint, and says in b where it starts.
func beginBackup(ctx context.Context, opt BackupOptions, b *repo.Backup) (*openBackup, error) {
	conn, err := opt.connect(ctx, "", false)
	if err != nil {
		return nil, err
	}
	o := &openBackup{conn: conn, major: b.Major}
	if err := o.begin(ctx, b); err != nil {
		return nil, errors.Join(fmt.Errorf("begin a backup: %w", err), o.close(ctx))
	}
	return o, nil
}

func (o *openBackup) begin(ctx context.Context, b *repo.Backup) error {
	// The connection has nothing to do until all is read, and a checkpoint may take long.
	patience := "SET statement_timeout = 0"
	if o.major >= 14 {
		patience += "; SET idle_session_timeout = 0"
	}
	if _, err := o.conn.Query(ctx, patience); err != nil {
		return err
	}
	call := "pg_catalog.pg_backup_start('%s', true)"
	if o.major < 15 {
		call = "pg_catalog.pg_start_backup('%s', true, false)"
	}
	start, err := o.value(ctx, "SELECT "+fmt.Sprintf(call, "pitr "+b.ID))
	if err != nil {
		return err
	}
	if b.Start, err = pg.ParseLSN(start); err != nil {
		return err
	}
	timeline, err := o.value(ctx, "SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()")
	if err != nil {
		return err
	}
	n, err := strconv.ParseUint(timeline, 10, 32)
	b.Timeline = pg.Timeline(n)
	return err
}

// hurry ends the segment in which the backup has begun, so that it is archived at once: what the WAL has changed before is needed next. Whoever may not do that waits
// for archive.flush_interval.
func (o *openBackup) hurry(ctx context.Context, opt BackupOptions) {
	if _, err := o.value(ctx, "SELECT pg_catalog.pg_switch_wal()"); err != nil {
		opt.Log.Debug("the segment in which the backup has begun is not ended", "error", err)
	}
}

func (o *openBackup) value(ctx context.Context, sql string) (string, error) {
	rows, err := o.conn.Query(ctx, sql)
	if err != nil {
		return "", err
	}
	if len(rows) != 1 || len(rows[0]) != 1 {
		return "", fmt.Errorf("%s: %d rows", sql, len(rows))
	}
	return rows[0][0], nil
}

// endedBackup is what the server says when a backup ends: files that belong to it, and the position from which on it is consistent.
type endedBackup struct {
	stop          pg.LSN
	label, spaces string
}

// end has the server end the backup.
func (o *openBackup) end(ctx context.Context, b *repo.Backup) (e endedBackup, err error) {
	sql := "SELECT lsn, labelfile, spcmapfile FROM pg_catalog.pg_backup_stop(false)"
	if o.major < 15 {
		sql = "SELECT lsn, labelfile, spcmapfile FROM pg_catalog.pg_stop_backup(false, false)"
	}
	rows, err := o.conn.Query(ctx, sql)
	if err != nil {
		return e, fmt.Errorf("end the backup: %w", err)
	}
	if len(rows) != 1 || len(rows[0]) != 3 {
		return e, fmt.Errorf("end the backup: %d rows", len(rows))
	}
	e.label, e.spaces = rows[0][1], rows[0][2]
	if !strings.Contains(e.label, fmt.Sprintf("\nSTART TIMELINE: %d\n", b.Timeline)) {
		return e, fmt.Errorf("end the backup: it began on timeline %d, and the server says\n%s", b.Timeline, e.label)
	}
	e.stop, err = pg.ParseLSN(rows[0][0])
	return e, err
}

// close ends the connection, and with it a backup that was not ended.
func (o *openBackup) close(ctx context.Context) error {
	return o.conn.Close(context.WithoutCancel(ctx))
}

// readFiles takes a backup from the files of the server, but for the manifest.
func readFiles(ctx context.Context, opt BackupOptions, b *repo.Backup, before previous, since *comparison) (files []*repo.File, err error) {
	d, err := openDirectory(opt.Directory, b.SystemID, b.Major)
	if err != nil {
		return nil, err
	}
	server, err := beginBackup(ctx, opt, b)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.close(ctx)) }()
	port, err := server.value(ctx, "SHOW port")
	if err != nil {
		return nil, err
	}
	if err := d.begunAt(b.Start, b.Timeline, b.FromStandby, port); err != nil {
		return nil, err
	}
	if err := d.list(); err != nil { // soon: whoever makes a tablespace has the WAL make it again
		return nil, err
	}
	opt.Log.Info("base backup started", "backup", b.ID, "start", b.Start, "timeline", b.Timeline, "directory", d.root, "standby", b.FromStandby)
	if err := archivedFrom(ctx, opt, b); err != nil {
		return nil, err
	}
	if before.manifest != nil && !b.FromStandby {
		server.hurry(ctx, opt)
	}
	same, reason, err := newUntouched(ctx, opt, *b, before, since)
	if err != nil {
		return nil, err
	}
	if reason != "" {
		opt.Log.Info("all files are read", "because", reason)
	}
	source := &directoryFiles{dir: d, server: server, same: same, rate: &rate{limit: opt.RateRead}}
	files, err = copyFiles(ctx, opt, source, b, before, since)
	if err == nil {
		opt.Log.Info("files were read", "bytes", source.bytes.Load(), "of", b.Bytes)
	}
	return files, err
}
