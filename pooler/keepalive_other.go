//go:build !linux

package pooler

// setKeepAlive does nothing where the pooler does not run.
func setKeepAlive(int) error { return nil }
