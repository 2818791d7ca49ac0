package loop

// buffers are those of a loop that nobody uses, so that a socket has one only while it has something to hold.
type buffers struct {
	small [][]byte
	large [][]byte
}

// The sizes of buffers that are kept for later, and how many of them.
const (
	smallLen = 1 << 10
	smallMax = 256
	largeLen = bufferLen
	largeMax = 16
)

// get returns an empty buffer for n bytes or more.
func (b *buffers) get(n int) []byte {
	switch {
	case n <= smallLen:
		return take(&b.small, smallLen)
	case n <= largeLen:
		return take(&b.large, largeLen)
	}
	return make([]byte, 0, n)
}

func take(list *[][]byte, size int) []byte {
	k := len(*list)
	if k == 0 {
		return make([]byte, 0, size)
	}
	buf := (*list)[k-1]
	*list = (*list)[:k-1]
	return buf[:0]
}

// put gives a buffer back that has no other user.
func (b *buffers) put(buf []byte) {
	switch size := cap(buf); {
	case size >= largeLen && size <= 2*largeLen && len(b.large) < largeMax:
		b.large = append(b.large, buf)
	case size >= smallLen && size <= 4*smallLen && len(b.small) < smallMax:
		b.small = append(b.small, buf)
	}
}
