package archiver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"pitr/internal/repo"
)

// previous is what a backup builds on.
type previous struct {
	known    *known
	backup   *repo.Backup   // the newest one; nil: there is none, or it is not to be used
	manifest *repo.Manifest // of it; nil when it cannot be opened here
	whole    bool           // all of its packs are there
	repack   repacking      // which of its packs are left alone
}

const (
	// previousTried is how many backups are looked at when manifests are damaged.
	previousTried = 3
	// orphanReuse is how old a backup without a manifest may be to be built on: less than orphanAge by what a backup may take.
	orphanReuse = orphanAge - 24*time.Hour
	// contentsParallel is how many contents of packs are read at a time, contentsMax how many at all: of some 100 TiB.
	contentsParallel = 8
	contentsMax      = 1 << 20
)

// findPrevious looks for what the repository has of this cluster's files.
func findPrevious(ctx context.Context, opt BackupOptions, b repo.Backup, stored map[string][]repo.Pack) (previous, error) {
	p := previous{known: newKnown()}
	if opt.Full {
		return p, nil
	}
	backups, damaged, err := opt.Repo.ReadableBackups(ctx)
	if err != nil {
		return p, err
	}
	for _, err := range damaged {
		opt.Log.Warn("a backup cannot be built on", "error", err)
	}
	there := map[string]repo.Pack{}
	for _, packs := range stored {
		for _, pack := range packs {
			there[pack.Key] = pack
		}
	}
	slices.SortFunc(backups, func(a, b repo.Backup) int { return b.StopTime.Compare(a.StopTime) })
	candidates := backups[:min(len(backups), previousTried)]
	mark := repo.Running{Since: b.StartTime, Bases: []string{}}
	for _, candidate := range candidates {
		mark.Bases = append(mark.Bases, candidate.ID)
	}
	bases, err := opt.Repo.BeginBackup(ctx, b.ID, mark)
	if err != nil {
		return p, err
	}
	for _, candidate := range candidates {
		if !slices.Contains(bases, candidate.ID) { // it expires
			continue
		}
		if candidate.SystemID != b.SystemID || candidate.ExtentSize != repo.ExtentSize {
			continue
		}
		err := p.build(ctx, opt, candidate, there)
		if err == nil {
			break
		}
		if !errors.Is(err, repo.ErrDamaged) && !errors.Is(err, repo.ErrNotExist) {
			return p, err
		}
		opt.Log.Warn("a backup cannot be built on", "backup", candidate.ID, "error", err)
	}
	return p, p.addOrphans(ctx, opt, b, backups, stored)
}

// unfit says why extents of the backup before cannot be taken over without being read; empty: they can.
func (p previous) unfit(b repo.Backup) (reason string) {
	switch {
	case p.manifest == nil:
		return "the backup before cannot be opened here"
	case !p.whole:
		return "not all packs of the backup before can be used"
	case p.manifest.ChecksumFailures > 0:
		return "the backup before has pages whose checksum is wrong"
	case !knownLayout(b.Settings):
		return "the server's pages or files are of another size"
	case b.Settings["data_checksums"] != p.manifest.Settings["data_checksums"]:
		return "data_checksums has changed: pg_checksums writes into every page, without WAL"
	}
	return ""
}

