package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/url"
	"time"

	"pitr/archiver"
	"pitr/config"
	"pitr/internal/repo"
	"pitr/internal/store"
	"pitr/internal/store/copies"
	"pitr/internal/store/file"
	"pitr/internal/store/s3"
)

// firstPause is before the first retry of a request to the store.
const firstPause = 100 * time.Millisecond

// repository opens the configured stores with retries around each.
func (a *app) repository(cfg *config.Config, log *slog.Logger) (*repo.Repo, error) {
	if len(cfg.Archive.Copies) == 0 {
		inner, err := openStore(cfg, cfg.Archive.Store)
		if err != nil {
			return nil, err
		}
		return openRepository(cfg, a.retrying(inner, cfg, log, cfg.Archive.StoreRetries))
	}
	copied := repo.NewCopied(cfg.Cluster)
	members, err := a.members(cfg, log)
	if err != nil {
		return nil, err
	}
	a.copies = copies.New(copies.Options{Members: members, Quorum: cfg.Archive.Quorum, BufferMax: int64(cfg.Archive.CopiesBufferMax),
		Check: cfg.Archive.CopiesCheck.D(), Format: copied, Log: log})
	r, err := openRepository(cfg, a.copies)
	if err == nil {
		copied.Serve(r)
		copied.Retain(func(ctx context.Context, backups []repo.Backup, now time.Time) ([]repo.Backup, error) {
			catalogue, err := archiver.LoadCatalogue(ctx, r)
			catalogue.Backups = backups
			return archiver.PlanExpiry(catalogue, now, retention(cfg)).Stay(), err
		})
	}
	return r, err
}

// members opens every store. One that cannot be opened is away like one that does not answer, as long as another can.
func (a *app) members(cfg *config.Config, log *slog.Logger) ([]copies.Member, error) {
	var members []copies.Member
	var errs []error
	for _, text := range cfg.Archive.Stores() {
		inner, err := openStore(cfg, text)
		var usage *usageError
		if errors.As(err, &usage) {
			return nil, err
		}
		if err != nil {
			errs = append(errs, err)
			inner = unopened{err}
		}
		members = append(members, copies.Member{Name: config.StoreName(text), Store: a.retrying(inner, cfg, log, cfg.Archive.StoreRetries),
			Quick: a.retrying(inner, cfg, log, 0)})
	}
	if len(errs) == len(members) {
		return nil, errors.Join(errs...)
	}
	return members, nil
}

// retrying counts the requests of a store and repeats those that fail.
func (a *app) retrying(inner store.Store, cfg *config.Config, log *slog.Logger, retries int) store.Store {
	deletes := store.Denied(store.Counted(inner, &a.counts), &a.counts, func(err error) {
		log.Warn("these credentials may not delete: what is not needed any more stays until `pitr expire` runs where it may", "error", err)
	})
	return store.Retry(deletes, store.RetryOptions{
		Retries: retries, Timeout: cfg.Archive.StoreTimeout.D(), Pause: firstPause,
		Notice: func(operation, key string, attempt int, err error) {
			log.Warn("the store did not answer as it should; trying again", "operation", operation, "key", key, "attempt", attempt, "error", err)
		}})
}

// openRepository is the repository in a store that is open.
func openRepository(cfg *config.Config, s store.Store) (*repo.Repo, error) {
	compressor, err := repo.NewCompressor(cfg.Archive.Compression)
	if err != nil {
		return nil, err
	}
	r, err := repo.New(s, cfg.Cluster, compressor).WithEncryption(repo.Encryption{Recipients: cfg.Archive.Encryption.Recipients,
		IdentityFile: cfg.Archive.Encryption.IdentityFile, FingerprintKey: cfg.Archive.Encryption.FingerprintKey.Reveal()})
	if err != nil {
		return nil, &usageError{fmt.Errorf("archive.encryption: %w", err)}
	}
	return r, nil
}

// settleCopies waits, at most for so long, until the copies have what was put. What they lack then the archiver fills.
func (a *app) settleCopies(ctx context.Context, atMost time.Duration) error {
	if a.copies == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), atMost)
	defer cancel()
	return a.copies.Close(ctx)
}

func openStore(cfg *config.Config, text string) (store.Store, error) {
	if text == "" {
		return nil, &usageError{errors.New("archive.store is not set: it says where the repository is")}
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, &usageError{fmt.Errorf("archive.store: %w", err)}
	}
	if u.Scheme == "file" {
		return file.Open(u.Path)
	}
	opt, err := s3.ParseURL(text)
	if err != nil {
		return nil, &usageError{err}
	}
	opt.Use = repo.Use
	opt.Lock = s3.Lock{For: cfg.Archive.Lock.D(), Compliance: cfg.Archive.LockMode == "compliance"}
	return s3.Open(opt)
}

// unopened is a store that could not be opened.
type unopened struct{ err error }

func (u unopened) Put(context.Context, string, []byte, store.PutOptions) error { return u.err }

func (u unopened) Get(context.Context, string, int64, int64) (io.ReadCloser, error) {
	return nil, u.err
}

func (u unopened) List(context.Context, string, string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) { yield(store.Object{}, u.err) }
}

func (u unopened) Delete(context.Context, string) error { return u.err }
