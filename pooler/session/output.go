package session

// Output collects what is due to one side: pieces of the input, and messages of ours between them. As long as only one piece of
// the input is due nothing is copied.
type Output struct {
	in       []byte
	from, to int // the piece of in that is due, while buf is not used
	buf      []byte
}

// Reset forgets everything and takes a new input.
func (o *Output) Reset(in []byte) {
	o.in, o.from, o.to, o.buf = in, 0, 0, o.buf[:0]
}

// Add makes a message due that the driver has kept, in front of what follows.
func (o *Output) Add(message []byte) {
	o.buf = append(o.open(), message...)
}

// Shrink gives back the memory of a collection that was larger than max bytes.
func (o *Output) Shrink(max int) {
	if cap(o.buf) > max {
		o.buf = nil
	}
}

// Bytes returns what is due. It is valid until the next Reset, and as long as the input is.
func (o *Output) Bytes() []byte {
	if len(o.buf) > 0 {
		return o.buf
	}
	return o.in[o.from:o.to]
}

// pass makes in[from:to] due.
func (o *Output) pass(from, to int) {
	switch {
	case from == to:
	case len(o.buf) > 0:
		o.buf = append(o.buf, o.in[from:to]...)
	case o.from == o.to:
		o.from, o.to = from, to
	case o.to == from:
		o.to = to
	default:
		o.buf = append(append(o.buf, o.in[o.from:o.to]...), o.in[from:to]...)
	}
}

// open returns the buffer with what is due so far. The caller appends to it and puts it back.
func (o *Output) open() []byte {
	if len(o.buf) == 0 && o.from != o.to {
		o.buf = append(o.buf, o.in[o.from:o.to]...)
	}
	return o.buf
}
