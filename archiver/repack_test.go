package archiver

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// extentHistory is a cluster of a few relation files that is backed up again and again, without a server: a file is a number for each extent, from which its
// content follows.
type extentHistory struct {
	t     *rapid.T
	repo  *repo.Repo
	now   time.Time
	files map[string][]uint64
	last  *repo.Manifest
	below int
}

// extentOf has little that cannot be compressed, so that a small pack holds many. Each page of it is all zeros but for that.
func extentOf(seed uint64) []byte {
	content := make([]byte, repo.ExtentSize)
	if seed == 0 {
		return content
	}
	rng := rand.New(rand.NewPCG(seed, seed))
	for i := range 2000 + int(seed%7)*2000 {
		content[100+i] = byte(rng.Uint32())
	}
	return content
}

// backup takes one, of all files as a server sends them, or of changed ones as an increment: then nothing of the others comes.
func (h *extentHistory) backup(incremental bool) *repo.Manifest {
	h.now = h.now.Add(time.Hour)
	opt := BackupOptions{Repo: h.repo, BufferMax: 1 << 20, Log: slog.New(slog.DiscardHandler), BackupRules: BackupRules{RepackBelow: h.below}}
	b := repo.Backup{ID: h.now.Format(BackupIDLayout), SystemID: 77, SegmentSize: mib, ExtentSize: repo.ExtentSize, Start: 0x100028, Stop: 0x100100, StartTime: h.now, StopTime: h.now.Add(time.Minute)}
	stored, err := h.repo.StoredPacks(h.t.Context())
	h.try(err)
	before, err := findPrevious(h.t.Context(), opt, b, stored)
	h.try(err)
	p := newPipeline(h.t.Context(), opt, b.ID, before.known, &pageChecks{}, &comparison{})
	x := &increments{files: map[string]*repo.File{}, sent: map[string]sentFile{}, repack: before.repack}
	if incremental = incremental && before.manifest != nil; incremental {
		for i := range before.manifest.Entries {
			x.files[before.manifest.Entries[i].Path] = &before.manifest.Entries[i]
		}
		x.filler = &filler{repo: h.repo, manifest: before.manifest}
		x.filler.start(p)
	}
	err = h.send(p, x, incremental)
	if incremental {
		x.filler.finish()
	}
	h.try(p.finish(err))
	p.account(&b)
	m := h.repo.NewManifest()
	for _, f := range p.files {
		h.try(m.Add(*f))
	}
	h.try(m.Publish(h.t.Context(), b))
	h.try(h.repo.EndBackup(h.t.Context(), b.ID))
	published, err := h.repo.ReadManifest(h.t.Context(), b.ID)
	h.try(err)
	return published
}

func (h *extentHistory) try(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *extentHistory) send(p *pipeline, x *increments, incremental bool) error {
	for _, name := range slices.Sorted(maps.Keys(h.files)) {
		extents := h.files[name]
		f := &repo.File{Path: name, Size: int64(len(extents)) * repo.ExtentSize}
		old := x.files[name]
		if !incremental || old == nil {
			var content bytes.Buffer
			for _, seed := range extents {
				content.Write(extentOf(seed))
			}
			if err := p.add(f, &content); err != nil {
				return err
			}
			continue
		}
		head, content := increment{truncation: uint32(len(extents)) * blocksPerExtent}, bytes.Buffer{}
		for i, seed := range extents {
			plain := extentOf(seed)
			if i < len(old.Extents) && old.Extents[i].Hash == repo.DigestOf(plain) {
				continue
			}
			for n := range uint32(blocksPerExtent) {
				head.blocks = append(head.blocks, uint32(i)*blocksPerExtent+n)
			}
			content.Write(plain)
		}
		if err := x.addBlocks(p, f, head, &content); err != nil {
			return err
		}
	}
	return nil
}