// build makes a backup the one that is built on.
func (p *previous) build(ctx context.Context, opt BackupOptions, candidate repo.Backup, there map[string]repo.Pack) error {
	m, err := opt.Repo.ReadManifest(ctx, candidate.ID)
	if errors.Is(err, repo.ErrNoIdentity) || errors.Is(err, repo.ErrWrongIdentity) {
		opt.Log.Info("the backup before cannot be opened here: what its packs hold is read instead", "backup", candidate.ID)
		p.backup = &candidate
		var present []repo.Pack
		for _, pack := range candidate.Packs {
			if pack.Size == there[pack.Key].Size { // their locks are in what is read
				present = append(present, pack)
			}
		}
		return p.addContents(ctx, opt, present)
	}
	if err != nil {
		return err
	}
	p.backup, p.manifest, p.whole, p.repack = &candidate, m, true, planRepack(m, opt.RepackBelow)
	if p.repack.packs > 0 {
		opt.Log.Info("packs that are hardly used any more are left alone, and what is used of them is stored again", "packs", p.repack.packs, "bytes", p.repack.bytes)
	}
	numbers := make([]int32, len(m.Packs))
	for i, pack := range m.Packs {
		numbers[i] = -1
		if there[pack.Key].Size != pack.Size {
			opt.Log.Error("a pack of a backup is missing: what it held is stored again", "backup", candidate.ID, "pack", pack.Key)
			p.whole = false
			continue
		}
		if !sameLock(opt.Repo, pack) {
			p.whole = false
			continue
		}
		if !p.repack.isThin(i) {
			numbers[i] = p.known.addPack(pack)
		}
	}
	for _, f := range m.Entries {
		for _, e := range f.Extents {
			if number := numbers[e.Pack]; number >= 0 {
				p.known.add(opt.Repo.TagOf(e.Hash), number, e.Offset, e.Length)
			}
		}
	}
	return nil
}

// sameLock reports whether a pack is encrypted if, and only if, what is written now is: whoever has turned encryption on relies on that nothing that
// is written from then on can be read by others.
func sameLock(r *repo.Repo, pack repo.Pack) bool { return (pack.Lock != "") == r.Encrypts() }

// addOrphans adds what backups have left that were interrupted.
func (p *previous) addOrphans(ctx context.Context, opt BackupOptions, b repo.Backup, backups []repo.Backup, stored map[string][]repo.Pack) error {
	expiring, err := opt.Repo.Tombstones(ctx) // its packs may be going at this moment, without a manifest already
	if err != nil {
		return err
	}
	var packs []repo.Pack
	for id, list := range stored {
		if _, dead := expiring[id]; dead {
			continue
		}
		began, err := time.Parse(BackupIDLayout, id)
		published := slices.ContainsFunc(backups, func(b repo.Backup) bool { return b.ID == id })
		if err == nil && !published && id != b.ID && b.StartTime.Sub(began) < orphanReuse {
			packs = append(packs, list...)
		}
	}
	slices.SortFunc(packs, func(a, b repo.Pack) int { return cmp.Compare(a.Key, b.Key) })
	before := len(p.known.places)
	if err := p.addContents(ctx, opt, packs); err != nil {
		return err
	}
	if found := len(p.known.places) - before; found > 0 {
		opt.Log.Info("packs of backups that were interrupted are used", "packs", len(packs), "extents", found)
	}
	return nil
}

// addContents reads what packs hold. A pack about which nothing says that is passed over.
func (p *previous) addContents(ctx context.Context, opt BackupOptions, packs []repo.Pack) error {
	packs = packs[max(0, len(packs)-contentsMax):]
	for part := range slices.Chunk(packs, contentsParallel) {
		contents, errs := make([]repo.Contents, len(part)), make([]error, len(part))
		var readers sync.WaitGroup
		for i, pack := range part {
			readers.Go(func() { contents[i], errs[i] = opt.Repo.ReadContents(ctx, pack) })
		}
		readers.Wait()
		for i, c := range contents {
			switch err := errs[i]; {
			case err == nil && !sameLock(opt.Repo, c.Pack):
			case err == nil:
				number := p.known.addPack(c.Pack)
				for _, f := range c.Frames {
					p.known.add(f.Tag, number, f.Offset, f.Length)
				}
			case errors.Is(err, repo.ErrNotExist):
			case errors.Is(err, repo.ErrDamaged), errors.Is(err, repo.ErrIncomparable):
				opt.Log.Warn("what a pack holds is not known", "pack", part[i].Key, "error", err)
			default:
				return fmt.Errorf("look for what is stored already: %w", err)
			}
		}
	}
	return nil
}
