package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// ErrOtherServer says that the repository is another server's at this time.
var ErrOtherServer = errors.New("another server writes to the repository")

// activity is what changes in a repository while a server is archived.
type activity struct {
	last   map[pg.Timeline]pg.LSN // end of the WAL that is there
	clocks map[pg.Timeline]time.Time
	lease  uint64
}

// observe asks names alone.
func observe(ctx context.Context, r *repo.Repo) (activity, error) {
	a := activity{last: map[pg.Timeline]pg.LSN{}, clocks: map[pg.Timeline]time.Time{}}
	cluster, err := r.Cluster(ctx)
	if err != nil {
		return a, err
	}
	timelines, err := r.Timelines(ctx)
	if err != nil {
		return a, err
	}
	for _, tli := range timelines {
		inv, err := r.Inventory(ctx, tli, cluster.SegmentSize, 0)
		if err != nil {
			return a, err
		}
		a.last[tli] = inv.Last()
		clocks, err := r.Clocks(ctx, tli)
		if err != nil {
			return a, err
		}
		for _, clock := range clocks {
			if clock.Time.After(a.clocks[tli]) {
				a.clocks[tli] = clock.Time
			}
		}
	}
	lease, err := r.NewestLease(ctx, repo.Lease{})
	if !lease.Released {
		a.lease = lease.Epoch
	}
	return a, err
}

// since tells what has changed since an earlier look; empty when nothing has.
func (a activity) since(before activity) string {
	for tli, last := range a.last {
		if last > before.last[tli] {
			return fmt.Sprintf("WAL of timeline %d has grown from %s to %s", tli, before.last[tli], last)
		}
		if a.clocks[tli].After(before.clocks[tli]) {
			return fmt.Sprintf("the clock of a server on timeline %d was stored", tli)
		}
	}
	if a.lease > before.lease && before.lease != 0 {
		return fmt.Sprintf("the lease of an archiver was renewed (%d)", a.lease)
	}
	return ""
}

// WatchForOthers looks whether another server is archived into the repository, for twice a span of time: one that has just gone may have left
// an archiver that stores the rest of its WAL, which is over in the first. A server that writes nothing meanwhile is seen only if its archiver has
// a lease; one that is not archived at all cannot be seen.
func WatchForOthers(ctx context.Context, r *repo.Repo, span time.Duration) error {
	before, err := observe(ctx, r)
	if err != nil {
		return fmt.Errorf("look for another server: %w", err)
	}
	var changes []string
	for range 2 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(span):
		}
		now, err := observe(ctx, r)
		if err != nil {
			return fmt.Errorf("look for another server: %w", err)
		}
		change := now.since(before)
		if change == "" {
			return nil
		}
		before, changes = now, append(changes, change)
	}
	return fmt.Errorf("%w: %s", ErrOtherServer, strings.Join(changes, "; then "))
}

// Superseded reports whether the repository has gone on without a cluster: on a timeline that has left the cluster's own behind it. Such a cluster
// was replaced, by a failover or a restore, and its server must not write any more. control is the timeline that its pg_control names; a cluster
// that was killed just after it was promoted has the history file of a newer one, which is written first.
func Superseded(ctx context.Context, r *repo.Repo, dir string, control pg.Timeline) error {
	own := control
	entries, err := os.ReadDir(filepath.Join(dir, "pg_wal"))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if tli, err := pg.ParseHistoryName(entry.Name()); err == nil {
			own = max(own, tli)
		}
	}
	timelines, err := r.Timelines(ctx)
	if err != nil {
		return err
	}
	for _, tli := range timelines {
		if tli <= own {
			continue
		}
		history, err := r.History(ctx, tli)
		if err != nil {
			return err
		}
		for _, ancestor := range history {
			if ancestor.Timeline == own {
				return fmt.Errorf("%w: the cluster is on timeline %d, which timeline %d has left at %s", ErrOtherServer, own, tli, ancestor.Switch)
			}
		}
	}
	return nil
}

// Recovers reports whether a server that is started in a directory follows the archive.
func Recovers(dir string) bool {
	for _, name := range []string{"recovery.signal", "standby.signal"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// ServerOf is the process that runs a server in a data directory; zero when there is none. A postmaster.pid that a server has left behind may
// name a process that has got the number since: a postmaster works in its data directory (ChangeToDataDir of src/backend/postmaster/postmaster.c).
// Where that cannot be seen, a process that is there counts. A server in a container writes the number that it has there, which here is another's
// or nobody's: so any process of Postgres counts that works in the directory.
func ServerOf(dir string) int {
	pid := postmasterPID(dir)
	if pid == 0 {
		return 0
	}
	if works, known := worksIn(pid, dir); alive(pid) && (works || !known) {
		return pid
	}
	processes, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return 0
	}
	for _, path := range processes {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		name, err := os.ReadFile(path)
		if works, _ := worksIn(pid, dir); works && err == nil && strings.HasPrefix(string(name), "post") { // postgres, and postmaster of older packages
			return pid
		}
	}
	return 0
}

// worksIn reports whether a directory is the working directory of a process; by what it is, since another mount may give it another name.
func worksIn(pid int, dir string) (works, known bool) {
	its, err1 := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	own, err2 := os.Stat(dir)
	if err1 != nil || err2 != nil {
		return false, false
	}
	return os.SameFile(its, own), true
}

// ClearStalePID removes a postmaster.pid whose process is another one by now, so that Postgres, which cannot tell, starts. Its own safeguard
// remains: it refuses to start while anything is attached to the shared memory that the file names.
func ClearStalePID(dir string) (removed bool, err error) {
	pid := postmasterPID(dir)
	if pid == 0 || !alive(pid) || ServerOf(dir) != 0 {
		return false, nil // Postgres deals with those that are not there
	}
	return true, os.Remove(filepath.Join(dir, "postmaster.pid"))
}
