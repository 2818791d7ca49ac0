package archiver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"pitr/archiver/replication"
	"pitr/internal/pg"
	"pitr/internal/repo"
)

// BackupOptions is what TakeBackup needs.
type BackupOptions struct {
	DSN       string
	Repo      *repo.Repo
	BufferMax int64         // bytes held in memory at most, roughly; backup.buffer_max
	WALWait   time.Duration // how long to wait for the backup's WAL in the repository; backup.wal_wait
	Log       *slog.Logger
	Progress  func(BackupProgress) // may be nil; called from one goroutine

	Full bool // refer to no other backup
	BackupRules

	expected   int64 // bytes of the databases, if they are known
	auditOneIn int   // see the constant; zero: that

	only replication.Host // that the backup is taken from; zero: where DSN leads to
}

// BackupRules are settings of every backup, those of the section backup with the same names.
type BackupRules struct {
	Incremental      IncrementalMode
	ChecksumFailures ChecksumPolicy
	RepackBelow      int              // percent of a pack; zero: never
	RateRead         int64            // bytes per second from the server; zero: no limit
	RateUpload       int64            // bytes per second to the store; zero: no limit
	From             replication.Role // the zero role: the primary of several hosts, a single one whatever it is
	Source           Source
	Directory        string // the server's data directory, for SourceFiles
}

// IncrementalMode says whether the server is asked what has changed.
type IncrementalMode string

// The zero mode is to ask it.
const (
	IncrementalAuto IncrementalMode = "auto"
	IncrementalOff  IncrementalMode = "off"
)

// ChecksumPolicy says what becomes of a backup with pages whose checksum is wrong.
type ChecksumPolicy string

// The zero policy is to warn.
const (
	ChecksumsWarn ChecksumPolicy = "warn" // it exists, and says how many pages they are
	ChecksumsStop ChecksumPolicy = "stop" // it does not exist
)

// BackupProgress is how far a backup has come.
type BackupProgress struct {
	Files       int
	Bytes       int64 // hashed
	StoredBytes int64 // uploaded
	Extents     int
	Reused      int   // of the extents: not uploaded, since the repository has them
	Expected    int64 // of Bytes, in the end; zero: not known
}

// ErrChecksum says that pages of the server have wrong checksums, and that the backup was not made for that.
var ErrChecksum = errors.New("pages of the server have wrong checksums")

// ErrPackGone says that a pack was removed while a backup was being taken that refers to it.
var ErrPackGone = errors.New("a pack that it refers to was removed meanwhile")

// ErrNoWAL says that a backup's WAL did not arrive in the repository.
var ErrNoWAL = errors.New("its WAL did not arrive in the repository")

// BackupIDLayout is the form of a backup's id: when it began, in UTC.
const BackupIDLayout = "20060102T150405Z"

// TakeBackup streams a base backup into the repository. The backup exists when it returns nil, and not before (law 4). Its WAL must
// come from an archiver that is running, this one or another.
func TakeBackup(ctx context.Context, opt BackupOptions) (repo.Backup, error) {
	opt, err := opt.choose(ctx)
	if err != nil {
		return repo.Backup{}, fmt.Errorf("base backup: %w", err)
	}
	b, err := takeBackup(ctx, opt)
	if err != nil && ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		err = fmt.Errorf("%w: %w", ctx.Err(), err) // what failed, failed because of it
	}
	if err != nil {
		return repo.Backup{}, fmt.Errorf("base backup: %w", err)
	}
	return b, nil
}

