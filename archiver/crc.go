package archiver

import (
	"hash/crc32"

	"pitr/internal/repo"
)

// appendCRC returns the CRC-32C of two strings of bytes, one after the other, from the CRC of each and the length of the second. Zeros appended to the
// first one are a multiplication by a power of x modulo the polynomial, as in crc32_combine of zlib.
func appendCRC(first, second uint32, length int64) uint32 {
	power := extentPower
	if length != repo.ExtentSize {
		power = zerosPower(length)
	}
	return multiplyCRC(power, first) ^ second
}

// extentPower stands for the zeros of a whole extent.
var extentPower = zerosPower(repo.ExtentSize)

// zerosPower is x to the power of 8 n modulo the polynomial.
func zerosPower(n int64) uint32 {
	power, square := uint32(1)<<31, uint32(1)<<(31-8) // 1, and x to the power of 8; the highest bit is that of x^0
	for ; n > 0; n >>= 1 {
		if n&1 == 1 {
			power = multiplyCRC(square, power)
		}
		square = multiplyCRC(square, square)
	}
	return power
}

// multiplyCRC multiplies two polynomials modulo that of CRC-32C.
func multiplyCRC(a, b uint32) (product uint32) {
	for bit := uint32(1) << 31; bit != 0; bit >>= 1 {
		if a&bit != 0 {
			product ^= b
		}
		if b&1 != 0 {
			b = b>>1 ^ crc32.Castagnoli
		} else {
			b >>= 1
		}
	}
	return product
}
