package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Spool is a directory below a data directory that is being recovered. A prefetcher puts the next segments into it, whole and verified, and `wal
// fetch` takes them by a rename. It lies in the data directory, since that is the same file system as pg_wal mostly is, and since nothing else is
// sure to be writable; its name begins as those of temporary files do, which base backups leave out (excludeFiles and PG_TEMP_FILE_PREFIX in
// src/backend/backup/basebackup.c) and which Postgres does not read. docs/decisions/0016-wal-prefetch.md.
type Spool struct {
	data string // the data directory
	dir  string
}

const (
	// spoolPrefix begins the name of a spool; what follows is the boot of this machine. What was written before a crash of the machine may
	// not have reached the disk, and nothing in a spool is synced.
	spoolPrefix = "pgsql_tmp_pitr_wal_"
	// spoolPartial ends the name of a segment that is on its way.
	spoolPartial = ".partial-pitr"
	spoolWant    = "want" // the name of the segment that recovery has last asked for in vain
	spoolLock    = "lock" // held by the prefetcher

	// bootFile names this boot of the machine: Linux alone has it. Where it is missing there is no spool.
	bootFile = "/proc/sys/kernel/random/boot_id"
)

// SpoolOf is the spool of the recovery that asks for a file to be written to destination, which is pg_wal/RECOVERYXLOG in a data directory.
// It is false for any other destination: nobody would clean up then.
func SpoolOf(destination string) (Spool, bool) {
	absolute, err := filepath.Abs(destination)
	if err != nil || filepath.Base(filepath.Dir(absolute)) != "pg_wal" {
		return Spool{}, false
	}
	return spoolIn(filepath.Dir(filepath.Dir(absolute)))
}

func spoolIn(data string) (Spool, bool) {
	boot, err := os.ReadFile(bootFile)
	id, _, _ := strings.Cut(strings.TrimSpace(string(boot)), "-")
	s := Spool{data: data, dir: filepath.Join(data, spoolPrefix+id)}
	return s, err == nil && id != "" && s.recovering()
}

// recovering reports whether a server recovers in the data directory.
func (s Spool) recovering() bool {
	pid := postmasterPID(s.data)
	if pid == 0 || syscall.Kill(pid, 0) == syscall.ESRCH {
		return false
	}
	return Recovers(s.data)
}

// ShellTake is what a restore_command begins with: a shell takes a segment that lies in the spool as Take does, sooner than a process of ours would have started. It
// fails when the segment is not there. The name of the boot is read each time, as it is in spoolIn, and percent signs are doubled, as Postgres wants it.
//
// Law 6: whatever ends the shell by itself, such as a fork that fails, must not look like "certainly absent", which is any code from 1 to 125. The trap makes it 255 until the segment is taken, or
// the next program has the process.
const ShellTake = "trap \"exit 255\" 0; { read -r boot < " + bootFile + " && [ -f " + spoolPrefix + "${boot%%%%-*}/%f ] && mv -f " + spoolPrefix + "${boot%%%%-*}/%f %p; } 2>/dev/null && trap - 0"

// Patience with a segment that the prefetcher has begun: how often to look, and when to fetch it ourselves.
const (
	spoolPoll     = time.Millisecond
	spoolPatience = 20 * time.Second
	claimPatience = 200 * time.Millisecond // with a lock that somebody has
)

// Take moves a segment to where Postgres wants it. It is false when the spool has it not: then it must be asked of the archive. What is on its
// way is waited for, as long as somebody brings it.
func (s Spool) Take(name, destination string) bool {
	ticker := time.NewTicker(spoolPoll)
	defer ticker.Stop()
	for deadline := time.Now().Add(spoolPatience); ; <-ticker.C {
		if s.move(name, destination) {
			return true
		}
		if _, err := os.Stat(filepath.Join(s.dir, name+spoolPartial)); err != nil {
			return s.move(name, destination) // it may have got its name in between
		}
		if !s.Busy() || time.Now().After(deadline) {
			return false
		}
	}
}

// move renames; where pg_wal is on another file system it copies. The destination appears whole or not at all.
func (s Spool) move(name, destination string) bool {
	from := filepath.Join(s.dir, name)
	err := os.Rename(from, destination)
	if !errors.Is(err, syscall.EXDEV) {
		return err == nil
	}
	content, err := os.ReadFile(from)
	if err != nil || writeWAL(destination, content) != nil {
		return false
	}
	return os.Remove(from) == nil
}

// Want tells the prefetcher which segment recovery is at.
func (s Spool) Want(name string) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	return writeWAL(filepath.Join(s.dir, spoolWant), []byte(name))
}

// Busy reports whether a prefetcher serves the spool.
func (s Spool) Busy() bool {
	lock, err := os.OpenFile(filepath.Join(s.dir, spoolLock), os.O_RDWR, 0o600)
	if err != nil {
		return false
	}
	defer lock.Close()
	return errors.Is(syscall.Flock(int(lock.Fd()), syscall.LOCK_SH|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}

// Data is the data directory, for the prefetcher that is to be started.
func (s Spool) Data() string { return s.data }

// RemoveSpools removes what prefetchers that were killed have left in a data directory whose recovery has ended. One that lives removes its own.
func RemoveSpools(data string) error {
	found, err := filepath.Glob(filepath.Join(escapeGlob(data), spoolPrefix+"*"))
	if err != nil {
		return fmt.Errorf("look for spools of WAL: %w", err)
	}
	var errs []error
	for _, dir := range found {
		if (Spool{data: data, dir: dir}).Busy() {
			continue
		}
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

// claim makes the spool ours until the process ends; ok is false when it is another's.
func (s Spool) claim(ctx context.Context) (lock *os.File, ok bool, err error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, false, err
	}
	lock, err = os.OpenFile(filepath.Join(s.dir, spoolLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, false, err
	}
	// Whoever asks whether the spool is Busy holds the lock for a moment, and is no other prefetcher.
	patient, cancel := context.WithTimeout(ctx, claimPatience)
	defer cancel()
	ticker := time.NewTicker(spoolPoll)
	defer ticker.Stop()
	for patient.Err() == nil {
		if err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			return lock, true, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			break
		}
		select {
		case <-patient.Done():
		case <-ticker.C:
		}
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = nil
	}
	return nil, false, errors.Join(err, lock.Close())
}

// wanted is the name that Want has left; empty when there is none.
func (s Spool) wanted() (string, error) {
	content, err := os.ReadFile(filepath.Join(s.dir, spoolWant))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(content), err
}

// put writes a segment under its name, which it gets when it is whole.
func (s Spool) put(ctx context.Context, name string, bring func(context.Context) ([]byte, error)) (err error) {
	partial := filepath.Join(s.dir, name+spoolPartial)
	file, err := os.OpenFile(partial, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	content, err := bring(ctx)
	if err == nil {
		var n int
		if n, err = file.Write(content); err == nil && n < len(content) {
			err = io.ErrShortWrite
		}
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(partial, filepath.Join(s.dir, name))
	}
	if err != nil {
		err = errors.Join(err, removeIfThere(partial))
	}
	return err
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