func takeBackup(ctx context.Context, opt BackupOptions) (repo.Backup, error) {
	b, err := describeServer(ctx, opt)
	if err != nil {
		return b, err
	}
	// Before files are read, since to ask sets hint bits in catalogs.
	origin, err := readOrigin(ctx, opt, b.Major)
	if err != nil && ctx.Err() == nil { // a backup that says less is better than none
		opt.Log.Warn("collations, extensions and configuration of the server were not recorded with the backup", "error", err)
	}
	opt.expected = origin.Bytes()
	stored, err := opt.Repo.StoredPacks(ctx)
	if err != nil {
		return b, err
	}
	manifests, err := opt.Repo.BackupIDs(ctx)
	if err != nil {
		return b, err
	}
	running, err := opt.Repo.RunningBackups(ctx)
	if err != nil {
		return b, err
	}
	b.ID = freeID(b.StartTime, func(id string) bool {
		_, hasPacks := stored[id]
		_, runs := running[id]
		return hasPacks || manifests[id] || runs
	})
	before, err := findPrevious(ctx, opt, b, stored)
	if errors.Is(err, repo.ErrBegun) && ctx.Err() == nil {
		return takeBackup(ctx, opt) // under another id, now that the mark is seen
	}
	defer endRunning(ctx, opt, b.ID)
	if err != nil {
		return b, err
	}
	since, reason := newComparison(before, b)
	if reason != "" {
		opt.Log.Info("what has changed is not compared with the WAL", "because", reason)
	}
	spaces, err := serverTablespaces(ctx, opt)
	if err != nil {
		return b, err
	}
	files, err := copyCluster(ctx, opt, &b, before, since)
	if errors.Is(err, replication.ErrNotIncremental) && opt.Incremental != IncrementalOff && ctx.Err() == nil {
		opt.Log.Warn("the server is asked for everything", "because", err)
		opt.Incremental = IncrementalOff
		return takeBackup(ctx, opt) // under another id, if packs were put under this one
	}
	if err != nil {
		return b, err
	}
	if b.StopTime, err = serverClock(ctx, opt); err != nil {
		return b, err
	}
	if err := checkTablespaces(ctx, opt, spaces, files); err != nil {
		return b, err
	}
	if err := waitForWAL(ctx, opt, b, b.Stop); err != nil {
		return b, err
	}
	if err := since.check(ctx, opt, before.manifest, &b); err != nil {
		return b, err
	}
	return b, publish(ctx, opt, &b, files, origin)
}

// endRunningWithin bounds how long the end of a backup waits for the store to forget that it was running.
const endRunningWithin = 10 * time.Second

// endRunning says that a backup has ended, whatever has become of it. When that fails, expiry waits for what it might refer to.
func endRunning(ctx context.Context, opt BackupOptions, id string) {
	if opt.Full {
		return // it refers to nothing, and has not said anything
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endRunningWithin)
	defer cancel()
	if err := opt.Repo.EndBackup(ctx, id); err != nil && !errors.Is(err, repo.ErrDenied) {
		opt.Log.Warn("a backup that has ended is still marked as running", "backup", id, "error", err)
	}
}

// copyCluster stores the files of the cluster, whoever reads them, but not the manifest.
func copyCluster(ctx context.Context, opt BackupOptions, b *repo.Backup, before previous, since *comparison) ([]*repo.File, error) {
	if opt.Source == SourceFiles {
		return readFiles(ctx, opt, b, before, since)
	}
	increments, reason, err := newIncrements(ctx, opt, *b, before)
	if err != nil {
		return nil, err
	}
	if reason != "" {
		opt.Log.Info("the server is not asked what has changed, and sends everything", "because", reason)
	}
	files, err := stream(ctx, opt, b, before, since, increments)
	return files, errors.Join(err, increments.close(ctx))
}

// stream has the server send a base backup, and stores it but for the manifest.
func stream(ctx context.Context, opt BackupOptions, b *repo.Backup, before previous, since *comparison, increments *increments) ([]*repo.File, error) {
	conn, err := opt.connect(ctx, "", true)
	if err != nil {
		return nil, err
	}
	ask := replication.BaseBackupOptions{Label: "pitr " + b.ID}
	if increments != nil {
		ask.Previous = increments.manifest
	}
	base, err := conn.StartBaseBackup(ctx, ask)
	if err != nil {
		return nil, err
	}
	b.Start, b.Timeline = base.Start, base.Timeline
	opt.Log.Info("base backup started", "backup", b.ID, "start", b.Start, "timeline", b.Timeline, "incremental", increments != nil, "standby", b.FromStandby)
	if err := archivedFrom(ctx, opt, b); err != nil {
		return nil, errors.Join(err, base.Close())
	}
	archives := &archiveFiles{opt: opt, base: base, increments: increments, rate: &rate{limit: opt.RateRead}}
	files, err := copyFiles(ctx, opt, archives, b, before, since)
	if err = errors.Join(err, base.Close()); err != nil {
		return nil, err
	}
	b.Stop = base.Stop
	return files, nil
}