// readsBack compares every extent with what it was.
func (h *extentHistory) readsBack(m *repo.Manifest) {
	for _, f := range m.Entries {
		extents := h.files[f.Path]
		if len(f.Extents) != len(extents) {
			h.t.Fatalf("%s has %d extents, want %d", f.Path, len(f.Extents), len(extents))
		}
		for i, e := range f.Extents {
			body, err := h.repo.PackReader(h.t.Context(), m.Packs[e.Pack], e.Offset, int64(e.Length))
			h.try(err)
			frame, err := io.ReadAll(body)
			h.try(err)
			h.try(body.Close())
			plain, err := h.repo.OpenExtent(h.t.Context(), m.Packs[e.Pack], e, frame, repo.ExtentSize)
			h.try(err)
			if !bytes.Equal(plain, extentOf(extents[i])) {
				h.t.Fatalf("extent %d of %s is not what it was", i, f.Path)
			}
		}
	}
}

// boundsRewriting holds what a backup has stored again against what it may.
func (h *extentHistory) boundsRewriting(m *repo.Manifest) {
	if h.last == nil {
		return
	}
	before := map[repo.Digest]bool{}
	total, largest := int64(0), int64(0)
	for i, used := range usedOfPacks(h.last) {
		total, largest = total+used, max(largest, h.last.Packs[i].Size)
	}
	for _, f := range h.last.Entries {
		for _, e := range f.Extents {
			before[e.Hash] = true
		}
	}
	again := map[repo.Digest]int64{}
	for _, f := range m.Entries {
		for _, e := range f.Extents {
			if strings.Contains(m.Packs[e.Pack].Key, m.ID) && before[e.Hash] {
				again[e.Hash] = int64(e.Length)
			}
		}
	}
	rewritten := int64(0)
	for _, length := range again {
		rewritten += length
	}
	if most := max(total/repackShare, largest*int64(h.below)/100); rewritten > most {
		h.t.Fatalf("%d bytes were stored again, at most %d should be", rewritten, most)
	}
}

// thinPacks counts the packs of a manifest of which too little is used.
func (h *extentHistory) thinPacks(m *repo.Manifest) (n int) {
	for i, used := range usedOfPacks(m) {
		if used*100 < int64(h.below)*(m.Packs[i].Size-packHeaderMax) {
			n++
		}
	}
	return n
}

func (h *extentHistory) change() {
	names := []string{"base/1/16384", "base/1/16385", "global/16386"}
	for range rapid.IntRange(1, 4).Draw(h.t, "changes") {
		name := rapid.SampledFrom(names).Draw(h.t, "file")
		extents := h.files[name]
		switch rapid.IntRange(0, 4).Draw(h.t, "what") {
		case 0: // it is dropped
			delete(h.files, name)
		case 1: // it grows
			for range rapid.IntRange(1, 20).Draw(h.t, "more") {
				extents = append(extents, rapid.Uint64Range(0, 1<<20).Draw(h.t, "extent"))
			}
			h.files[name] = extents
		case 2: // it is cut off
			h.files[name] = extents[:len(extents)/2]
		default: // most of it, or some of it, is written
			every := rapid.IntRange(2, 12).Draw(h.t, "every")
			most := rapid.Bool().Draw(h.t, "most")
			for i := range extents {
				if (i%every != 0) == most {
					extents[i] = rapid.Uint64Range(0, 1<<20).Draw(h.t, "extent")
				}
			}
		}
	}
}

