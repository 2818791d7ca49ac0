package archiver

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"time"

	"pitr/archiver/replication"
	"pitr/internal/repo"
)

// archiveFiles is a base backup on its way into a pipeline.
type archiveFiles struct {
	opt        BackupOptions
	base       *replication.BaseBackup
	p          *pipeline
	increments *increments // nil: whole files are sent
	rate       *rate
}

func (a *archiveFiles) read(p *pipeline, b *repo.Backup) error {
	a.p = p
	if a.increments == nil {
		return a.readArchives(b)
	}
	a.increments.filler.start(p)
	err := a.readArchives(b)
	if err != nil {
		p.cancel(err)
	}
	a.increments.filler.finish()
	return err
}

func (a *archiveFiles) again(ctx context.Context, f pageFailure) ([]byte, error) {
	return a.opt.askAgain(ctx, f)
}

func (a *archiveFiles) readArchives(b *repo.Backup) error {
	for {
		archive, content, err := a.base.Next()
		if err != nil {
			if errors.Is(err, io.EOF) && a.base.Stop != 0 {
				return nil
			}
			return err
		}
		content = &rated{a.p.ctx, content, a.rate}
		switch {
		case archive.Manifest:
			// Stored like a file of the data directory, where pg_verifybackup looks for it.
			err = a.manifest(content)
		case archive.TablespaceOID == "":
			err = a.readTar(content, "")
		default:
			if filepath.IsAbs(archive.TablespacePath) { // otherwise it lies in the data directory itself, and stays there
				b.Tablespaces = append(b.Tablespaces, repo.Tablespace{OID: archive.TablespaceOID, Path: archive.TablespacePath})
			}
			err = a.readTar(content, "pg_tblspc/"+archive.TablespaceOID+"/")
		}
		if err != nil {
			return err
		}
	}
}

// readTar hands every entry of an archive to the pipeline.
func (a *archiveFiles) readTar(content io.Reader, prefix string) error {
	archive := tar.NewReader(content)
	for {
		entry, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the archive %q: %w", prefix, err)
		}
		name := path.Clean(prefix + entry.Name)
		if name == "." {
			continue
		}
		if !filepath.IsLocal(name) {
			return fmt.Errorf("read the archive %q: the name %q leaves the data directory", prefix, entry.Name)
		}
		f := &repo.File{Path: name, Mode: uint32(entry.Mode & 0o777), Size: entry.Size, ModTime: entry.ModTime.UTC()}
		switch entry.Typeflag {
		case tar.TypeReg:
			err = a.file(f, archive)
		case tar.TypeDir:
			f.Type, f.Size = repo.TypeDir, 0
			err = a.p.add(f, nil)
		default:
			err = fmt.Errorf("read the archive %q: %s is of type %q, which a base backup does not contain", prefix, name, entry.Typeflag)
		}
		if err != nil {
			return err
		}
	}
}

// unsizedMax bounds what is read as a whole because its size is not announced: the server's manifest, some 150 bytes for each file.
const unsizedMax = 1 << 30

// manifest stores the server's manifest, which comes last, after all that came was held against it.
func (a *archiveFiles) manifest(content io.Reader) error {
	const name = "backup_manifest"
	all, err := io.ReadAll(io.LimitReader(content, unsizedMax+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if len(all) > unsizedMax {
		return fmt.Errorf("read %s: it has more than %d bytes", name, unsizedMax)
	}
	server, err := parseServerManifest(all)
	if err != nil {
		return err
	}
	if err := a.p.settle(); err != nil {
		return err
	}
	var sent map[string]sentFile
	if a.increments != nil {
		sent = a.increments.sent
	}
	whole, err := server.whole(a.p.files, sent)
	if err != nil {
		return err
	}
	f := &repo.File{Path: name, Mode: 0o600, Size: int64(len(whole)), ModTime: time.Now().UTC().Truncate(time.Second)}
	return a.p.add(f, bytes.NewReader(whole))
}

// file hands over a file, however much of it is sent.
func (a *archiveFiles) file(f *repo.File, content io.Reader) error {
	if whole, isPart := a.increments.part(f.Path); isPart {
		return a.increments.add(a.p, f, whole, content)
	}
	if a.increments != nil && f.Path == "backup_label" {
		label, err := a.increments.label(f, content)
		if err != nil {
			return err
		}
		content = label
	}
	return a.p.add(f, content)
}
