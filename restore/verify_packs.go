package restore

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"pitr/internal/repo"
)

// packUse is what the manifests of all backups say that a pack holds. Each place is decoded once, however many refer to it.
type packUse struct {
	pack    repo.Pack
	backup  string              // one that refers to it
	extents map[repo.Extent]int // lengths of the plain bytes
}

// backup looks for the packs of a backup, which may be those of others; sizes has those that are stored, by their keys.
func (v *verifier) backup(ctx context.Context, id string, sizes map[string]int64) error {
	packs, manifest, err := v.manifest(ctx, id)
	if err != nil {
		return v.defectOr(err)
	}
	v.report.Backups++
	uses := make([]*packUse, len(packs)) // of those that are read
	for i, pack := range packs {
		size, found := sizes[pack.Key]
		switch {
		case !found:
			v.defect("backup %s: pack %s is missing", id, pack.Key)
		case size != pack.Size:
			v.defect("backup %s: pack %s has %d bytes, its manifest says %d", id, pack.Key, size, pack.Size)
		default:
			v.report.Packs++
			v.report.Bytes += pack.Size
			if v.level != Checksum || !v.opt.has(pack.Key) {
				continue
			}
			if v.uses[pack.Key] == nil {
				v.uses[pack.Key] = &packUse{pack, id, map[repo.Extent]int{}}
			}
			uses[i] = v.uses[pack.Key]
		}
	}
	if manifest == nil {
		return nil
	}
	for _, f := range manifest.Entries {
		for n, e := range f.Extents {
			if use := uses[e.Pack]; use != nil {
				e.Pack, e.CRC = 0, repo.CRC{}
				use.extents[e] = int(min(repo.ExtentSize, f.Size-int64(n)*repo.ExtentSize))
			}
		}
	}
	return nil
}

// manifest reads that of a backup. For names and sizes it is enough what an encrypted one says in the clear; then it is nil.
func (v *verifier) manifest(ctx context.Context, id string) ([]repo.Pack, *repo.Manifest, error) {
	manifest, err := v.repo.ReadManifest(ctx, id)
	if cannotOpen(err) && v.level == Inventory {
		v.report.Encrypted = true
		b, err := v.repo.ReadBackup(ctx, id)
		return b.Packs, nil, err
	}
	if err != nil {
		return nil, nil, err
	}
	return manifest.Packs, manifest, nil
}

// readPacks reads the packs that backups refer to, and decodes what they refer to.
func (v *verifier) readPacks(ctx context.Context) error {
	keys := slices.Sorted(maps.Keys(v.uses))
	return v.each(len(keys), func(i int) error {
		use := v.uses[keys[i]]
		v.read(use.pack.Size)
		uses := make([]repo.ExtentUse, 0, len(use.extents))
		for extent, length := range use.extents {
			uses = append(uses, repo.ExtentUse{Extent: extent, Length: length})
		}
		if err := v.repo.VerifyPack(ctx, use.pack, uses); err != nil {
			return v.defectOr(fmt.Errorf("backup %s: %w", use.backup, err))
		}
		return nil
	})
}
