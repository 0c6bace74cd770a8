package guest

import (
	"encoding/binary"
	"errors"
	"time"
)

// ChunkInterval is the time from one chunk of a stream to the next.
const ChunkInterval = 20 * time.Millisecond

// ChunkHeader is the length of a chunk's header in bytes.
const ChunkHeader = 32

const chunkMagic = "SAUHCHNK"

// ErrChunk means that the bytes are no chunk header.
var ErrChunk = errors.New("not a chunk of a stream")

// Chunk heads a piece of the constant-bit-rate stream; Length bytes with the value byte(Number) follow it.
type Chunk struct {
	Number uint64 // counted from 0
	Time   int64  // the guest's clock when it was sent, Unix nanoseconds
	Length uint32 // of what follows, in bytes
}

// Encode fills head, ChunkHeader bytes.
func (c Chunk) Encode(head []byte) {
	copy(head, chunkMagic)
	binary.LittleEndian.PutUint64(head[8:], c.Number)
	binary.LittleEndian.PutUint64(head[16:], uint64(c.Time))
	binary.LittleEndian.PutUint32(head[24:], c.Length)
	binary.LittleEndian.PutUint32(head[28:], checksum(head[:28]))
}

// DecodeChunk reads a header. Errors: ErrChunk.
func DecodeChunk(head []byte) (Chunk, error) {
	if len(head) < ChunkHeader || string(head[:8]) != chunkMagic || binary.LittleEndian.Uint32(head[28:]) != checksum(head[:28]) {
		return Chunk{}, ErrChunk
	}
	return Chunk{
		Number: binary.LittleEndian.Uint64(head[8:]),
		Time:   int64(binary.LittleEndian.Uint64(head[16:])),
		Length: binary.LittleEndian.Uint32(head[24:]),
	}, nil
}
