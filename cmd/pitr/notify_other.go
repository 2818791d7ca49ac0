//go:build !linux

package main

// monotonicMicroseconds is for systemd, which is not elsewhere.
func monotonicMicroseconds() string { return "MONOTONIC_USEC=0" }
