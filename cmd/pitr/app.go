package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"pitr/config"
	"pitr/internal/repo"
	"pitr/internal/store"
	"pitr/internal/store/copies"
)

// app assembles what the commands share from the configuration.
type app struct {
	configPath string
	counts     store.Counts  // requests of the stores that repository has opened
	copies     *copies.Store // what it has opened, when there are several; nil otherwise
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
		return slog.New(slog.NewJSONHandler(stderr, opt))
	}
	return slog.New(slog.NewTextHandler(stderr, opt))
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
