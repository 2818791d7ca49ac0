package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"pitr/archiver"
	"pitr/config"
	"pitr/internal/pg"
	"pitr/internal/wal"
)

func walPushCommand(app *app) *cobra.Command {
	return &cobra.Command{
		Use:   "push FILE",
		Short: "Store a WAL file: archive_command = 'pitr wal push %p'",
		Long: `Checks the file and stores it, with what pitr archiver would store beside it. A file that is there already with the same content is
success; other content is an error, and stays as it is. With archive.push_socket a running pitr archiver does the work.

Exit codes: 0 the store has it, 1 any failure, 2 wrong usage or configuration; Postgres keeps the file then and tries again.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return pushWAL(cmd.Context(), app, args[0]) },
	}
}

func pushWAL(ctx context.Context, app *app, path string) error {
	cfg, log, err := app.load()
	if err != nil {
		return err
	}
	remark, err := pushThroughSocket(ctx, cfg, path)
	if errors.Is(err, archiver.ErrNoSocket) {
		if cfg.Archive.PushSocket != "" {
			log.Warn("pushing without the socket", "file", filepath.Base(path), "error", err)
		}
		remark, err = pushDirectly(ctx, app, cfg, log, path)
	}
	if err != nil {
		return err
	}
	if remark != "" {
		fmt.Fprintf(os.Stderr, "pitr: %s: %s\n", filepath.Base(path), remark)
	}
	return nil
}

// pushPlace names the repository; the archiver behind a socket may have another.
func pushPlace(cfg *config.Config) string { return cfg.Cluster + " in " + cfg.Archive.Store }

func pushSocketOptions(cfg *config.Config) archiver.PushSocketOptions {
	return archiver.PushSocketOptions{Path: cfg.Archive.PushSocket, Place: pushPlace(cfg), Stall: cfg.Archive.PushStall.D(), PushesMax: cfg.Archive.PushesMax}
}

func pushThroughSocket(ctx context.Context, cfg *config.Config, path string) (string, error) {
	if cfg.Archive.PushSocket == "" {
		return "", archiver.ErrNoSocket
	}
	f, err := openWAL(path)
	if err != nil {
		return "", err
	}
	defer f.close()
	return archiver.PushThrough(ctx, pushSocketOptions(cfg), f.PushFile, f.beforeSize)
}

func pushDirectly(ctx context.Context, app *app, cfg *config.Config, log *slog.Logger, path string) (string, error) {
	r, err := app.repository(cfg, log)
	if err != nil {
		return "", err
	}
	f, err := openWAL(path)
	if err != nil {
		return "", err
	}
	defer f.close()
	return archiver.NewPusher(r, log).Push(ctx, f.PushFile)
}

// walFile is a file of pg_wal that is open, and what lies beside it.
type walFile struct {
	archiver.PushFile
	beforeSize int64
	files      []*os.File
}

func (f *walFile) close() {
	for _, file := range f.files {
		_ = file.Close() // it was only read
	}
}

// openWAL opens a file that is to be pushed. The files beside it help: a segment tells to which cluster a history file belongs, and in the
// segment before begins the record that goes on into this one.
func openWAL(path string) (*walFile, error) {
	f := &walFile{}
	content, info, err := f.open(path)
	if err != nil {
		return nil, err
	}
	f.PushFile = archiver.PushFile{Name: filepath.Base(path), Size: info.Size(), Content: content}
	f.Sum = func() ([sha256.Size]byte, error) { return sumOf(content, info.Size()) }
	if len(f.Name) < 24 || !pg.IsSegmentName(f.Name[:24]) {
		f.SystemID, f.Segments = neighbour(filepath.Dir(path))
		return f, nil
	}
	size := pg.SegmentSize(f.Size)
	segment, err := pg.ParseSegmentName(f.Name[:24], size)
	if !size.Valid() || err != nil || segment.Number == 0 {
		return f, nil // whoever stores it says what is wrong
	}
	if header, err := readSegmentHeader(path); err == nil {
		f.SystemID, f.Segments = header.SystemID, header.SegmentSize
	}
	segment.Number--
	if before, info, err := f.open(filepath.Join(filepath.Dir(path), segment.Name(size))); err == nil && info.Size() == f.Size {
		f.Before, f.beforeSize = before, f.Size
	}
	return f, nil
}

// sumOf leaves alone how far the file was read.
func sumOf(file *os.File, size int64) (sum [sha256.Size]byte, err error) {
	hash := sha256.New()
	_, err = io.Copy(hash, io.NewSectionReader(file, 0, size))
	return [sha256.Size]byte(hash.Sum(nil)), err
}

func (f *walFile) open(path string) (*os.File, os.FileInfo, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	f.files = append(f.files, file)
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	return file, info, err
}

// neighbour is what the first segment of a directory that can be read says of its cluster; zero: there is none.
func neighbour(dir string) (pg.SystemID, pg.SegmentSize) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0
	}
	for _, entry := range entries {
		if !pg.IsSegmentName(entry.Name()) {
			continue
		}
		if header, err := readSegmentHeader(filepath.Join(dir, entry.Name())); err == nil {
			return header.SystemID, header.SegmentSize
		}
	}
	return 0, 0
}

func readSegmentHeader(path string) (wal.SegmentHeader, error) {
	file, err := os.Open(path)
	if err != nil {
		return wal.SegmentHeader{}, err
	}
	defer file.Close()
	page := make([]byte, wal.PageSize)
	if _, err := io.ReadFull(file, page); err != nil {
		return wal.SegmentHeader{}, err
	}
	return wal.ParseSegmentHeader(page)
}
