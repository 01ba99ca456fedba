package carrier

import "sync"

// Buffers come in sizes, so that what is idle, or small and unread, holds little.
const (
	smallBuffer = 4 << 10
	// BigBuffer is the largest size.
	BigBuffer = 256 << 10
	// DirectRead is the size from which a read goes to the socket itself.
	DirectRead = 16 << 10
)

var (
	bufferSizes = [...]int{smallBuffer, 16 << 10, 64 << 10, BigBuffer}
	buffers     [len(bufferSizes)]sync.Pool
)

// GetBuffer returns an empty buffer, with room for n bytes if that is possible.
func GetBuffer(n int) *[]byte {
	i := 0
	for i < len(bufferSizes)-1 && n > bufferSizes[i] {
		i++
	}
	if b, ok := buffers[i].Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, bufferSizes[i])
	return &b
}

// PutBuffer takes a buffer back; the caller must not touch it again. Outgrown
// ones are left to the collector.
func PutBuffer(b *[]byte) {
	c := cap(*b)
	*b = (*b)[:0]
	for i, size := range bufferSizes {
		if c == size || i == len(bufferSizes)-1 && c > size && c <= 4*size {
			buffers[i].Put(b)
			return
		}
	}
}

// AppendBuffer appends p to a buffer, or to a new one in place of nil, and returns the one
// that has it: a larger one takes the place of one that is full.
func AppendBuffer(b *[]byte, p []byte) *[]byte {
	if b == nil {
		b = GetBuffer(len(p))
	} else if len(*b)+len(p) > cap(*b) && cap(*b) < BigBuffer {
		grown := GetBuffer(BigBuffer)
		*grown = append(*grown, *b...)
		PutBuffer(b)
		b = grown
	}
	*b = append(*b, p...)
	return b
}
