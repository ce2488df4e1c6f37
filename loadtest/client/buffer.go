package client

import "sync"

// buffer is bytes on their way: a write queue, or a PUBLISH that is kept until it is acknowledged. It comes from a pool by size.
type buffer struct{ b []byte }

var (
	bufferSizes = [...]int{256, 2 << 10, 16 << 10, 64 << 10} // larger ones are not kept
	bufferPools [len(bufferSizes)]sync.Pool
)

// newBuffer returns an empty buffer with room for n bytes.
func newBuffer(n int) *buffer {
	for i, size := range bufferSizes {
		if n <= size {
			if b, ok := bufferPools[i].Get().(*buffer); ok {
				return b
			}
			return &buffer{b: make([]byte, 0, size)}
		}
	}
	return &buffer{b: make([]byte, 0, n)}
}

// release gives the buffer back; nil is allowed.
func (b *buffer) release() {
	if b == nil {
		return
	}
	for i := len(bufferSizes) - 1; i >= 0; i-- {
		if size := bufferSizes[i]; cap(b.b) >= size {
			if cap(b.b) <= bufferSizes[len(bufferSizes)-1] {
				b.b = b.b[:0]
				bufferPools[i].Put(b)
			}
			return
		}
	}
}
