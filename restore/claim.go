package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// unfinishedMark is a file in a data directory that pitr has begun to fill and not finished; it may be begun anew. Whoever fills the
// directory holds a lock on it.
const unfinishedMark = "pitr_restore_unfinished"

// ErrBusy says that another process is filling the directory at this moment.
var ErrBusy = errors.New("another restore is writing into the directory")

// claim is the exclusive right to fill a directory. It lies in the lock on the mark, which ends with the process, so that a restore
// that was killed can be begun anew and one that is alive cannot.
type claim struct {
	dir  string
	mark *os.File
}

// claimDirectory takes the right, marks the directory durably and empties it of what an unfinished attempt has left. The caller has
// passed CheckDirectory.
func claimDirectory(dir, note string) (_ *claim, err error) {
	return claimFor(dir, note, false)
}

// claimFor does so; with keep what is in the directory stays, and a cluster that is there cannot start from now on.
func claimFor(dir, note string, keep bool) (_ *claim, err error) {
	again := Unfinished(dir) && !keep
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	mark, err := os.OpenFile(filepath.Join(dir, unfinishedMark), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	c := &claim{dir: dir, mark: mark}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.release())
		}
	}()
	if err := c.lock(keep); err != nil {
		return nil, err
	}
	if err := errors.Join(mark.Truncate(0), writeString(mark, note+"\n"), mark.Sync(), syncPath(dir), syncPath(filepath.Dir(dir))); err != nil {
		return nil, err
	}
	switch {
	case again:
		err = clearDirectory(dir)
	case keep:
		err = c.disarm(ServerOf)
	}
	return c, err
}

// disarm makes a cluster unable to start: its pg_control goes, durably, before anything else of it changes. The mark is there already, so that
// what a kill leaves is either the cluster as it was or the rest of an unfinished restore. A server that starts at this moment has written its
// postmaster.pid before it reads pg_control (PostmasterMain of src/backend/postmaster/postmaster.c): it is seen afterwards, or does not find the file.
func (c *claim) disarm(serverOf func(dir string) int) error {
	if pid := serverOf(c.dir); pid != 0 {
		return errors.Join(fmt.Errorf("%w (process %d)", ErrInUse, pid), os.Remove(c.mark.Name()))
	}
	control := filepath.Join(c.dir, controlFile)
	aside := control + ".pitr-aside"
	if err := os.Rename(control, aside); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if pid := serverOf(c.dir); pid != 0 {
		return errors.Join(fmt.Errorf("%w (process %d)", ErrInUse, pid), os.Rename(aside, control), os.Remove(c.mark.Name()))
	}
	if err := os.Remove(aside); err != nil {
		return err
	}
	return syncPath(filepath.Dir(control))
}

func writeString(file *os.File, text string) error {
	_, err := file.WriteString(text)
	return err
}

// lock makes sure that nobody else fills the directory, and that nobody has finished it since it was checked.
func (c *claim) lock(keep bool) error {
	err := syscall.Flock(int(c.mark.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return ErrBusy
	case err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, syscall.ENOLCK):
		return fmt.Errorf("lock %s: %w", c.mark.Name(), err)
	}
	held, err1 := c.mark.Stat()
	named, err2 := os.Stat(c.mark.Name())
	if err1 != nil || err2 != nil || !os.SameFile(held, named) {
		return ErrBusy // it has just been finished
	}
	if keep {
		return nil
	}
	if _, err := os.Stat(filepath.Join(c.dir, controlFile)); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(ErrNotEmpty, err, os.Remove(c.mark.Name()))
	}
	return nil
}

// release gives the right back; the mark stays unless publish has removed it.
func (c *claim) release() error { return c.mark.Close() }

// publish makes the directory startable: everything else is durable, so pg_control gets its name (law 5), and the mark goes.
func (c *claim) publish() error {
	if err := os.Rename(filepath.Join(c.dir, controlFileTemp), filepath.Join(c.dir, controlFile)); err != nil {
		return err
	}
	if err := syncPath(filepath.Join(c.dir, filepath.Dir(controlFile))); err != nil {
		return err
	}
	if err := os.Remove(c.mark.Name()); err != nil {
		return err
	}
	return syncPath(c.dir)
}

// clearDirectory removes what an unfinished attempt has left. Tablespaces beside the directory are its own: CheckDirectory has refused
// any that were there before the mark was.
func clearDirectory(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() == unfinishedMark {
			continue // last, so that a kill in between leaves it
		}
		if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	return os.RemoveAll(tablespacesDir(dir))
}

// initialiseIn is where a new cluster is made before it moves up.
const initialiseIn = "pitr_initialise"

// Initialise fills an empty directory with the new cluster that initialise makes. As with a restore, a directory that was not finished
// cannot start: initdb by itself leaves a pg_control long before it is done. own gives a path to the user that runs Postgres.
func Initialise(dir string, own func(path string) error, initialise func(dir string) error) error {
	dir, err := resolve(dir)
	if err != nil {
		return fmt.Errorf("initialise: %w", err)
	}
	if err := CheckDirectory(dir); err != nil {
		return err
	}
	c, err := claimDirectory(dir, "pitr: a new cluster is not finished")
	if err != nil {
		return fmt.Errorf("initialise %s: %w", dir, err)
	}
	inner := filepath.Join(dir, initialiseIn)
	err = own(dir)
	if err == nil {
		err = initialise(inner)
	}
	if err == nil {
		err = moveUp(inner, dir)
	}
	if err == nil {
		err = own(dir)
	}
	if err == nil {
		err = syncTrees(dir)
	}
	if err == nil {
		err = c.publish()
	}
	if err := errors.Join(err, c.release()); err != nil {
		return fmt.Errorf("initialise %s: %w", dir, err)
	}
	return nil
}

func moveUp(inner, dir string) error {
	if err := os.Rename(filepath.Join(inner, controlFile), filepath.Join(inner, controlFileTemp)); err != nil {
		return err
	}
	entries, err := os.ReadDir(inner)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := os.Rename(filepath.Join(inner, entry.Name()), filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	return os.Remove(inner)
}
