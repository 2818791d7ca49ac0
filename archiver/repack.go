package archiver

import (
	"cmp"
	"slices"

	"pitr/internal/repo"
)

// repackShare bounds what one backup stores again for the sake of packs that are hardly used: so many times less than what its predecessor refers to in
// all, though always one pack.
const repackShare = 10

// packHeaderMax is the size of the larger of the headers that a pack may have: docs/FORMAT.md, "Encryption". A pack that holds next to nothing is not
// hardly used for its sake.
const packHeaderMax = 128

// repacking says which packs of the backup before the next one leaves alone, since little of them is still used: what they hold is stored again, so
// that they go when the older backups do. A manifest cannot be changed, but the next one can do without.
type repacking struct {
	thin  []bool // by the number of the pack; nil: none is
	packs int
	bytes int64 // of frames that are stored again, roughly
}

// planRepack finds the packs of which a manifest uses less than below percent of the bytes; those of which least is used come first.
func planRepack(m *repo.Manifest, below int) repacking {
	r := repacking{thin: make([]bool, len(m.Packs))}
	if below <= 0 {
		return r
	}
	live := usedOfPacks(m)
	var candidates []int
	total := int64(0)
	for i, pack := range m.Packs {
		total += live[i]
		if live[i]*100 < int64(below)*(pack.Size-packHeaderMax) {
			candidates = append(candidates, i)
		}
	}
	slices.SortFunc(candidates, func(a, b int) int {
		return cmp.Compare(float64(live[a])/float64(m.Packs[a].Size), float64(live[b])/float64(m.Packs[b].Size))
	})
	for _, i := range candidates {
		if r.packs > 0 && r.bytes+live[i] > total/repackShare {
			break
		}
		r.thin[i] = true
		r.packs++
		r.bytes += live[i]
	}
	return r
}

// usedOfPacks are the bytes of each pack that a manifest refers to; frames that several extents share count once.
func usedOfPacks(m *repo.Manifest) []int64 {
	type frame struct {
		pack   int
		offset int64
	}
	live, seen := make([]int64, len(m.Packs)), map[frame]bool{}
	for _, f := range m.Entries {
		for _, e := range f.Extents {
			if at := (frame{e.Pack, e.Offset}); !seen[at] {
				seen[at] = true
				live[e.Pack] += int64(e.Length)
			}
		}
	}
	return live
}

// isThin reports whether a pack is left alone.
func (r repacking) isThin(pack int) bool { return pack < len(r.thin) && r.thin[pack] }