// publish writes the manifest, once what it refers to is known to be there.
func publish(ctx context.Context, opt BackupOptions, b *repo.Backup, files []*repo.File, origin *repo.Origin) error {
	manifest := opt.Repo.NewManifest()
	manifest.Origin = origin
	for _, f := range files {
		if err := manifest.Add(*f); err != nil {
			return err
		}
	}
	b.Files = len(files)
	missing, err := opt.Repo.MissingPacks(ctx, b.Packs)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: %s, and %d more", ErrPackGone, missing[0].Key, len(missing)-1)
	}
	if err := manifest.Publish(ctx, *b); err != nil {
		return err
	}
	opt.Log.Info("base backup finished", "backup", b.ID, "files", b.Files, "bytes", b.Bytes, "uploaded_bytes", b.UploadedBytes(), "referred_bytes", b.ReferredBytes,
		"packs", len(b.Packs), "previous", b.Previous, "checksum_failures", b.ChecksumFailures, "start", b.Start, "stop", b.Stop,
		"took", b.StopTime.Sub(b.StartTime).Round(time.Millisecond))
	return nil
}

// clusterFiles is where the files of a cluster come from.
type clusterFiles interface {
	// read hands all of them to a pipeline, and says in the backup what goes with them.
	read(p *pipeline, b *repo.Backup) error
	// again reads a page once more; less than a page: it is gone.
	again(ctx context.Context, f pageFailure) ([]byte, error)
}

// copyFiles stores what a source has, and returns the files of the manifest.
func copyFiles(ctx context.Context, opt BackupOptions, source clusterFiles, b *repo.Backup, before previous, since *comparison) ([]*repo.File, error) {
	pages := &pageChecks{again: source.again}
	if checksPages(b.Settings) {
		pages.start = b.Start
	}
	p := newPipeline(ctx, opt, b.ID, before.known, pages, since)
	p.progress.Expected = opt.expected
	if before.backup != nil {
		b.Previous, p.progress.Expected = before.backup.ID, before.backup.Bytes
	}
	err := source.read(p, b)
	if err := p.finish(err); err != nil {
		return nil, err
	}
	p.account(b)
	if b.ChecksumFailures, err = pages.confirm(ctx, opt); err != nil {
		return nil, err
	}
	if b.ChecksumFailures > 0 && opt.ChecksumFailures == ChecksumsStop {
		return nil, fmt.Errorf("%w: %d of them; backup.checksum_failures says to stop", ErrChecksum, b.ChecksumFailures)
	}
	return p.files, nil
}

// How often the repository is asked whether a backup's WAL has arrived: soon at first, and then every walPollMax.
const (
	walPollMin = 50 * time.Millisecond
	walPollMax = time.Second
)

// waitForWAL waits until the repository holds the WAL of a backup up to a position. Without that up to its stop, where the copy is consistent, it could not be restored.
func waitForWAL(ctx context.Context, opt BackupOptions, b repo.Backup, upTo pg.LSN) error {
	limit, cancel := context.WithTimeout(ctx, opt.WALWait)
	defer cancel()
	frontier := pg.LSN(0)
	for pause := walPollMin; ; pause = min(pause*3/2, walPollMax) {
		p, err := opt.Repo.Path(limit, b.Timeline, b.SegmentSize, b.Start)
		switch {
		case errors.Is(err, repo.ErrNotExist): // the history file has not arrived yet
		case err != nil && limit.Err() == nil:
			return err
		case err == nil:
			if frontier = p.Frontier(b.SegmentSize.Start(b.Start)); frontier >= upTo {
				return nil
			}
		}
		if !sleep(limit, pause) {
			return fmt.Errorf("%w within %s: it is there up to %s, and needed up to %s; is `pitr archiver` running against the same store?", ErrNoWAL, opt.WALWait, frontier, upTo)
		}
	}
}
