package repo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"

	"pitr/internal/pg"
	"pitr/internal/store"
)

// ExtentSize is the size of the pieces into which files are cut; the last one of a file is shorter.
const ExtentSize = 256 << 10

// frameSizeMax bounds the frame of an extent, so that nobody who has made up a manifest lets a reader make room for more: zstd and encryption add
// little to what cannot be compressed.
const frameSizeMax = 2 * ExtentSize

// Backup is what a manifest says of its backup as a whole: its first line. docs/FORMAT.md, "Manifest".
type Backup struct {
	ID            string         `json:"backup"`
	SystemID      pg.SystemID    `json:"system_identifier,string"`
	ServerVersion string         `json:"server_version"`
	Major         int            `json:"server_major"`
	Timeline      pg.Timeline    `json:"timeline"`
	SegmentSize   pg.SegmentSize `json:"wal_segment_size"`
	ExtentSize    int            `json:"extent_size"`

	Start     pg.LSN    `json:"start_lsn"` // redo of the backup's checkpoint: recovery begins here
	Stop      pg.LSN    `json:"stop_lsn"`  // the copy is consistent from here on
	StartTime time.Time `json:"start_time"`
	StopTime  time.Time `json:"stop_time"`

	Files         int    `json:"files"`
	Bytes         int64  `json:"bytes"`                    // of the files
	StoredBytes   int64  `json:"stored_bytes"`             // of what holds them: its own packs, and what it refers to
	ReferredBytes int64  `json:"referred_bytes,omitempty"` // of what it refers to: frames in packs of other backups
	Previous      string `json:"previous,omitempty"`       // the backup that it was compared with
	FromStandby   bool   `json:"from_standby,omitempty"`
	// ChecksumFailures counts pages of the server whose checksum was wrong when they were copied.
	ChecksumFailures int `json:"checksum_failures,omitempty"`

	Packs       []Pack            `json:"packs"`
	Settings    map[string]string `json:"settings"` // those that recovery needs at least as high
	Tablespaces []Tablespace      `json:"tablespaces,omitempty"`
}

// Pack is an object that holds extents.
type Pack struct {
	Key  string `json:"key"`            // below the cluster's prefix
	Size int64  `json:"size"`           // of the object in bytes
	Lock string `json:"lock,omitempty"` // of an encrypted one: the id of its data key and its salt, in hexadecimal digits
}

// UploadedBytes is what the backup has added to the repository.
func (b Backup) UploadedBytes() int64 { return b.StoredBytes - b.ReferredBytes }

// Tablespace is a tablespace outside the data directory.
type Tablespace struct {
	OID  string `json:"oid"`
	Path string `json:"path"` // on the server that was backed up
}

// File is one line of a manifest: a file or a directory below the data directory.
type File struct {
	Path    string    `json:"path,omitempty"`         // slashes, relative to the data directory; a tablespace's files are below pg_tblspc/<oid>/
	Encoded string    `json:"encoded_path,omitempty"` // in a manifest, instead of Path: one that is no UTF-8, in hexadecimal digits
	Type    FileType  `json:"type,omitempty"`
	Mode    uint32    `json:"mode,omitempty"` // permission bits
	Size    int64     `json:"size,omitempty"`
	ModTime time.Time `json:"mtime"`
	Extents []Extent  `json:"extents,omitempty"`
}

// FileType tells what is not a regular file.
type FileType string

// A regular file has no type.
const (
	TypeFile FileType = ""
	TypeDir  FileType = "dir"
)

// Extent says where a piece of a file lies and what its bytes must hash to. In JSON it is [pack, offset, length, "hash", crc].
type Extent struct {
	Pack   int    // index into Backup.Packs
	Offset int64  // in the object
	Length int    // of the frame
	Hash   Digest // of the plain bytes
	CRC    CRC    // of the plain bytes
}

// CRC is a CRC-32C (Castagnoli), as Postgres's own manifest has it. Manifests of older programs lack it.
type CRC struct {
	Sum   uint32
	Known bool
}

// CRCOf is that of content.
func CRCOf(content []byte) CRC { return CRC{crc32.Checksum(content, castagnoli), true} }

// Digest is the first half of a SHA-256.
type Digest [16]byte

