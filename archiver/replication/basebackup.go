package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/internal/pg"
)

// Archive is one tar archive of a base backup: the data directory, or a tablespace.
type Archive struct {
	TablespaceOID  string // empty: the data directory
	TablespacePath string
	Manifest       bool // not a tar archive but the server's backup_manifest
}

// BaseBackup is a BASE_BACKUP that is running. Its archives must be read one after the other.
type BaseBackup struct {
	Start    pg.LSN
	Timeline pg.Timeline
	Stop     pg.LSN // after Next has returned io.EOF

	conn        *pgconn.HijackedConn
	stopCancel  func() bool
	messages    messageReader
	major       int
	tablespaces []Archive
	legacy      int // 13 and 14: how many of tablespaces and manifest have begun
	pendingKind *Archive
	reader      *archiveReader
}

// BaseBackupOptions says what is asked for.
type BaseBackupOptions struct {
	Label string
	// Previous is the server's manifest of an earlier backup: since version 17 only what has changed since is sent then. Nil: all is.
	Previous []byte
}

// ErrNotIncremental says that the server did not take the earlier backup's manifest, or has no summaries of the WAL since.
var ErrNotIncremental = errors.New("the server cannot tell what has changed")

// StartBaseBackup asks for a base backup with a fast checkpoint, without WAL, with the server's manifest, and takes the connection over. Pages
// are not verified by the server: who reads them does that, and can say which they are.
func (c *Conn) StartBaseBackup(ctx context.Context, opt BaseBackupOptions) (*BaseBackup, error) {
	major, err := c.Major()
	if err != nil {
		return nil, err
	}
	command := fmt.Sprintf("BASE_BACKUP (LABEL '%s', CHECKPOINT 'fast', WAIT false, MANIFEST 'yes', TABLESPACE_MAP true, VERIFY_CHECKSUMS false)", opt.Label)
	if major < 15 {
		command = fmt.Sprintf("BASE_BACKUP LABEL '%s' FAST NOWAIT TABLESPACE_MAP NOVERIFY_CHECKSUMS MANIFEST 'yes'", opt.Label)
	}
	if opt.Previous != nil {
		if _, err := c.conn.CopyFrom(ctx, bytes.NewReader(opt.Previous), "UPLOAD_MANIFEST"); err != nil {
			return nil, errors.Join(fmt.Errorf("%w: UPLOAD_MANIFEST: %w", ErrNotIncremental, err), c.Close(ctx))
		}
		command = strings.TrimSuffix(command, ")") + ", INCREMENTAL)"
	}
	hijacked, err := c.takeOver(ctx)
	if err != nil {
		return nil, fmt.Errorf("start base backup: %w", err)
	}
	b := &BaseBackup{conn: hijacked, major: major, messages: newMessageReader(hijacked.Conn)}
	b.stopCancel = context.AfterFunc(ctx, func() { _ = hijacked.Conn.Close() })
	hijacked.Frontend.SendQuery(&pgproto3.Query{String: command})
	if err := hijacked.Frontend.Flush(); err != nil {
		return nil, errors.Join(fmt.Errorf("start base backup: %w", err), b.Close())
	}
	if err := b.readStart(); err != nil {
		var refused *pgconn.PgError
		if opt.Previous != nil && errors.As(err, &refused) {
			err = fmt.Errorf("%w: %w", ErrNotIncremental, err)
		}
		return nil, errors.Join(fmt.Errorf("start base backup: %w", err), b.Close())
	}
	return b, nil
}

// Close drops the connection; the server then gives an unfinished backup up.
func (b *BaseBackup) Close() error {
	b.stopCancel()
	err := b.conn.Conn.Close()
	if err != nil && strings.Contains(err.Error(), "use of closed") {
		return nil // a cancelled context has closed it
	}
	return err
}

// readStart reads the two result sets before the data: start position and tablespaces.
func (b *BaseBackup) readStart() error {
	rows, err := b.resultSet()
	if err != nil {
		return err
	}
	if b.Start, b.Timeline, err = parsePosition(rows); err != nil {
		return err
	}
	if rows, err = b.resultSet(); err != nil {
		return err
	}
	for _, row := range rows {
		if len(row) < 2 {
			return fmt.Errorf("tablespace row has %d columns", len(row))
		}
		b.tablespaces = append(b.tablespaces, Archive{TablespaceOID: row[0], TablespacePath: row[1]})
	}
	return nil
}

func parsePosition(rows [][]string) (pg.LSN, pg.Timeline, error) {
	if len(rows) != 1 || len(rows[0]) < 2 {
		return 0, 0, fmt.Errorf("expected one row with a position")
	}
	lsn, err1 := pg.ParseLSN(rows[0][0])
	tli, err2 := strconv.ParseUint(rows[0][1], 10, 32)
	return lsn, pg.Timeline(tli), errors.Join(err1, err2)
}

