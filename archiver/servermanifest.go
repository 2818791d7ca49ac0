package archiver

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"pitr/internal/repo"
)

// serverManifest is the server's backup_manifest: "Backup Manifest Format" of the PostgreSQL manual. Its lines are kept as they are, so that
// only those of files that were put together here have to be written anew: AddFileToBackupManifest of src/backend/backup/backup_manifest.c
// puts each file on a line of its own, and so does src/bin/pg_combinebackup/write_manifest.c.
type serverManifest struct {
	lines [][]byte // with their line feeds
}

// manifestFile is what a line says of a file.
type manifestFile struct {
	Path         string `json:"Path"`
	EncodedPath  string `json:"Encoded-Path"`
	Size         int64  `json:"Size"`
	LastModified string `json:"Last-Modified"`
	Algorithm    string `json:"Checksum-Algorithm"`
	Checksum     string `json:"Checksum"`
}

// manifestChecksum begins the last line, which has the SHA-256 of all lines before it.
const manifestChecksum = `"Manifest-Checksum": "`

func parseServerManifest(content []byte) (*serverManifest, error) {
	m := &serverManifest{lines: bytes.SplitAfter(content, []byte{'\n'})}
	if n := len(m.lines); len(m.lines[n-1]) == 0 {
		m.lines = m.lines[:n-1]
	}
	last := m.lines[len(m.lines)-1]
	sum := sha256.Sum256(content[:len(content)-len(last)])
	if !bytes.HasPrefix(last, []byte(manifestChecksum+hex.EncodeToString(sum[:]))) {
		return nil, errors.New("the server's manifest does not have the checksum that it should have")
	}
	return m, nil
}

// file reads a line about a file; ok is false for every other line.
func (m *serverManifest) file(line int) (f manifestFile, ok bool, err error) {
	text := bytes.TrimSpace(m.lines[line])
	if !bytes.HasPrefix(text, []byte(`{ "Path"`)) && !bytes.HasPrefix(text, []byte(`{ "Encoded-Path"`)) {
		return f, false, nil
	}
	if err := json.Unmarshal(bytes.TrimSuffix(text, []byte{','}), &f); err != nil {
		return f, false, fmt.Errorf("line %d of the server's manifest: %w", line+1, err)
	}
	if f.EncodedPath != "" {
		name, err := hex.DecodeString(f.EncodedPath)
		if err != nil {
			return f, false, fmt.Errorf("line %d of the server's manifest: %w", line+1, err)
		}
		f.Path = string(name)
	}
	return f, true, nil
}

// checksumText is how a CRC-32C is written: its bytes as they lie in the memory of a little-endian server.
func checksumText(sum uint32) string {
	return hex.EncodeToString(binary.LittleEndian.AppendUint32(nil, sum))
}

// whole holds the server's lines against the files as they have arrived, and returns the manifest of all files as they are stored. sent has the
// checksums of what was not stored as it was sent, by its name in the server's manifest.
func (m *serverManifest) whole(files []*repo.File, sent map[string]sentFile) ([]byte, error) {
	stored := make(map[string]*repo.File, len(files))
	for _, f := range files {
		stored[f.Path] = f
	}
	var out bytes.Buffer
	for i := range m.lines[:len(m.lines)-1] {
		listed, isFile, err := m.file(i)
		if err != nil {
			return nil, err
		}
		if !isFile {
			out.Write(m.lines[i])
			continue
		}
		s, changed := sent[listed.Path]
		name := listed.Path
		if changed {
			name = s.path
		}
		f := stored[name]
		if f == nil {
			return nil, fmt.Errorf("the server says that it has sent %s, which has not arrived", listed.Path)
		}
		sum, size := crcOf(f), f.Size
		if !changed {
			s = sentFile{size: size, sum: sum.Sum}
		}
		if listed.Size != s.size || listed.Algorithm == "CRC32C" && listed.Checksum != checksumText(s.sum) {
			return nil, fmt.Errorf("%s has arrived with %d bytes and checksum %s; the server has sent %d with %s", listed.Path, s.size, checksumText(s.sum), listed.Size, listed.Checksum)
		}
		if !changed {
			out.Write(m.lines[i])
			continue
		}
		line, err := fileLine(name, listed, size, sum.Sum)
		if err != nil {
			return nil, err
		}
		out.WriteString(line)
		if bytes.HasSuffix(bytes.TrimSpace(m.lines[i]), []byte{','}) {
			out.WriteByte(',')
		}
		out.WriteByte('\n')
	}
	sum := sha256.Sum256(out.Bytes())
	fmt.Fprintf(&out, "%s%x\"}\n", manifestChecksum, sum)
	return out.Bytes(), nil
}

