package beacon

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// MaxDatagram is the size of the largest datagram in bytes: it passes every link that carries IPv6 (1280), whole, with its headers.
const MaxDatagram = 1200

const (
	magic   = "SBn1" // the last character is the version
	maxName = 63
	maxBoot = 36 // a UUID as text
	macSize = sha256.Size
	// maxHeader: magic, key, network, six numbers, count, two names and two boot ids with their lengths.
	maxHeader = len(magic) + 4 + 1 + 6*8 + 2 + 2*(1+maxName) + 2*(1+maxBoot)
	claimRoom = MaxDatagram - maxHeader - macSize
)

// MinSecret is the shortest secret that is accepted, in bytes: that of the hash.
const MinSecret = sha256.Size

// Why a datagram was not read.
var (
	ErrMalformed  = errors.New("not a beacon")
	ErrUnknownKey = errors.New("signed with a key that this node does not have")
	ErrForged     = errors.New("the signature is wrong")
)

// Key is a secret of the cluster's and its number.
type Key struct {
	ID     uint32
	Secret []byte
}

// Validate refuses names that no datagram can carry. Its errors are model.ErrInvalid.
func Validate(node, boot string) error {
	if err := model.ValidateNodeName(node); err != nil {
		return err
	}
	if boot == "" || len(boot) > maxBoot {
		return model.Invalidf("boot", "%q is not a boot id: it has 1 to %d characters", boot, maxBoot)
	}
	return nil
}

// Seal encodes and signs a message. Its names must be valid; its claims must be a Recorder's Beat.
func Seal(m Message, k Key) []byte {
	b := make([]byte, 0, MaxDatagram)
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint32(b, k.ID)
	b = append(b, byte(m.Network))
	for _, s := range []string{m.From, m.To, m.Boot, m.Echo.Boot} {
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	for _, n := range []uint64{m.Epoch, m.Seq, uint64(m.Sent), uint64(m.Sampled), uint64(m.Echo.Sent), uint64(m.Echo.Arrived)} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Claims)))
	for _, c := range m.Claims {
		b = appendClaim(b, c, m.Sampled)
	}
	return sign(b, k)
}

func sign(b []byte, k Key) []byte { return append(b, mac(b, k)...) }

func mac(b []byte, k Key) []byte {
	h := hmac.New(sha256.New, k.Secret)
	h.Write(b)
	return h.Sum(nil)
}

// appendClaim writes Until as its distance from the last look, which is 0 for what runs. The lowest bit is Ended.
func appendClaim(b []byte, c Claim, sampled time.Duration) []byte {
	b = binary.AppendUvarint(b, uint64(c.VMID))
	b = binary.AppendUvarint(b, c.Epoch)
	b = binary.AppendUvarint(b, uint64(c.Revision))
	b = binary.AppendUvarint(b, uint64(c.Since.Milliseconds()))
	last := uint64((sampled - c.Until).Milliseconds()) << 1
	if c.Ended {
		last |= 1
	}
	return binary.AppendUvarint(b, last)
}

func claimSize(c Claim, sampled time.Duration) int {
	var buf [5 * binary.MaxVarintLen64]byte
	return len(appendClaim(buf[:0], c, sampled))
}

// Open checks the signature with the key that the datagram names, and decodes it.
// Errors: ErrMalformed, ErrUnknownKey, ErrForged.
func Open(data []byte, keys []Key) (Message, error) {
	if len(data) > MaxDatagram || len(data) < len(magic)+4+macSize || string(data[:len(magic)]) != magic {
		return Message{}, ErrMalformed
	}
	id := binary.BigEndian.Uint32(data[len(magic):])
	body, got := data[:len(data)-macSize], data[len(data)-macSize:]
	for _, k := range keys {
		if k.ID != id {
			continue
		}
		if !hmac.Equal(mac(body, k), got) {
			return Message{}, ErrForged
		}
		return decode(body[len(magic)+4:])
	}
	return Message{}, ErrUnknownKey
}

func decode(b []byte) (Message, error) {
	r := reader{b: b}
	m := Message{Network: Network(r.byte())}
	m.From, m.To, m.Boot, m.Echo.Boot = r.text(maxName), r.text(maxName), r.text(maxBoot), r.text(maxBoot)
	m.Epoch, m.Seq = r.word(), r.word()
	m.Sent, m.Sampled, m.Echo.Sent, m.Echo.Arrived = r.time(), r.time(), r.time(), r.time()
	for range int(r.byte())<<8 | int(r.byte()) {
		if r.bad {
			break
		}
		m.Claims = append(m.Claims, r.claim(m.Sampled))
	}
	if r.bad || len(r.b) != 0 || m.Network >= networks || m.From == "" || m.Boot == "" || m.Sampled > m.Sent {
		return Message{}, fmt.Errorf("signed, but cut or of another version: %w", ErrMalformed)
	}
	return m, nil
}

// reader takes a datagram apart. After the end everything is zero and bad is set.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.bad, r.b = true, nil
		return make([]byte, n)
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) byte() byte { return r.take(1)[0] }

func (r *reader) word() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

func (r *reader) text(most int) string {
	n := int(r.byte())
	r.bad = r.bad || n > most
	return string(r.take(n))
}

// limit is the longest time that is believed, a century: additions of times so short do not overflow.
const limit = 100 * 365 * 24 * time.Hour

func (r *reader) time() time.Duration { return r.checked(time.Duration(r.word())) }

func (r *reader) checked(d time.Duration) time.Duration {
	if d < 0 || d > limit {
		r.bad = true
		return 0
	}
	return d
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) millis(v uint64) time.Duration {
	if v > uint64(limit.Milliseconds()) {
		r.bad = true
		return 0
	}
	return r.checked(time.Duration(v) * time.Millisecond)
}

func (r *reader) claim(sampled time.Duration) Claim {
	c := Claim{VMID: model.VMID(r.uvarint()), Epoch: r.uvarint(), Revision: int64(r.uvarint())}
	c.Since = r.millis(r.uvarint())
	last := r.uvarint()
	c.Until, c.Ended = sampled-r.millis(last>>1), last&1 == 1
	if c.VMID < model.MinVMID || c.VMID > model.MaxVMID || c.Until < 0 {
		r.bad = true
	}
	return c
}
