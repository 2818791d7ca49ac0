package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"pitr/archiver"
	"pitr/archiver/replication"
	"pitr/config"
	"pitr/internal/monitor"
	"pitr/internal/pg"
	"pitr/internal/store"
	"pitr/internal/store/copies"
)

func archiverCommand(app *app) *cobra.Command {
	return &cobra.Command{
		Use:   "archiver",
		Short: "Stream WAL into the repository and take the scheduled backups",
		Long: "Streams WAL from Postgres into the repository, takes base backups by backup.schedule and expires what backup.retention does not need.\n" +
			"It keeps no state of its own: stop, kill or move it at any moment.\n\n" + exitHelp,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runArchiver(cmd.Context(), app) },
	}
}

// archiverGCPercent keeps the archiver small: its heap is a few large buffers without pointers, which cost next to nothing to collect often.
const archiverGCPercent = 25

func runArchiver(ctx context.Context, app *app) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(archiverGCPercent)
	}
	cfg, log, r, err := app.open()
	if err != nil {
		return err
	}
	rules, err := backupRules(cfg)
	if err != nil {
		return err
	}
	a, err := archiver.New(archiver.Options{
		DSN: cfg.Postgres.DSN.Reveal(), Slot: cfg.Archive.Slot, StreamFrom: streamFrom(cfg), FlushInterval: cfg.Archive.FlushInterval.D(),
		PartSizeMax: int(cfg.Archive.PartSizeMax), BufferMax: int(cfg.Archive.BufferMax), PutsInFlight: cfg.Archive.PutsInFlight, ShutdownGrace: cfg.Archive.ShutdownGrace.D(), Lease: cfg.Archive.Lease.D(),
		BackupSchedule: cfg.Backup.Schedule, BackupJitter: cfg.Backup.Jitter.D(), BackupBufferMax: int64(cfg.Backup.BufferMax), BackupWALWait: cfg.Backup.WALWait.D(), BackupRules: rules,
		Retention: retention(cfg), SweepGrace: cfg.Archive.SweepGrace.D(), Repo: r, Log: log,
		CatalogInterval: cfg.Archive.CatalogInterval.D(), CatalogRelationsMax: cfg.Archive.CatalogRelationsMax,
	})
	if err != nil {
		return &usageError{err}
	}
	var pushes archiver.PushCounts
	proofs := newProofs(cfg, r, log, func() bool { st := a.Stats(); return !st.Lease.Used || st.Lease.Held })
	log.Info("archiver started", "version", version, "cluster", cfg.Cluster, "store", cfg.Archive.Store, "flush_interval", cfg.Archive.FlushInterval.D())
	err = withMonitor(ctx, monitor.Options{
		Address: cfg.HTTP.Archiver, Log: log,
		Metrics: func() []monitor.Metric {
			metrics := append(archiverMetrics(a.Stats(), &app.counts, time.Now()), pushMetrics(&pushes)...)
			metrics = append(metrics, proofMetrics(proofs.Stats())...)
			return append(metrics, copyMetrics(app.copies, time.Now())...)
		},
		Ready: func(context.Context) error { return archiverReady(a.Stats(), app.copies, cfg, time.Now()) },
	}, withProofs(proofs, withCopies(app, cfg, a.Expire, withPushSocket(cfg, archiver.NewPusher(r, log), &pushes, log, a.Run))))
	log.Info("archiver stopped", "stored", a.Stats().Stored)
	return err
}

// streamFrom is the role of the host to stream from. A single host is streamed from whatever it is, and target_session_attrs of the DSN
// holds, as long as no standby is asked for.
func streamFrom(cfg *config.Config) replication.Role {
	if role := replication.Role(cfg.Archive.StreamFrom); role != replication.Primary {
		return role
	}
	return replication.AnyRole
}

// withPushSocket runs a service with the socket for pushes beside it. A socket that cannot be had does not stop the archiver: pushes go
// their own way then.
func withPushSocket(cfg *config.Config, pusher *archiver.Pusher, counts *archiver.PushCounts, log *slog.Logger, run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		if cfg.Archive.PushSocket == "" {
			return run(ctx)
		}
		opt := pushSocketOptions(cfg)
		opt.Counts = counts
		socket, err := archiver.ListenPush(opt, pusher)
		if err != nil {
			log.Error("pushes are not served", "error", err)
			return run(ctx)
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		served := make(chan error, 1)
		go func() {
			err := socket.Run(ctx)
			if err != nil {
				log.Error("pushes are not served any more", "error", err)
			}
			served <- err
		}()
		err = run(ctx)
		cancel()
		return errors.Join(err, <-served)
	}
}