// fileLine is a line about a file, without what follows it. Names of files of relations need no escapes.
func fileLine(name string, listed manifestFile, size int64, sum uint32) (string, error) {
	if strings.ContainsAny(name, "\"\\") {
		return "", fmt.Errorf("%q is no name of a file that was put together", name)
	}
	return fmt.Sprintf(`{ "Path": "%s", "Size": %d, "Last-Modified": "%s", "Checksum-Algorithm": "CRC32C", "Checksum": "%s" }`,
		name, size, listed.LastModified, checksumText(sum)), nil
}

// writeServerManifest makes the manifest that the server would have sent with these files: version 2, with the system identifier, since PostgreSQL 17
// (InitializeBackupManifest and AddWALInfoToBackupManifest of src/backend/backup/backup_manifest.c).
func writeServerManifest(files []*repo.File, b *repo.Backup) ([]byte, error) {
	var out bytes.Buffer
	if b.Major >= 17 {
		fmt.Fprintf(&out, "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": %d,\n\"Files\": [", b.SystemID)
	} else {
		out.WriteString("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [")
	}
	before := ""
	for _, f := range files {
		if f.Type != repo.TypeFile {
			continue
		}
		sum := crcOf(f)
		if !sum.Known {
			return nil, fmt.Errorf("the checksum of %s is not known", f.Path)
		}
		name, err := manifestName(f.Path)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&out, "%s\n{ %s, \"Size\": %d, \"Last-Modified\": \"%s\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"%s\" }", before, name, f.Size,
			f.ModTime.UTC().Format("2006-01-02 15:04:05 GMT"), checksumText(sum.Sum))
		before = ","
	}
	fmt.Fprintf(&out, "\n],\n\"WAL-Ranges\": [\n{ \"Timeline\": %d, \"Start-LSN\": \"%s\", \"End-LSN\": \"%s\" }\n],\n", b.Timeline, b.Start, b.Stop)
	sum := sha256.Sum256(out.Bytes())
	fmt.Fprintf(&out, "%s%x\"}\n", manifestChecksum, sum)
	return out.Bytes(), nil
}

// manifestName is a file's name as a field: in hexadecimal digits where it is no UTF-8.
func manifestName(name string) (string, error) {
	if !utf8.ValidString(name) {
		return fmt.Sprintf(`"Encoded-Path": "%x"`, name), nil
	}
	var text strings.Builder
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(name)
	return `"Path": ` + strings.TrimSpace(text.String()), err
}

// sentFile is a file that was not stored as the server has sent it.
type sentFile struct {
	path string // of the file that was stored
	size int64
	sum  uint32
}

// crcOf puts the checksum of a file together from those of its extents.
func crcOf(f *repo.File) repo.CRC {
	sum := repo.CRC{Known: true}
	for i := range f.Extents {
		crc := f.Extents[i].CRC // of an extent that is on its way to a pack the rest is being written
		sum.Sum = appendCRC(sum.Sum, crc.Sum, min(repo.ExtentSize, f.Size-int64(i)*repo.ExtentSize))
		sum.Known = sum.Known && crc.Known
	}
	return sum
}
