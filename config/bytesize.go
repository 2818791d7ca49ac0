package config

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// ByteSize is a number of bytes that is written with its unit: 512B, 64KiB, 16MiB, 1GiB.
type ByteSize int64

var byteUnits = []struct {
	name string
	size int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// String prints the form that ParseByteSize reads, in the largest unit that keeps it whole.
func (b ByteSize) String() string {
	for _, unit := range byteUnits {
		if int64(b)%unit.size == 0 && (b != 0 || unit.size == 1) {
			return strconv.FormatInt(int64(b)/unit.size, 10) + unit.name
		}
	}
	panic("config: every size is a whole number of bytes")
}

// ParseByteSize reads a whole number with one of the units B, KiB, MiB, GiB.
func ParseByteSize(text string) (ByteSize, error) {
	for _, unit := range byteUnits {
		count, found := strings.CutSuffix(text, unit.name)
		if !found {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(count), 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/unit.size {
			return 0, errors.New("is not a whole number of " + unit.name)
		}
		return ByteSize(n * unit.size), nil
	}
	return 0, errors.New("needs a unit: B, KiB, MiB or GiB")
}

func (b *ByteSize) set(text string) error {
	parsed, err := ParseByteSize(text)
	if err == nil {
		*b = parsed
	}
	return err
}
