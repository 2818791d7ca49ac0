package config

import (
	"fmt"
	"net"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Default is the configuration of an empty file. It panics when the table of settings contradicts the struct.
func Default() *Config {
	cfg := &Config{}
	for _, setting := range settings {
		if setting.Default == "" {
			continue
		}
		field := fieldOf(reflect.ValueOf(cfg).Elem(), strings.Split(setting.Key, "."))
		if field.Kind() == reflect.Slice {
			for text := range strings.SplitSeq(strings.Trim(setting.Default, "[]"), ", ") {
				field.Set(reflect.Append(field, reflect.ValueOf(text)))
			}
			continue
		}
		if err := setScalar(field, setting.Default); err != nil {
			panic("config: default of " + setting.Key + " " + err.Error())
		}
	}
	return cfg
}

func fieldOf(v reflect.Value, path []string) reflect.Value {
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("yaml") != path[0] {
			continue
		}
		if len(path) == 1 {
			return v.Field(i)
		}
		return fieldOf(v.Field(i), path[1:])
	}
	panic("config: no field for the setting " + strings.Join(path, "."))
}

// lookup finds the setting of a key; a name below databases or users stands for "*".
func lookup(key string) (Setting, bool) {
	for _, setting := range settings {
		if setting.Key == key || keyMatches(setting.Key, key) {
			return setting, true
		}
	}
	return Setting{}, false
}

func keyMatches(pattern, key string) bool {
	before, after, starred := strings.Cut(pattern, "*")
	return starred && len(key) > len(before)+len(after) && strings.HasPrefix(key, before) && strings.HasSuffix(key, after)
}

// checkRange holds a value that was written against the range of its setting.
func checkRange(key, text string) error {
	setting, found := lookup(key)
	if !found || setting.Range == "" {
		return nil
	}
	if low, high, bounded := strings.Cut(setting.Range, ".."); bounded {
		value := magnitude(text)
		if value < magnitude(low) || value > magnitude(high) {
			return fmt.Errorf("is out of range: %s to %s", low, high)
		}
		return nil
	}
	for choice := range strings.SplitSeq(setting.Range, "|") {
		if choice == text {
			return nil
		}
	}
	return fmt.Errorf("is none of %s", strings.ReplaceAll(setting.Range, "|", ", "))
}

// magnitude makes durations, sizes and numbers comparable within one range.
func magnitude(text string) int64 {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return n
	}
	if d, err := ParseDuration(text); err == nil {
		return int64(d)
	}
	b, err := ParseByteSize(text)
	if err != nil {
		panic("config: range bound " + text + " is neither number, duration nor size")
	}
	return int64(b)
}

const (
	// socketPathMax is the size of sun_path in struct sockaddr_un of Linux, less the byte that ends it and what a temporary name adds.
	socketPathMax = 100
	// fingerprintKeyMin makes a fingerprint key that can be guessed a mistake.
	fingerprintKeyMin = 16
	leaseMin          = 2 * time.Second
	lockMin           = 24 * time.Hour
)

var (
	clusterName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	// slotName follows ReplicationSlotValidateName in src/backend/replication/slot.c.
	slotName = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)
	cronExpr = regexp.MustCompile(`^(@[a-z]+|\S+ +\S+ +\S+ +\S+ +\S+)$`)
)

// validate checks what one value alone cannot tell. Its problems carry no line yet.
func validate(cfg *Config) []Problem {
	var problems []Problem
	check := func(ok bool, key, text string) {
		if !ok {
			problems = append(problems, Problem{Key: key, Text: text})
		}
	}
	check(clusterName.MatchString(cfg.Cluster), "cluster", fmt.Sprintf("%q is no name of up to 63 letters, digits, -, _ and .", cfg.Cluster))
	check(slotName.MatchString(cfg.Archive.Slot), "archive.slot", fmt.Sprintf("%q is no name of a slot: lower-case letters, digits and _", cfg.Archive.Slot))
	check(cfg.Backup.Schedule == "" || cronExpr.MatchString(cfg.Backup.Schedule), "backup.schedule", fmt.Sprintf("%q is no cron expression of five fields", cfg.Backup.Schedule))
	check(cfg.Archive.Lease == 0 || cfg.Archive.Lease.D() >= leaseMin, "archive.lease", fmt.Sprintf("must be 0 or at least %s: it is renewed five times in it", leaseMin))
	check(cfg.Archive.BufferMax >= 2*cfg.Archive.PartSizeMax, "archive.buffer_max", "must be at least twice archive.part_size_max")
	problems = append(problems, validateStores(cfg.Archive)...)
	check(cfg.Archive.Lock == 0 || cfg.Archive.Lock.D() >= lockMin, "archive.lock", "must be 0 or at least 1d")
	check(cfg.Archive.Lock == 0 || slices.ContainsFunc(cfg.Archive.Stores(), func(text string) bool { return strings.HasPrefix(text, "s3://") }),
		"archive.lock", "needs a store that retains objects, s3://…; a directory cannot")
	for i, recipient := range cfg.Archive.Encryption.Recipients {
		check(strings.HasPrefix(recipient, "age1"), fmt.Sprintf("archive.encryption.recipients[%d]", i), fmt.Sprintf("%q is no age recipient: age1…", recipient))
	}
	identities := cfg.Archive.Encryption.IdentityFile
	check(identities == "" || strings.HasPrefix(identities, "/"), "archive.encryption.identity_file", "must be an absolute path: restore_command runs in another directory")
	check(cfg.Archive.PushSocket == "" || strings.HasPrefix(cfg.Archive.PushSocket, "/") && len(cfg.Archive.PushSocket) <= socketPathMax,
		"archive.push_socket", fmt.Sprintf("must be an absolute path of at most %d bytes", socketPathMax))
	secret := cfg.Archive.Encryption.FingerprintKey.Reveal()
	check(secret == "" || len(secret) >= fingerprintKeyMin, "archive.encryption.fingerprint_key", fmt.Sprintf("is shorter than %d characters", fingerprintKeyMin))
	for i, address := range cfg.Pooler.Listen {
		check(isAddress(address), fmt.Sprintf("pooler.listen[%d]", i), fmt.Sprintf("%q is no host:port", address))
	}
	check(len(cfg.Pooler.Listen) > 0 || cfg.Pooler.UnixSocketDir != "", "pooler.listen", "names no address, and pooler.unix_socket_dir no directory")
	for key, address := range map[string]string{"http.pooler": cfg.HTTP.Pooler, "http.archiver": cfg.HTTP.Archiver} {
		check(address == "" || isAddress(address), key, fmt.Sprintf("%q is no host:port", address))
	}
	problems = append(problems, validateLogin(cfg.Pooler)...)
	for name, db := range cfg.Pooler.Databases {
		_, err := db.Hosts()
		check(err == nil, "pooler.databases."+name+".host", fmt.Sprint(err))
	}
	check(cfg.Verify.Directory == "" || strings.HasPrefix(cfg.Verify.Directory, "/"), "verify.directory", "must be an absolute path")
	if zone := cfg.Restore.TimeZone; zone != "" {
		_, err := time.LoadLocation(zone)
		check(err == nil && zone != "Local", "restore.time_zone", fmt.Sprintf("%q is no time zone, for example Europe/Berlin", zone))
	}
	return problems
}

// isAddress reports whether text is host:port with a port from 0 to 65535; zero lets the system choose.
func isAddress(text string) bool {
	_, port, err := net.SplitHostPort(text)
	if err != nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}
