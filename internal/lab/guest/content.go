package guest

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"math/rand/v2"
)

// blockSize is the unit of a file's content. The blocks of a file differ in
// their first eight bytes alone, which are their number: cheap to make on a guest that is emulated,
// and still no block can be missing, doubled or out of order unnoticed.
const blockSize = 64 << 10

// File is a large file with content that both sides can compute: MiB mebibytes made from Seed.
type File struct {
	MiB  int
	Seed uint64
}

// Size in bytes.
func (f File) Size() int64 { return int64(f.MiB) << 20 }

// block returns the content that all blocks share.
func (f File) block() []byte {
	b := make([]byte, blockSize)
	rng := rand.New(rand.NewPCG(f.Seed, uint64(f.MiB)))
	for i := 0; i < blockSize; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	return b
}

// Reader returns the file's content.
func (f File) Reader() io.Reader {
	return &fileReader{block: f.block(), left: f.Size()}
}

type fileReader struct {
	block []byte
	n     uint64 // number of the current block
	off   int    // in the current block
	left  int64
}

func (r *fileReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if r.off == 0 {
		binary.LittleEndian.PutUint64(r.block, r.n)
	}
	n := copy(p, r.block[r.off:])
	r.left -= int64(n)
	if r.off += n; r.off == blockSize {
		r.off, r.n = 0, r.n+1
	}
	return n, nil
}

// Hash returns the SHA-256 of the file in hexadecimal.
func (f File) Hash() string {
	h := sha256.New()
	_, _ = io.Copy(h, f.Reader()) // neither side can fail
	return hex.EncodeToString(h.Sum(nil))
}
