package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"pitr/internal/postmaster"
)

// scratch is a directory in which a copy is restored, started, looked at and removed again. A lock keeps two of them apart; what one that was
// killed has left, its server included, the next one ends and removes.
type scratch struct {
	dir     string
	install *postmaster.Install
	lock    *os.File
}

// stopScratchWithin bounds how long the server of a scratch copy may take to stop. Its data is thrown away.
const stopScratchWithin = time.Minute

// claimScratch makes the directory, or takes over what another has left in it. ErrBusy says that one is at work in it.
func claimScratch(ctx context.Context, install *postmaster.Install, dir string) (*scratch, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("scratch directory: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return nil, fmt.Errorf("scratch directory: %w", err)
	}
	// In a directory that all may write to somebody else may have been first.
	uid, _ := install.Owner()
	if owner := info.Sys().(*syscall.Stat_t).Uid; !info.IsDir() || owner != uint32(os.Geteuid()) && owner != uint32(uid) {
		return nil, fmt.Errorf("scratch directory: %s is no directory of ours", dir)
	}
	if err := install.Own(dir); err != nil {
		return nil, fmt.Errorf("scratch directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("scratch directory: %w", err)
	}
	s := &scratch{dir: dir, install: install, lock: lock}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrBusy
		}
		return nil, errors.Join(fmt.Errorf("scratch directory %s: %w", dir, err), lock.Close())
	}
	if err := s.clear(ctx); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return s, nil
}

func (s *scratch) data() string { return filepath.Join(s.dir, "data") }
func (s *scratch) log() string  { return filepath.Join(s.dir, "postgres.log") }

// clear stops the server of the copy and removes everything but the lock.
func (s *scratch) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopScratchWithin)
	defer cancel()
	if err := s.install.Attach(s.data(), 0).Stop(ctx, postmaster.Immediate); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("scratch directory: %w", err)
	}
	for _, entry := range entries {
		if entry.Name() == "lock" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(s.dir, entry.Name())); err != nil {
			return fmt.Errorf("scratch directory: %w", err)
		}
	}
	return nil
}

// release removes what is there and the directory itself.
func (s *scratch) release(ctx context.Context) error {
	err := s.clear(ctx)
	if err == nil {
		err = os.RemoveAll(s.dir)
	}
	return errors.Join(err, s.lock.Close())
}
