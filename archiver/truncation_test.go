package archiver

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"testing"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// TestWhatWasCutOffDoesNotComeBack puts an increment together with a file that was longer before: what lies behind the truncation length and is not
// sent is zeros, as in pg_combinebackup.
func TestWhatWasCutOffDoesNotComeBack(t *testing.T) {
	_, r := newStore(t)
	opt := BackupOptions{Repo: r, BufferMax: 16 << 20, Log: slog.New(slog.DiscardHandler)}
	const name, before = "base/5/16384", 40 // more than an extent
	old := make([]byte, before*pg.PageSize)
	for i := range before {
		copy(old[i*pg.PageSize:], bytes.Repeat([]byte{byte(i + 1)}, pg.PageSize))
	}
	manifest := &repo.Manifest{}
	inPipeline := func(id string, known *known, work func(p *pipeline) error) []*repo.File {
		t.Helper()
		p := newPipeline(t.Context(), opt, id, known, &pageChecks{}, &comparison{})
		if err := p.finish(work(p)); err != nil {
			t.Fatal(err)
		}
		manifest.Packs = p.packs
		return p.files
	}
	files := inPipeline("20260101T000000Z", newKnown(), func(p *pipeline) error {
		return p.add(&repo.File{Path: name, Size: int64(len(old))}, bytes.NewReader(old))
	})
	packs := manifest.Packs
	for truncation, block := range map[uint32]uint32{2: 5, 3: 33, 40: 1, 0: 0} {
		head := increment{truncation: truncation, blocks: []uint32{block}}
		page := bytes.Repeat([]byte{0xff}, pg.PageSize)
		want := make([]byte, int(head.length())*pg.PageSize)
		copy(want, old[:truncation*pg.PageSize])
		copy(want[block*pg.PageSize:], page)
		x := &increments{files: map[string]*repo.File{name: files[0]}, filler: &filler{repo: r, manifest: &repo.Manifest{Backup: repo.Backup{Packs: packs}}}}
		known := newKnown()
		for _, pack := range packs {
			known.addPack(pack)
		}
		for _, e := range files[0].Extents {
			known.add(r.TagOf(e.Hash), int32(e.Pack), e.Offset, e.Length)
		}
		id := "2026010" + string(rune('2'+truncation%7)) + "T000000Z"
		made := inPipeline(id, known, func(p *pipeline) error {
			x.filler.start(p)
			err := x.addBlocks(p, &repo.File{Path: name}, head, bytes.NewReader(page))
			x.filler.finish()
			return err
		})
		referred, _ := known.resolve(made, len(manifest.Packs))
		all := append(manifest.Packs, referred...)
		var got []byte
		for i, e := range made[0].Extents {
			got = append(got, truncatedExtent(t, r, all[e.Pack], e, int(min(repo.ExtentSize, made[0].Size-int64(i)*repo.ExtentSize)))...)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("truncated to %d blocks, with block %d: %s, want %s", truncation, block, firstBytes(got), firstBytes(want))
		}
	}
}

// firstBytes is the first byte of each page.
func firstBytes(content []byte) string {
	var pages []byte
	for at := 0; at < len(content); at += pg.PageSize {
		pages = append(pages, content[at])
	}
	return fmt.Sprint(pages)
}

func truncatedExtent(t *testing.T, r *repo.Repo, pack repo.Pack, e repo.Extent, length int) []byte {
	t.Helper()
	frame, err := (&filler{repo: r}).fetch(context.Background(), pack, e.Offset, int64(e.Length))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := r.OpenExtent(context.Background(), pack, e, frame, length)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}
