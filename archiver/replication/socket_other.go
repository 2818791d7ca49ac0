//go:build !linux

package replication

import "errors"

// unreadBytes is not known: what has come during a pause counts as having come in the last two.
func unreadBytes(int) (int, error) { return 0, errors.ErrUnsupported }

func setLowWater(int, int) error { return errors.ErrUnsupported }
