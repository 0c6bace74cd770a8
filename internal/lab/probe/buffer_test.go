package probe_test

import (
	"bytes"
	"sync"
)

// lockedBuffer is a probe's file in memory, which a test reads while the probe writes.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}

func (b *lockedBuffer) count(text string) int { return bytes.Count(b.bytes(), []byte(text)) }
