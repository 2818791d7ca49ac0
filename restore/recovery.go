package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"
)

// required are the settings that recovery needs at least as high as the origin had them: CheckRequiredParameterValues in
// src/backend/access/transam/xlogrecovery.c.
var required = []string{"max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions", "max_locks_per_transaction"}

// isolation keeps a copy from doing what its origin does. The last two stop jobs: logical subscriptions and pg_cron.
var isolation = []string{"archive_mode = off", "primary_conninfo = ''", "primary_slot_name = ''", "synchronous_standby_names = ''",
	"max_logical_replication_workers = 0", "cron.launch_active_jobs = off"}

const (
	recoveryBegin = "# --- pitr restore: begin"
	recoveryEnd   = "# --- pitr restore: end"

	isolationComment = "# What follows keeps this copy apart from its origin; remove it when the copy takes the origin's place."
)

// writeRecovery tells Postgres up to where to recover: in postgresql.auto.conf, where the last setting of a name counts, and by
// recovery.signal. A data directory whose configuration lies elsewhere (Debian) gets a small one of its own.
func writeRecovery(dir string, plan *Plan, opt Options) error {
	lines := append([]string{recoveryBegin + " " + strings.Map(printable, plan.Target)}, targetSettings(plan, opt)...)
	for _, name := range required {
		value := plan.Backup.Settings[name]
		for _, raised := range plan.Raised {
			if raised.Name == name {
				value = strconv.Itoa(raised.Needed)
			}
		}
		if value != "" {
			lines = append(lines, name+" = "+value)
		}
	}
	if opt.Isolated {
		lines = append(lines, isolationComment)
		lines = append(lines, isolation...)
	}
	lines = append(lines, recoveryEnd)
	auto := filepath.Join(dir, "postgresql.auto.conf")
	before, err := os.ReadFile(auto)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	content := string(stripRecovery(before)) + strings.Join(lines, "\n") + "\n"
	signal, stale := "recovery.signal", []string{"standby.signal", "postmaster.pid", "postmaster.opts"}
	if opt.Standby {
		signal, stale[0] = stale[0], signal
	}
	files := map[string]string{"postgresql.auto.conf": content, signal: ""}
	if _, err := os.Stat(filepath.Join(dir, "postgresql.conf")); errors.Is(err, fs.ErrNotExist) {
		files["postgresql.conf"] = "# written by pitr restore: the origin's configuration lay outside its data directory;\n# postgresql.conf.origin is a copy of it, if there is one\n"
	}
	if _, err := os.Stat(filepath.Join(dir, "pg_hba.conf")); errors.Is(err, fs.ErrNotExist) {
		files["pg_hba.conf"] = "# written by pitr restore: the origin's pg_hba.conf lay outside its data directory;\n# pg_hba.conf.origin is a copy of it, if there is one\nlocal all all peer\nhost all all 127.0.0.1/32 scram-sha-256\n"
	}
	for _, name := range stale {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for name, content := range files {
		if err := writeDurable(filepath.Join(dir, name), content); err != nil {
			return err
		}
	}
	return nil
}

// targetSettings say how far to recover, and what to do then.
func targetSettings(plan *Plan, opt Options) []string {
	unset := []string{"recovery_target = ''", "recovery_target_time = ''", "recovery_target_name = ''", "recovery_target_xid = ''"}
	if opt.Standby {
		// It has no target, follows the primary over every change of timeline, and is read meanwhile.
		return append(unset, "recovery_target_lsn = ''", "recovery_target_timeline = 'latest'", "restore_command = "+quote(opt.FetchWAL),
			"primary_conninfo = "+quote(opt.PrimaryInfo), "primary_slot_name = ''", "hot_standby = on")
	}
	action, hot := "promote", "off"
	if opt.Pause {
		action, hot = "pause", "on" // without it Postgres takes a pause for a shutdown
	}
	return append([]string{"restore_command = " + quote(fmt.Sprintf("%s --until %s", opt.FetchWAL, plan.StopEnd))}, append(unset,
		fmt.Sprintf("recovery_target_lsn = '%s'", plan.StopLSN),
		fmt.Sprintf("recovery_target_inclusive = %t", plan.StopAt),
		fmt.Sprintf("recovery_target_timeline = '%d'", plan.Timeline),
		fmt.Sprintf("recovery_target_action = '%s'", action),
		// Nobody should read, or write to, a database that is not yet what was asked for. Postgres would also stop in the middle when
		// the origin has since raised one of the required settings.
		"hot_standby = "+hot)...)
}

// stripRecovery removes the block of an earlier restore, which a backup of a restored server contains.
func stripRecovery(content []byte) []byte {
	var kept []string
	inside := false
	for line := range strings.Lines(string(content)) {
		inside = inside || strings.HasPrefix(line, recoveryBegin)
		if !inside {
			kept = append(kept, line)
		}
		if strings.HasPrefix(line, recoveryEnd) {
			inside = false
		}
	}
	text := strings.Join(kept, "")
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return []byte(text)
}

// RecoveryToEnd reports whether a directory has the recovery block of a restore in its origin's place: EndRecovery is to remove it. The
// block of a copy stays, since it also keeps the copy apart.
func RecoveryToEnd(dir string) (bool, error) {
	content, err := os.ReadFile(filepath.Join(dir, "postgresql.auto.conf"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for recovery settings: %w", err)
	}
	text := "\n" + string(content)
	return strings.Contains(text, "\n"+recoveryBegin) && !strings.Contains(text, "\n"+isolationComment), nil
}

// EndRecovery removes the recovery block once Postgres has been promoted: the server then has no trace of the restore in its
// settings. It is for a restored server that takes its origin's place.
func EndRecovery(dir string) error {
	auto := filepath.Join(dir, "postgresql.auto.conf")
	content, err := os.ReadFile(auto)
	if err != nil {
		return fmt.Errorf("end recovery: %w", err)
	}
	return writeDurable(auto, string(stripRecovery(content)))
}

// printable makes a blank of what could end a comment's line.
func printable(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return ' '
}

// quote writes a value for postgresql.conf, where a backslash begins an escape: GUC_scanstr in src/backend/utils/misc/guc-file.l.
func quote(value string) string {
	return "'" + strings.NewReplacer("'", "''", `\`, `\\`, "\n", `\n`).Replace(value) + "'"
}

// writeDurable replaces a file: temporary name, write, sync, rename, sync of the directory. It keeps the owner of the file it replaces.
func writeDurable(path, content string) (err error) {
	tmp := path + ".pitr-tmp"
	file, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(content)
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := keepOwner(path, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncPath(filepath.Dir(path))
}
