package replication

import (
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
	major       int
	tablespaces []Archive
	legacy      int // 13 and 14: how many of tablespaces and manifest have begun
	pending     []byte
	pendingKind *Archive
	reader      *archiveReader
}

// StartBaseBackup asks for a base backup with a fast checkpoint, without WAL, with the server's manifest, and takes the connection over.
func (c *Conn) StartBaseBackup(ctx context.Context, label string) (*BaseBackup, error) {
	major, err := c.Major()
	if err != nil {
		return nil, err
	}
	command := fmt.Sprintf("BASE_BACKUP (LABEL '%s', CHECKPOINT 'fast', WAIT false, MANIFEST 'yes', TABLESPACE_MAP true)", label)
	if major < 15 {
		command = fmt.Sprintf("BASE_BACKUP LABEL '%s' FAST NOWAIT TABLESPACE_MAP MANIFEST 'yes'", label)
	}
	hijacked, err := c.takeOver(ctx)
	if err != nil {
		return nil, fmt.Errorf("start base backup: %w", err)
	}
	b := &BaseBackup{conn: hijacked, major: major}
	b.stopCancel = context.AfterFunc(ctx, func() { _ = hijacked.Conn.Close() })
	hijacked.Frontend.SendQuery(&pgproto3.Query{String: command})
	if err := hijacked.Frontend.Flush(); err != nil {
		return nil, errors.Join(fmt.Errorf("start base backup: %w", err), b.Close())
	}
	if err := b.readStart(); err != nil {
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

func (b *BaseBackup) receive() (pgproto3.BackendMessage, error) {
	for {
		message, err := b.conn.Frontend.Receive()
		if err != nil {
			return nil, err
		}
		switch m := message.(type) {
		case *pgproto3.ErrorResponse:
			return nil, pgconn.ErrorResponseToPgError(m)
		case *pgproto3.NoticeResponse, *pgproto3.ParameterStatus:
		default:
			return message, nil
		}
	}
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
		message, err := b.receive()
		if err != nil {
			return nil, err
		}
		switch m := message.(type) {
		case *pgproto3.RowDescription:
		case *pgproto3.DataRow:
			row := make([]string, len(m.Values))
			for i, value := range m.Values {
				row[i] = string(value)
			}
			rows = append(rows, row)
		case *pgproto3.CommandComplete:
			return rows, nil
		default:
			return nil, fmt.Errorf("unexpected %T", message)
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
		message, err := b.receive()
		if err != nil {
			return Archive{}, err
		}
		switch m := message.(type) {
		case *pgproto3.CopyOutResponse:
			if b.major < 15 {
				return b.legacyArchive(), nil
			}
		case *pgproto3.CopyData:
			archive, isNew, err := b.frame(m.Data)
			if err != nil || isNew {
				return archive, err
			}
		case *pgproto3.CopyDone:
		case *pgproto3.RowDescription: // the last result set
			return Archive{}, io.EOF
		case *pgproto3.CommandComplete:
		default:
			return Archive{}, fmt.Errorf("unexpected %T", message)
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

// frame reads a CopyData message of 15 and later: 'n' begins an archive, 'm' the manifest, 'd' carries data, 'p' progress.
func (b *BaseBackup) frame(data []byte) (archive Archive, isNew bool, err error) {
	if len(data) == 0 {
		return Archive{}, false, errors.New("empty message")
	}
	switch data[0] {
	case 'n':
		fields := strings.SplitN(string(data[1:]), "\x00", 3)
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
	case 'd':
		b.pending = data[1:]
		return Archive{}, false, nil
	case 'p':
		return Archive{}, false, nil
	default:
		return Archive{}, false, fmt.Errorf("message of unknown kind %q", data[0])
	}
}

// archiveReader gives the bytes of the current archive.
type archiveReader struct {
	b    *BaseBackup
	done bool
}

// Read implements io.Reader.
func (r *archiveReader) Read(p []byte) (int, error) {
	for len(r.b.pending) == 0 && !r.done {
		if err := r.advance(); err != nil {
			return 0, fmt.Errorf("base backup: %w", err)
		}
	}
	if len(r.b.pending) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b.pending)
	r.b.pending = r.b.pending[n:]
	return n, nil
}

func (r *archiveReader) advance() error {
	message, err := r.b.receive()
	if err != nil {
		return err
	}
	switch m := message.(type) {
	case *pgproto3.CopyData:
		if r.b.major < 15 {
			r.b.pending = m.Data
			return nil
		}
		archive, isNew, err := r.b.frame(m.Data)
		if isNew {
			r.b.pendingKind, r.done = &archive, true
		}
		return err
	case *pgproto3.CopyDone:
		r.done = true
		return nil
	default:
		return fmt.Errorf("unexpected %T", message)
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
	// Only now does the server say whether what it has sent was sound: "checksum verification failure during base backup".
	for {
		message, err := b.receive()
		if err != nil {
			return fmt.Errorf("base backup: the server ended it with: %w", err)
		}
		if _, isReady := message.(*pgproto3.ReadyForQuery); isReady {
			b.Stop = stop
			return nil
		}
	}
}