// TestPacksThatAreHardlyUsedAreLeftAndGo has random histories of changes, backups and expiries, and some quiet backups at their end.
func TestPacksThatAreHardlyUsedAreLeftAndGo(t *testing.T) {
	files := &shelf{objects: map[string][]byte{}, left: -1}
	compressor, err := repo.NewCompressor("zstd:1")
	if err != nil {
		t.Fatal(err)
	}
	clusters := 0
	rapid.Check(t, func(rt *rapid.T) {
		clusters++
		h := &extentHistory{t: rt, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), files: map[string][]uint64{}, below: rapid.SampledFrom([]int{10, 25, 60}).Draw(rt, "below")}
		h.repo = repo.New(files, fmt.Sprintf("c%d", clusters), compressor)
		h.try(h.repo.Bind(rt.Context(), repo.Cluster{SystemID: 77, SegmentSize: pg.SegmentSize(mib)}))
		step := func() {
			m := h.backup(rapid.Bool().Draw(rt, "incremental"))
			h.readsBack(m)
			h.boundsRewriting(m)
			h.last = m
			if rapid.IntRange(0, 2).Draw(rt, "expire") > 0 {
				h.expire()
			}
		}
		for range rapid.IntRange(2, 4).Draw(rt, "backups") {
			h.change()
			step()
		}
		for quiet := 0; h.thinPacks(h.last) > 0; quiet++ {
			if quiet > 100 {
				rt.Fatalf("after %d backups without a change %d of %d packs are hardly used", quiet, h.thinPacks(h.last), len(h.last.Packs))
			}
			step()
		}
		h.now = h.now.Add(orphanAge) // packs of backups that went before wait for so long
		h.expire()
		h.readsBack(h.last)
		stored, err := h.repo.StoredPacks(rt.Context())
		h.try(err)
		n := 0
		for _, packs := range stored {
			n += len(packs)
		}
		if n != len(h.last.Packs) {
			rt.Fatalf("%d packs are stored, and the only backup refers to %d", n, len(h.last.Packs))
		}
	})
}

// expire leaves the last backup alone.
func (h *extentHistory) expire() {
	h.now = h.now.Add(time.Hour)
	backups, err := h.repo.Backups(h.t.Context())
	h.try(err)
	plan := PlanExpiry(Catalogue{Backups: backups}, h.now, Retention{Minimum: 1})
	_, err = plan.CarryOut(h.t.Context(), h.repo, h.now)
	h.try(err)
}

// TestPacksOfWhichAServerUsesLittleAreLeft changes nine tenths of a table, so that a tenth of its first packs is used, and has the server send everything or,
// where it can, increments.
func TestPacksOfWhichAServerUsesLittleAreLeft(t *testing.T) {
	b := newSummarizing(t)
	b.query("create table t as select i, (select string_agg(md5(i::text || j), '') from generate_series(1, 20) j) as x from generate_series(1, 40000) i")
	b.query("vacuum freeze t") // no hint bits are left to be set
	b.query("checkpoint")
	a := b.run(b.options())
	a.archived(b.written())
	opt := b.backupOptions()
	opt.BufferMax = 16 << 20 // packs of 2 MiB, with some twenty extents
	opt.RepackBelow = 25
	first := b.backupWith(opt)
	b.query("update t set x = reverse(x) where ((ctid::text::point)[0]::int / 32) % 10 <> 0")
	b.query("checkpoint")
	of := func(backup repo.Backup, id string) (n int) {
		for _, pack := range backup.Packs {
			if strings.Contains(pack.Key, id) {
				n++
			}
		}
		return n
	}
	last := b.backupWith(opt)
	begun := of(last, first.ID)
	for range 30 {
		last = b.backupWith(opt)
		m, _ := b.countedAsSent(b.repo, last.ID)
		thin := 0
		for i, used := range usedOfPacks(m) {
			if used*100 < 25*(m.Packs[i].Size-packHeaderMax) {
				thin++
			}
		}
		if thin == 0 {
			break
		}
	}
	left := of(last, first.ID)
	t.Logf("of %d packs of the first backup the second referred to %d, the last to %d", len(first.Packs), begun, left)
	if begun-left < 3 || !strings.Contains(b.log.String(), "hardly used") {
		t.Errorf("of %d packs of the first backup the second referred to %d, the last to %d", len(first.Packs), begun, left)
	}
	if n := strings.Count(b.log.String(), "incremental=true"); b.major() >= 17 && n < 2 || strings.Contains(b.log.String(), "the server is asked for everything") {
		t.Errorf("%d backups were increments", n)
	}
}
