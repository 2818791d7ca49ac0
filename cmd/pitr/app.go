package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"time"

	"pitr/config"
	"pitr/internal/repo"
	"pitr/internal/store"
	"pitr/internal/store/file"
	"pitr/internal/store/s3"
)

// app assembles what the commands share from the configuration.
type app struct {
	configPath string
	counts     store.Counts // requests of the store that repository has opened
}

// load reads the configuration and makes the logger.
func (a *app) load() (*config.Config, *slog.Logger, error) {
	path, err := config.Find(a.configPath)
	if err != nil {
		return nil, nil, err
	}
	cfg, err := config.Load(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, &usageError{err}
	}
	if err != nil {
		return nil, nil, err
	}
	return cfg, newLogger(cfg.Log), nil
}

// open reads the configuration and opens the repository that it names.
func (a *app) open() (*config.Config, *slog.Logger, *repo.Repo, error) {
	cfg, log, err := a.load()
	if err != nil {
		return nil, nil, nil, err
	}
	r, err := a.repository(cfg, log)
	return cfg, log, r, err
}

func newLogger(cfg config.Log) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		panic("log.level passed its range check: " + err.Error())
	}
	opt := &slog.HandlerOptions{Level: level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opt))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opt))
}

// firstPause is before the first retry of a request to the store.
const firstPause = 100 * time.Millisecond

// repository opens the configured store with retries around it.
func (a *app) repository(cfg *config.Config, log *slog.Logger) (*repo.Repo, error) {
	inner, err := openStore(cfg.Archive.Store)
	if err != nil {
		return nil, err
	}
	compressor, err := repo.NewCompressor(cfg.Archive.Compression)
	if err != nil {
		return nil, err
	}
	s := store.Retry(store.Counted(inner, &a.counts), store.RetryOptions{
		Retries: cfg.Archive.StoreRetries, Timeout: cfg.Archive.StoreTimeout.D(), Pause: firstPause,
		Notice: func(operation, key string, attempt int, err error) {
			log.Warn("the store did not answer as it should; trying again", "operation", operation, "key", key, "attempt", attempt, "error", err)
		}})
	r, err := repo.New(s, cfg.Cluster, compressor).WithEncryption(repo.Encryption{Recipients: cfg.Archive.Encryption.Recipients,
		IdentityFile: cfg.Archive.Encryption.IdentityFile, FingerprintKey: cfg.Archive.Encryption.FingerprintKey.Reveal()})
	if err != nil {
		return nil, &usageError{fmt.Errorf("archive.encryption: %w", err)}
	}
	return r, nil
}

func openStore(text string) (store.Store, error) {
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
	return s3.Open(opt)
}

// printJSON writes v for scripts.
func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}

// settle is how long a context that must outlive an interrupt may go on, to clean up.
const settle = 30 * time.Second

// cleanup is a context for cleaning up after ctx was interrupted.
func cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), settle)
}

// bytesText prints a size for people.
func bytesText(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, suffix := float64(n)/unit, "KiB"
	for _, next := range []string{"MiB", "GiB", "TiB"} {
		if value < unit {
			break
		}
		value, suffix = value/unit, next
	}
	return fmt.Sprintf("%.1f %s", value, suffix)
}

// durationText prints a time span for people.
func durationText(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
