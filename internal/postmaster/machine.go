package postmaster

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// LibcVersion is the version of this machine's C library as Postgres tells it of its collations: gnu_get_libc_version in
// src/backend/utils/adt/pg_locale.c. Empty: it is not the GNU one, or nothing tells it.
func LibcVersion(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "getconf", "GNU_LIBC_VERSION").Output()
	if err != nil {
		return ""
	}
	version, isGNU := strings.CutPrefix(strings.TrimSpace(string(out)), "glibc ")
	if !isGNU {
		return ""
	}
	return version
}

// LibraryDir is where the installation looks for libraries that it loads ($libdir); empty when that is not known. pg_config lies beside the server,
// or is in a package that is not installed.
func (i *Install) LibraryDir(ctx context.Context) string {
	if out, err := i.Command(ctx, i.Path("pg_config"), "--pkglibdir").Output(); err == nil {
		return strings.TrimSpace(string(out))
	}
	for _, dir := range []string{"lib", "lib/postgresql"} {
		dir = filepath.Join(filepath.Dir(i.Bin), dir)
		if _, err := os.Stat(filepath.Join(dir, "plpgsql.so")); err == nil { // every installation has it
			return dir
		}
	}
	return ""
}