// errEnding is what /readyz says of a service that was told to end, from the moment on.
var errEnding = errors.New("the service is ending")

// withMonitor runs a service with its HTTP server beside it, which tells of it until its very end; the end of one ends the other.
func withMonitor(ctx context.Context, opt monitor.Options, run func(context.Context) error) error {
	if opt.Address == "" {
		return run(ctx)
	}
	ready := opt.Ready
	opt.Ready = func(asked context.Context) error {
		if ctx.Err() != nil {
			return errEnding
		}
		return ready(asked)
	}
	server, err := monitor.Listen(opt)
	if err != nil {
		return err
	}
	opt.Log.Info("serving metrics", "address", server.Addr().String())
	serving, silence := context.WithCancel(context.WithoutCancel(ctx))
	defer silence()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() {
		served <- server.Run(serving)
		cancel()
	}()
	err = run(ctx)
	silence()
	return errors.Join(err, <-served)
}

// readyLag is how many flush intervals the oldest byte may wait before the archiver is not ready.
const readyLag = 10

func archiverReady(st archiver.Stats, stores *copies.Store, cfg *config.Config, now time.Time) error {
	if stores != nil {
		if err := stores.Ready(); err != nil {
			return err
		}
	}
	switch {
	case st.Lease.StandBy:
		return nil
	case !st.Streaming:
		return fmt.Errorf("not streaming: %s", st.LastError)
	case st.StoreDown:
		return errors.New("the store does not take WAL")
	case !st.Oldest.IsZero() && now.Sub(st.Oldest) > readyLag*cfg.Archive.FlushInterval.D():
		return fmt.Errorf("%d bytes have been waiting for the store for %s", st.WaitingBytes, now.Sub(st.Oldest).Round(time.Millisecond))
	}
	return nil
}