// MarshalJSON implements json.Marshaler.
func (e Extent) MarshalJSON() ([]byte, error) {
	b := fmt.Appendf(nil, `[%d,%d,%d,"%x"`, e.Pack, e.Offset, e.Length, e.Hash)
	if e.CRC.Known {
		b = strconv.AppendUint(append(b, ','), uint64(e.CRC.Sum), 10)
	}
	return append(b, ']'), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (e *Extent) UnmarshalJSON(b []byte) error {
	var digest string
	fields := []any{&e.Pack, &e.Offset, &e.Length, &digest, &e.CRC.Sum}
	if err := json.Unmarshal(b, &fields); err != nil {
		return err
	}
	e.CRC.Known = len(fields) > 4
	raw, err := hex.DecodeString(digest)
	if err != nil || len(raw) != len(e.Hash) {
		return fmt.Errorf("%q is no hash", digest)
	}
	copy(e.Hash[:], raw)
	return nil
}

// manifestEnd is the last line of a manifest; a manifest without it is damaged.
type manifestEnd struct {
	End    bool    `json:"end"`
	Files  int     `json:"files"`
	Origin *Origin `json:"origin,omitempty"`
}

// ManifestWriter collects the lines of a manifest in memory.
type ManifestWriter struct {
	Origin *Origin // may be nil

	repo  *Repo
	files int
	lines bytes.Buffer
}

// NewManifest begins a manifest.
func (r *Repo) NewManifest() *ManifestWriter { return &ManifestWriter{repo: r} }

// Add appends a line.
func (w *ManifestWriter) Add(f File) error {
	if !utf8.ValidString(f.Path) {
		f.Path, f.Encoded = "", hex.EncodeToString([]byte(f.Path))
	}
	line, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("manifest line of %s: %w", f.Path, err)
	}
	w.lines.Write(append(line, '\n'))
	w.files++
	return nil
}

// Publish writes the manifest: from now on the backup exists (law 4).
func (w *ManifestWriter) Publish(ctx context.Context, b Backup) error {
	b.Files = w.files
	first, err := json.Marshal(b)
	if err != nil {
		return fmt.Errorf("manifest of %s: %w", b.ID, err)
	}
	last, err := json.Marshal(manifestEnd{End: true, Files: w.files, Origin: w.Origin})
	if err != nil {
		return fmt.Errorf("manifest of %s: %w", b.ID, err)
	}
	// The first line is a frame of its own, so that listing backups reads little.
	first = append(first, '\n')
	rest := append(w.lines.Bytes(), append(last, '\n')...)
	body := w.repo.compressor.Append(nil, first)
	body = w.repo.compressor.Append(body, rest)
	d := newDraft(KindManifest, b.StopTime, append(first, rest...), body, CodecZstd)
	if d.clear, err = json.Marshal(b.inTheClear()); err != nil {
		return fmt.Errorf("manifest of %s: %w", b.ID, err)
	}
	return w.repo.put(ctx, manifestKey(b.ID), d)
}

// inTheClear is what an encrypted manifest says of its backup to those who cannot open it: enough to list backups, to see that their packs
// are there, and to expire them.
func (b Backup) inTheClear() Backup {
	b.Tablespaces = nil
	b.Settings = maps.Clone(b.Settings)
	maps.DeleteFunc(b.Settings, func(name, _ string) bool { return slices.Contains(privateSettings, name) })
	b.Packs = slices.Clone(b.Packs)
	for i := range b.Packs {
		b.Packs[i].Lock = ""
	}
	return b
}

// privateSettings tell what is installed on the server, and where.
var privateSettings = []string{"shared_preload_libraries", "config_file", "hba_file", "data_directory"}

const (
	// manifestSizeMax bounds a manifest's plain bytes: some 64 TiB of database.
	manifestSizeMax = 16 << 30
	// manifestLineMax bounds its first line, which lists the packs, some 60 bytes for each.
	manifestLineMax = 128 << 20
)

// Manifest is a whole manifest in memory.
type Manifest struct {
	Backup
	Entries []File
	Origin  *Origin // nil: an older program has written it
}

// ReadManifest returns the manifest of a backup after its hash was compared.
func (r *Repo) ReadManifest(ctx context.Context, id string) (*Manifest, error) {
	content, _, err := r.get(ctx, manifestKey(id), KindManifest, manifestSizeMax)
	if err != nil {
		return nil, err
	}
	m := &Manifest{}
	lines := bufio.NewReaderSize(bytes.NewReader(content), 1<<20)
	if err := decodeLine(lines, &m.Backup); err != nil {
		return nil, fmt.Errorf("manifest of %s: %w: %w", id, ErrDamaged, err)
	}
	// Every entry is a line: a count that was not counted makes nothing large.
	if lines := bytes.Count(content, []byte{'\n'}); m.Files < 0 || m.Files > lines {
		return nil, fmt.Errorf("manifest of %s: %w: it says that it lists %d files, and has %d lines", id, ErrDamaged, m.Files, lines)
	}
	m.Entries = make([]File, m.Files)
	for i := range m.Entries {
		if err := m.Entries[i].decode(lines); err != nil {
			return nil, fmt.Errorf("manifest of %s, line %d: %w: %w", id, i+2, ErrDamaged, err)
		}
	}
	var end manifestEnd
	if err := decodeLine(lines, &end); err != nil || !end.End || end.Files != m.Files {
		return nil, fmt.Errorf("manifest of %s: %w: its last line is missing (%v)", id, ErrDamaged, err)
	}
	m.Origin = end.Origin
	return m, m.check()
}

