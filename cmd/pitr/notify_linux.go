package main

import (
	"strconv"
	"syscall"
	"unsafe"
)

// monotonicMicroseconds is the field that RELOADING=1 has to come with: CLOCK_MONOTONIC of clock_gettime(2), whose number is 1 in linux/time.h.
func monotonicMicroseconds() string {
	const clockMonotonic = 1
	var now syscall.Timespec
	if _, _, failed := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&now)), 0); failed != 0 {
		return "MONOTONIC_USEC=0"
	}
	return "MONOTONIC_USEC=" + strconv.FormatInt(now.Nano()/1000, 10)
}