func archiverMetrics(st archiver.Stats, c *store.Counts, now time.Time) []monitor.Metric {
	gauge := func(name, help string, value float64) monitor.Metric {
		return monitor.Metric{Name: name, Help: help, Value: value}
	}
	counter := func(name, help string, value uint64) monitor.Metric {
		return monitor.Metric{Name: name, Help: help, Kind: monitor.Counter, Value: float64(value)}
	}
	age := 0.0
	for _, since := range []time.Time{st.Oldest, st.Exposed} {
		if !since.IsZero() {
			age = max(age, now.Sub(since).Seconds())
		}
	}
	lastBackup := 0.0
	if !st.LastBackup.IsZero() {
		lastBackup = float64(st.LastBackup.Unix())
	}
	metrics := []monitor.Metric{
		gauge("pitr_streaming", "1 while WAL is streamed from Postgres.", number(st.Streaming)),
		gauge("pitr_timeline", "Timeline that is streamed.", float64(st.Timeline)),
		gauge("pitr_wal_received_lsn", "Position up to which WAL was received, in bytes since the cluster was made.", lsnValue(st.Received)),
		gauge("pitr_wal_archived_lsn", "Position up to which the store durably holds WAL, in bytes since the cluster was made.", lsnValue(st.Stored)),
		gauge("pitr_wal_unarchived_bytes", "WAL that was received and is not in the store yet.", float64(st.WaitingBytes)),
		gauge("pitr_wal_unarchived_seconds", "Age of the oldest received byte that is not in the store; 0 when all is. Without a stream: for how long nothing is known, since the archiver was started at most. Behind a gap: for how long, until a base backup lies behind it.", age),
		gauge("pitr_store_up", "0 while the store does not take WAL.", number(!st.StoreDown)),
		gauge("pitr_wal_put_seconds", "Duration of the last put of WAL, retries included.", st.LastPut.Seconds()),
		counter("pitr_wal_parts_total", "Parts of open segments that were stored.", st.Parts),
		counter("pitr_wal_stretches_total", "Objects that hold a whole segment, or 64 MiB of a larger one, that were stored.", st.Stretches),
		counter("pitr_wal_segments_total", "Whole segments that were stored.", st.Segments),
		counter("pitr_wal_store_failures_total", "Puts of WAL that failed through all retries.", st.StoreFailures),
		counter("pitr_wal_interruptions_total", "Times that streaming was interrupted.", st.Interruptions),
		counter("pitr_wal_corrupt_total", "Times that the server sent WAL that failed a check.", st.Corrupt),
		counter("pitr_wal_gaps_total", "Times that WAL was lost because the server had removed it.", st.Gaps),
		gauge("pitr_lease_held", "1 while this archiver holds the lease; 0 also without archive.lease.", number(st.Lease.Held)),
		counter("pitr_lease_terms_total", "Times that this archiver has taken the lease.", st.Lease.Terms),
		gauge("pitr_commits_wait", "1 while commits wait until the store has their WAL (synchronous_standby_names).", number(st.CommitsWait)),
		gauge("pitr_commits_stuck", "1 while commits with synchronous_commit = remote_apply wait for the archive, which applies nothing.", number(st.CommitsStuck)),
		gauge("pitr_slot_retained_bytes", "WAL that the server keeps because of the slot.", float64(st.Slot.Retained)),
		gauge("pitr_slot_safe_bytes", "WAL that the server may still write before it gives up what the slot keeps; -1: no limit (max_slot_wal_keep_size).", float64(st.Slot.Safe)),
		gauge("pitr_slot_seconds_left", "The same in seconds at the present rate; -1: no limit, or nothing is written.", slotLeft(st.Slot)),
		gauge("pitr_slot_risk", "How near the loss of WAL is: 0 none, 1 warning, 2 critical, 3 lost.", float64(st.Slot.Risk)),
		counter("pitr_archive_buffer_max_hits_total", "Times that archive.buffer_max made reading from Postgres wait.", st.BufferFull),
		counter("pitr_catalogs_total", "Times that changed names of relations were stored.", st.Catalogs),
		counter("pitr_catalog_failures_total", "Times that not all names of relations could be stored; pitr log may lack some.", st.CatalogFailures),
		gauge("pitr_backups", "Base backups in the repository.", float64(st.Backups)),
		gauge("pitr_last_backup_timestamp_seconds", "When the newest base backup ended; 0 when there is none.", lastBackup),
		gauge("pitr_backup_checksum_failures", "Pages of the newest base backup whose checksum is wrong.", float64(st.ChecksumFailures)),
		counter("pitr_backups_total", "Base backups that this process has taken.", st.BackupsDone),
		counter("pitr_swept_objects_total", "Objects that others had replaced and a sweep has removed.", st.Swept),
		counter("pitr_expiries_denied_total", "Expiries that were skipped because the credentials may not delete.", st.ExpiriesDenied),
		counter("pitr_backup_failures_total", "Base backups of this process that failed.", st.BackupsFailed),
	}
	for operation, n := range map[string]uint64{"put": c.Puts.Load(), "get": c.Gets.Load(), "list": c.Lists.Load(), "delete": c.Deletes.Load()} {
		m := counter("pitr_store_requests_total", "Requests to the store, each attempt counted.", n)
		m.Labels = map[string]string{"operation": operation}
		metrics = append(metrics, m)
	}
	return append(metrics,
		counter("pitr_store_request_failures_total", "Requests to the store that failed, each attempt counted.", c.Failures.Load()),
		counter("pitr_store_deletes_denied_total", "Deletes that the credentials do not allow; expiry with others has to do them.", c.DeletesDenied.Load()),
		counter("pitr_store_deletes_retained_total", "Deletes of objects that the store retains.", c.DeletesLocked.Load()),
		counter("pitr_store_put_bytes_total", "Bytes that were put.", c.BytesPut.Load()))
}

func pushMetrics(c *archiver.PushCounts) []monitor.Metric {
	counter := func(name, help string, n *atomic.Uint64) monitor.Metric {
		return monitor.Metric{Name: name, Help: help, Kind: monitor.Counter, Value: float64(n.Load())}
	}
	return []monitor.Metric{
		counter("pitr_pushes_total", "Files that the push socket has taken; the store has them.", &c.Done),
		counter("pitr_push_bytes_total", "Bytes of these files.", &c.Bytes),
		counter("pitr_push_failures_total", "Pushes over the socket that failed; Postgres repeats them.", &c.Failed),
		counter("pitr_archive_pushes_max_hits_total", "Pushes that had to wait because of archive.pushes_max.", &c.Waited),
		counter("pitr_archive_push_stall_hits_total", "Times that archive.push_stall has cut a push off.", &c.Stalled),
	}
}

func slotLeft(s archiver.Slot) float64 {
	left, ok := s.Left()
	if !ok {
		return -1
	}
	return left.Seconds()
}

func lsnValue(lsn pg.LSN) float64 { return float64(lsn) }

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
