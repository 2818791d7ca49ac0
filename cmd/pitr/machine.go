package main

import (
	"context"

	"pitr/internal/postmaster"
	"pitr/restore"
)

// thisMachine is what is known of the machine that we run on; without an installation of Postgres that is little.
func thisMachine(ctx context.Context) restore.Machine {
	m := restore.Machine{Libc: postmaster.LibcVersion(ctx)}
	if install, err := postmaster.Find(ctx); err == nil {
		m.Libraries = install.LibraryDir(ctx)
	}
	return m
}
