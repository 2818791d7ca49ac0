package archiver

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"pitr/internal/repo"
	"pitr/internal/wal"
)

// ErrUnnamed says that a relation's file has changed and that no WAL says so: the archive does not know what it should, or somebody has written
// to the file who may not.
var ErrUnnamed = errors.New("it has changed since the backup before, and the archived WAL does not say so; `pitr backup --full` compares with nothing")

// comparison collects the extents that are not what they were in the backup before, so that they can be held against the WAL between. It looks
// at main forks of files that were there before. The others change without WAL that names them: the free space map is not logged, bits of the
// visibility map are cleared by records of the heap that name no block of the map before version 19, init forks of unlogged relations are
// written once; and what is no relation has other records.
type comparison struct {
	before map[string]*repo.File // nil: nothing is compared

	mu      sync.Mutex // guards changed
	changed []changedExtent
}

type changedExtent struct {
	path   string
	number int
	file   relationFile
}

// newComparison compares with the backup before, if WAL must have told of every change since. Otherwise reason says why not.
func newComparison(before previous, b repo.Backup) (c *comparison, reason string) {
	c = &comparison{}
	settings := b.Settings
	switch {
	case before.backup == nil:
		return c, "" // there is nothing to compare with
	case before.manifest == nil:
		return c, "the backup before cannot be opened here"
	case b.FromStandby || before.manifest.FromStandby:
		return c, "pages of a standby lack hint bits that the primary has set and not logged"
	case !logsHints(settings) || !logsHints(before.manifest.Settings):
		return c, "without data_checksums and wal_log_hints changes of hint bits are not in the WAL"
	case settings["data_checksums"] != before.manifest.Settings["data_checksums"]:
		return c, "data_checksums has changed"
	case !knownLayout(settings):
		return c, "the server's pages or files are of another size"
	}
	c.before = make(map[string]*repo.File, len(before.manifest.Entries))
	for i := range before.manifest.Entries {
		f := &before.manifest.Entries[i]
		c.before[f.Path] = f
	}
	return c, ""
}

func logsHints(settings map[string]string) bool {
	return settings["data_checksums"] == "on" || settings["wal_log_hints"] == "on"
}

// look notes an extent that has changed. Its hash is known.
func (c *comparison) look(e *extent) {
	before := c.before[e.file.Path]
	if before == nil || e.number >= len(before.Extents) || before.Extents[e.number].Hash == e.target.Hash {
		return
	}
	file, ok := parseRelationFile(e.file.Path)
	if !ok || file.fork != wal.ForkMain || grownByZeros(before, e) || file.block(e.number) == 0 && isSPGistMeta(e.plain) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changed = append(c.changed, changedExtent{e.file.Path, e.number, file})
}

// grownByZeros reports whether an extent is what it was with zeros behind it: a file is made longer without WAL (smgrzeroextend, mdextend).
func grownByZeros(before *repo.File, e *extent) bool {
	length := min(repo.ExtentSize, before.Size-int64(e.number)*repo.ExtentSize)
	if length >= int64(len(e.plain)) || !bytes.Equal(e.plain[length:], zeroExtent[:int64(len(e.plain))-length]) {
		return false
	}
	return repo.DigestOf(e.plain[:length]) == before.Extents[e.number].Hash
}

// isSPGistMeta recognises the first page of an SP-GiST index, whose hints where there is room are not logged (SpGistUpdateMetaPage in
// src/backend/access/spgist/spgutils.c): SPGIST_MAGIC_NUMBER of src/include/access/spgist_private.h behind the page's header.
func isSPGistMeta(page []byte) bool {
	const header, magic = 24, 0xBA0BABEE
	return len(page) >= header+4 && binary.LittleEndian.Uint32(page[header:]) == magic
}

// check holds what was noted against the WAL since the backup before, all of which must be in the archive.
func (c *comparison) check(ctx context.Context, opt BackupOptions, before *repo.Manifest, b *repo.Backup) error {
	if c.before == nil {
		return nil
	}
	p, err := opt.Repo.Path(ctx, b.Timeline, b.SegmentSize, before.Start)
	if err != nil {
		return err
	}
	if !p.Contains(before.Timeline, before.Stop) {
		opt.Log.Info("what has changed is not compared with the WAL", "because", "the backup before lies on a branch that was left", "backup", before.ID)
		return nil
	}
	if before.Timeline != b.Timeline {
		opt.Log.Info("what has changed is not compared with the WAL", "because", "the timeline has changed: who was a standby lacks hint bits that were not logged", "backup", before.ID)
		return nil
	}
	if end := p.Frontier(b.SegmentSize.Start(before.Start)); end < b.Stop {
		opt.Log.Warn("what has changed is not compared with the WAL", "because", "some of it is missing in the archive", "backup", before.ID, "from", end)
		return nil
	}
	t, err := readTouched(ctx, opt.Repo, p, b.SystemID, before.Start, b.Stop)
	if err != nil {
		return err
	}
	for _, change := range c.changed {
		if !t.names(change.file.relation, change.file.fork, change.file.block(change.number)) {
			return fmt.Errorf("extent %d of %s (relation %s, from block %d on), WAL from %s to %s: %w", change.number, change.path, change.file.relation,
				change.file.block(change.number), before.Start, b.Stop, ErrUnnamed)
		}
	}
	opt.Log.Info("what has changed is what the WAL says", "extents", len(c.changed), "since", before.ID)
	return nil
}