// decode reads a line of a manifest.
func (f *File) decode(lines *bufio.Reader) error {
	if err := decodeLine(lines, f); err != nil || f.Encoded == "" {
		return err
	}
	name, err := hex.DecodeString(f.Encoded)
	if err != nil || f.Path != "" {
		return fmt.Errorf("%q is no name", f.Encoded)
	}
	f.Path, f.Encoded = string(name), ""
	return nil
}

func decodeLine(lines *bufio.Reader, into any) error {
	line, err := lines.ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, into)
}

// check holds the references of a manifest against its own tables.
func (m *Manifest) check() error {
	for _, f := range m.Entries {
		if !filepath.IsLocal(f.Path) {
			return fmt.Errorf("manifest of %s: %w: %q is no name below the data directory", m.ID, ErrDamaged, f.Path)
		}
		if want := (f.Size + ExtentSize - 1) / ExtentSize; f.Size < 0 || int64(len(f.Extents)) != want {
			return fmt.Errorf("manifest of %s: %w: %s has %d extents for %d bytes", m.ID, ErrDamaged, f.Path, len(f.Extents), f.Size)
		}
		for _, e := range f.Extents {
			if e.Pack < 0 || e.Pack >= len(m.Packs) || e.Offset < headerSize || e.Length <= 0 || e.Length > frameSizeMax || m.Packs[e.Pack].Size < 0 || int64(e.Length) > m.Packs[e.Pack].Size-e.Offset {
				return fmt.Errorf("manifest of %s: %w: %s refers to bytes that no pack has", m.ID, ErrDamaged, f.Path)
			}
		}
	}
	return nil
}

// ReadBackup returns the first line of a manifest only; of an encrypted one, what it says in the clear. The hash of the object says nothing about a part of it, so it is the checksum
// of the line's frame that is compared.
func (r *Repo) ReadBackup(ctx context.Context, id string) (b Backup, err error) {
	if b, err = r.readBackup(ctx, id); err == nil {
		return b, nil
	}
	err = r.elsewhere(manifestKey(id), err, func(one *Repo) (err error) {
		b, err = one.readBackup(ctx, id)
		return err
	})
	return b, err
}

func (r *Repo) readBackup(ctx context.Context, id string) (b Backup, err error) {
	body, header, err := r.stream(ctx, manifestKey(id), KindManifest)
	if err != nil {
		return Backup{}, err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	if header.encrypted() {
		clear, err := readClear(body, header)
		if err == nil {
			err = json.Unmarshal(clear, &b)
		}
		if err != nil {
			err = fmt.Errorf("manifest of %s: %w: %w", id, ErrDamaged, err)
		}
		return b, err
	}
	frames, err := zstd.NewReader(body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(decoderMemoryMax))
	if err != nil {
		return Backup{}, fmt.Errorf("manifest of %s: %w", id, err)
	}
	defer frames.Close()
	if err := decodeLine(bufio.NewReader(io.LimitReader(frames, manifestLineMax)), &b); err != nil {
		return Backup{}, fmt.Errorf("manifest of %s: %w: %w", id, ErrDamaged, err)
	}
	return b, nil
}

// BackupIDs lists the ids of backups that have a manifest, whether it can be read or not.
func (r *Repo) BackupIDs(ctx context.Context) (map[string]bool, error) {
	ids := map[string]bool{}
	err := r.keys(ctx, backupsDir, func(object store.Object) error {
		id, _, _ := strings.Cut(object.Key[len(backupsDir):], "/")
		ids[id] = true
		return nil
	})
	return ids, err
}

// Backups lists the backups that exist, oldest first. One damaged manifest fails it as a whole: who decides what may be deleted must
// know all.
func (r *Repo) Backups(ctx context.Context) ([]Backup, error) {
	backups, damaged, err := r.ReadableBackups(ctx)
	return backups, errors.Join(err, errors.Join(damaged...))
}

// ReadableBackups lists the backups whose manifests can be read, and an error for each of the others: in an incident one damaged
// manifest must not be in the way of the rest.
func (r *Repo) ReadableBackups(ctx context.Context) (backups []Backup, damaged []error, err error) {
	err = r.keys(ctx, backupsDir, func(object store.Object) error {
		id, isManifest := strings.CutSuffix(object.Key[len(backupsDir):], manifestName)
		if !isManifest {
			damaged = append(damaged, fmt.Errorf("list %s: %s is no manifest: %w", backupsDir, object.Key, ErrDamaged))
			return nil
		}
		b, err := r.ReadBackup(ctx, id)
		switch {
		case errors.Is(err, store.ErrNotExist): // expired meanwhile
		case errors.Is(err, ErrDamaged):
			damaged = append(damaged, err)
		case err != nil:
			return err
		default:
			backups = append(backups, b)
		}
		return nil
	})
	return backups, damaged, err
}
