//go:build !linux

package pooler

import "pitr/config"

// tune does nothing where the pooler does not run.
func tune(int, config.Pooler) error { return nil }
