package archiver

import (
	"bytes"

	"pitr/internal/repo"
)

// known is what packs of other backups hold: extents with the same content are referred to and not stored again.
type known struct {
	packs  []repo.Pack
	places []place
	at     map[repo.Tag]int32 // an index into places
}

// place is where a frame lies.
type place struct {
	pack   int32
	length int32
	offset int64
}

func newKnown() *known { return &known{at: map[repo.Tag]int32{}} }

// addPack returns the number by which frames of a pack are added.
func (k *known) addPack(pack repo.Pack) int32 {
	k.packs = append(k.packs, pack)
	return int32(len(k.packs) - 1)
}

// add notes a frame; what was noted before stays.
func (k *known) add(tag repo.Tag, pack int32, offset int64, length int) {
	if _, there := k.at[tag]; there {
		return
	}
	k.at[tag] = int32(len(k.places))
	k.places = append(k.places, place{pack, int32(length), offset})
}

// find returns what stands in for the number of a pack while a backup runs: resolve makes it one. Such stand-ins are negative.
func (k *known) find(tag repo.Tag) (standIn int, found bool) {
	i, found := k.at[tag]
	return ^int(i), found
}

// resolve replaces stand-ins in files by references to packs, whose numbers follow those of the backup's own ones, and returns those packs that
// are referred to, and how many bytes of them.
func (k *known) resolve(files []*repo.File, own int) (referred []repo.Pack, size int64) {
	used := make([]bool, len(k.places))
	numbers := map[int32]int{}
	for _, f := range files {
		for i := range f.Extents {
			e := &f.Extents[i]
			if e.Pack >= 0 {
				continue
			}
			at := ^e.Pack
			p := k.places[at]
			number, listed := numbers[p.pack]
			if !listed {
				number = own + len(referred)
				numbers[p.pack] = number
				referred = append(referred, k.packs[p.pack])
			}
			if !used[at] {
				used[at] = true
				size += int64(p.length)
			}
			e.Pack, e.Offset, e.Length = number, p.offset, int(p.length)
		}
	}
	return referred, size
}

// Most databases have extents of zeros: files are made larger in advance, and others begin so.
var (
	zeroExtent           [repo.ExtentSize]byte
	zeroHash, zeroDigest = repo.DigestOf(zeroExtent[:]), repo.CRCOf(zeroExtent[:])
)

// digests returns what a manifest keeps of an extent's bytes.
func digests(plain []byte) (repo.Digest, repo.CRC) {
	if len(plain) == len(zeroExtent) && bytes.Equal(plain, zeroExtent[:]) {
		return zeroHash, zeroDigest
	}
	return repo.DigestOf(plain), repo.CRCOf(plain)
}
