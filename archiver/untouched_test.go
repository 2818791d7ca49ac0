package archiver

import (
	"testing"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

func TestNothingIsTakenOverUnreadFromABackupThatDoesNotFit(t *testing.T) {
	settings := map[string]string{"block_size": "8192", "segment_size": "131072"}
	_, r := newStore(t)
	for name, change := range map[string]func(b, before *repo.Backup, p *previous, opt *BackupOptions){
		"another timeline":           func(b, _ *repo.Backup, _ *previous, _ *BackupOptions) { b.Timeline = 2 },
		"a server that was set back": func(b, _ *repo.Backup, _ *previous, _ *BackupOptions) { b.Start = 0x1800 },
		"this one from a standby":    func(b, _ *repo.Backup, _ *previous, _ *BackupOptions) { b.FromStandby = true },
		"that one from a standby":    func(_, before *repo.Backup, _ *previous, _ *BackupOptions) { before.FromStandby = true },
		"wrong pages":                func(_, before *repo.Backup, _ *previous, _ *BackupOptions) { before.ChecksumFailures = 1 },
		"a pack is missing":          func(_, _ *repo.Backup, p *previous, _ *BackupOptions) { p.whole = false },
		"it cannot be opened":        func(_, _ *repo.Backup, p *previous, _ *BackupOptions) { p.manifest = nil },
		"pages of another size":      func(b, _ *repo.Backup, _ *previous, _ *BackupOptions) { b.Settings = map[string]string{} },
		"other checksums": func(b, _ *repo.Backup, _ *previous, _ *BackupOptions) {
			b.Settings = map[string]string{"block_size": "8192", "segment_size": "131072", "data_checksums": "on"}
		},
		"nothing is to be taken over": func(_, _ *repo.Backup, _ *previous, opt *BackupOptions) { opt.Incremental = IncrementalOff },
		"there is none":               func(_, _ *repo.Backup, p *previous, _ *BackupOptions) { p.backup = nil },
	} {
		before := repo.Backup{Timeline: 1, Start: 0x1000, Stop: 0x2000, Settings: settings}
		b := repo.Backup{Timeline: 1, Start: 0x3000, SegmentSize: pg.SegmentSize(16 << 20), Settings: settings}
		m := &repo.Manifest{}
		p := previous{backup: &before, manifest: m, whole: true}
		opt := BackupOptions{Repo: r}
		change(&b, &before, &p, &opt)
		if p.manifest != nil {
			p.manifest.Backup = before
		}
		u, reason, err := newUntouched(t.Context(), opt, b, p, &comparison{})
		if u != nil || err != nil || (reason == "") != (name == "nothing is to be taken over" || name == "there is none") {
			t.Errorf("%s: %v, %q, %v", name, u, reason, err)
		}
	}
}