func (b *BaseBackup) resultSet() ([][]string, error) {
	var rows [][]string
	for {
		kind, err := b.messages.next()
		if err != nil {
			return nil, err
		}
		switch kind {
		case 'T': // RowDescription
		case 'D':
			row, err := b.messages.row()
			if err != nil {
				return nil, err
			}
			rows = append(rows, row)
		case 'C': // CommandComplete
			return rows, nil
		default:
			return nil, fmt.Errorf("unexpected message %q", kind)
		}
	}
}

// Next returns the next archive and a reader of its bytes, valid until the following Next. io.EOF says that the backup is
// complete and Stop is known.
func (b *BaseBackup) Next() (Archive, io.Reader, error) {
	if b.reader != nil {
		if _, err := io.Copy(io.Discard, b.reader); err != nil {
			return Archive{}, nil, err
		}
		b.reader = nil
	}
	archive, err := b.nextArchive()
	if errors.Is(err, io.EOF) {
		return Archive{}, nil, errors.Join(b.readStop(), io.EOF)
	}
	if err != nil {
		return Archive{}, nil, fmt.Errorf("base backup: %w", err)
	}
	b.reader = &archiveReader{b: b}
	return archive, b.reader, nil
}

func (b *BaseBackup) nextArchive() (Archive, error) {
	if b.pendingKind != nil {
		archive := *b.pendingKind
		b.pendingKind = nil
		return archive, nil
	}
	for {
		kind, err := b.messages.next()
		if err != nil {
			return Archive{}, err
		}
		switch kind {
		case 'H': // CopyOutResponse
			if b.major < 15 {
				return b.legacyArchive(), nil
			}
		case 'd': // CopyData
			archive, isNew, err := b.frame()
			if err != nil || isNew {
				return archive, err
			}
		case 'c', 'C': // CopyDone, CommandComplete
		case 'T': // RowDescription of the last result set
			return Archive{}, io.EOF
		default:
			return Archive{}, fmt.Errorf("unexpected message %q", kind)
		}
	}
}

// legacyArchive names the archives of 13 and 14: one COPY for each tablespace in the order of the result set, then the manifest.
func (b *BaseBackup) legacyArchive() Archive {
	n := b.legacy
	b.legacy++
	if n < len(b.tablespaces) {
		return b.tablespaces[n]
	}
	return Archive{Manifest: true}
}

// frame reads the head of a CopyData message of 15 and later: 'n' begins an archive, 'm' the manifest, 'd' carries data, which is left to
// be read, 'p' progress.
func (b *BaseBackup) frame() (archive Archive, isNew bool, err error) {
	kind, err := b.messages.first()
	if err != nil || kind == 'd' {
		return Archive{}, false, err
	}
	data, err := b.messages.rest()
	if err != nil {
		return Archive{}, false, err
	}
	switch kind {
	case 'n':
		fields := strings.SplitN(string(data), "\x00", 3)
		if len(fields) < 2 {
			return Archive{}, false, errors.New("an archive without a name")
		}
		name, isTar := strings.CutSuffix(fields[0], ".tar")
		if !isTar {
			return Archive{}, false, fmt.Errorf("an archive with the name %q", fields[0])
		}
		if name == "base" {
			return Archive{}, true, nil
		}
		return Archive{TablespaceOID: name, TablespacePath: fields[1]}, true, nil
	case 'm':
		return Archive{Manifest: true}, true, nil
	case 'p':
		return Archive{}, false, nil
	default:
		return Archive{}, false, fmt.Errorf("message of unknown kind %q", kind)
	}
}

// archiveReader gives the bytes of the current archive.
type archiveReader struct {
	b    *BaseBackup
	done bool
}

// Read implements io.Reader.
func (r *archiveReader) Read(p []byte) (int, error) {
	for r.b.messages.left == 0 && !r.done {
		if err := r.advance(); err != nil {
			return 0, fmt.Errorf("base backup: %w", err)
		}
	}
	if r.b.messages.left == 0 {
		return 0, io.EOF
	}
	n, err := r.b.messages.read(p)
	if err != nil {
		return n, fmt.Errorf("base backup: %w", err)
	}
	return n, nil
}

func (r *archiveReader) advance() error {
	kind, err := r.b.messages.next()
	if err != nil {
		return err
	}
	switch kind {
	case 'd':
		if r.b.major < 15 {
			return nil
		}
		archive, isNew, err := r.b.frame()
		if isNew {
			r.b.pendingKind, r.done = &archive, true
		}
		return err
	case 'c':
		r.done = true
		return nil
	default:
		return fmt.Errorf("unexpected message %q", kind)
	}
}

// readStop reads the result set behind the data, whose description has been read already, and the server's verdict.
func (b *BaseBackup) readStop() error {
	rows, err := b.resultSet()
	if err != nil {
		return fmt.Errorf("base backup: stop position: %w", err)
	}
	stop, _, err := parsePosition(rows)
	if err != nil {
		return fmt.Errorf("base backup: stop position: %w", err)
	}
	// Only now does the server say whether it stands by what it has sent.
	for {
		kind, err := b.messages.next()
		if err != nil {
			return fmt.Errorf("base backup: the server ended it with: %w", err)
		}
		if kind == 'Z' { // ReadyForQuery
			b.Stop = stop
			return nil
		}
	}
}
