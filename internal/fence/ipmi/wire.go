package ipmi

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // what cipher suite 3 demands
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"slices"
)

// suite is a cipher suite: RAKP authentication, integrity, AES-CBC-128.
type suite struct {
	auth, integrity byte
	hash            func() hash.Hash
	truncated       int // bytes of an integrity code
}

func suiteOf(id int) (suite, error) {
	switch id {
	case CipherSHA1:
		return suite{auth: 0x01, integrity: 0x01, hash: sha1.New, truncated: 12}, nil
	case CipherSHA256:
		return suite{auth: 0x03, integrity: 0x04, hash: sha256.New, truncated: 16}, nil
	}
	return suite{}, fmt.Errorf("%w: cipher suite %d is not allowed: use 17 or 3", errCipher, id)
}

// proposal is the three payloads that name the algorithms, in the open session messages.
func (s suite) proposal() []byte {
	const aesCBC128 = 0x01
	var b []byte
	for kind, algorithm := range []byte{s.auth, s.integrity, aesCBC128} {
		b = append(b, byte(kind), 0, 0, 8, algorithm, 0, 0, 0)
	}
	return b
}

func (s suite) mac(key []byte, parts ...[]byte) []byte {
	h := hmac.New(s.hash, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// handshake is what both sides tell each other in RAKP messages 1 to 4 (specification, 13.20 to 13.24).
type handshake struct {
	password, user     []byte
	console, bmc, guid []byte
	role               byte
}

// keys of a session: integrity, and encryption. sik is the key that both are made from.
type keys struct{ sik, integrity, encryption []byte }

func (h handshake) identity() []byte { return append([]byte{h.role, byte(len(h.user))}, h.user...) }

func (h handshake) bmcProof(s suite, consoleID, bmcID uint32) []byte {
	return s.mac(h.password, le32(consoleID), le32(bmcID), h.console, h.bmc, h.guid, h.identity())
}

func (h handshake) consoleProof(s suite, consoleID uint32) []byte {
	return s.mac(h.password, h.bmc, le32(consoleID), h.identity())
}

func (h handshake) integrity(s suite, k keys, bmcID uint32) []byte {
	return s.mac(k.sik, h.console, le32(bmcID), h.guid)[:s.truncated]
}

func (h handshake) keys(s suite) keys {
	sik := s.mac(h.password, h.console, h.bmc, h.identity())
	const constant = 20 // bytes of the constants, for SHA-256 too
	return keys{
		sik:        sik,
		integrity:  s.mac(sik, bytes.Repeat([]byte{1}, constant)),
		encryption: s.mac(sik, bytes.Repeat([]byte{2}, constant))[:16],
	}
}

// datagram is an RMCP+ packet taken apart.
type datagram struct {
	flags    byte // encrypted, authenticated
	kind     byte // payload type
	session  uint32
	sequence uint32
	payload  []byte
	covered  []byte // what the authentication code covers
	code     []byte
}

const (
	rmcpLength    = 4
	sessionLength = 12 // authentication type to payload length
)

func rmcpHeader() []byte { return []byte{0x06, 0x00, 0xff, rmcpClassIPMI} }

// parseDatagram checks the form only. Everything in it is a copy.
func parseDatagram(b []byte) (datagram, bool) {
	if len(b) < rmcpLength+sessionLength || b[0] != 0x06 || b[3] != rmcpClassIPMI || b[4] != authTypeRMCPPlus {
		return datagram{}, false
	}
	b = slices.Clone(b[rmcpLength:])
	d := datagram{
		flags: b[1] & (encrypted | authenticated), kind: b[1] & 0x3f,
		session: binary.LittleEndian.Uint32(b[2:]), sequence: binary.LittleEndian.Uint32(b[6:]),
	}
	end := sessionLength + int(binary.LittleEndian.Uint16(b[10:]))
	if end > len(b) {
		return datagram{}, false
	}
	d.payload = b[sessionLength:end]
	if d.flags&authenticated == 0 {
		return d, true
	}
	// padding of 0xff, its length, the next header, the code
	padded := end
	for padded < len(b) && b[padded] == 0xff && (padded-end) < 4 {
		padded++
	}
	for ; padded >= end; padded-- {
		if padded+2 <= len(b) && int(b[padded]) == padded-end && b[padded+1] == 0x07 {
			d.covered, d.code = b[:padded+2], b[padded+2:]
			return d, true
		}
	}
	return datagram{}, false
}

// seal encrypts and authenticates an IPMI message.
func (s *session) seal(message []byte) []byte {
	s.sequence++
	var iv [aes.BlockSize]byte
	_, _ = rand.Read(iv[:]) // never fails
	plain := slices.Clone(message)
	pad := (aes.BlockSize - (len(plain)+1)%aes.BlockSize) % aes.BlockSize
	for i := range pad {
		plain = append(plain, byte(i+1))
	}
	plain = append(plain, byte(pad))
	block, err := aes.NewCipher(s.keys.encryption)
	if err != nil {
		panic(err) // the key has 16 bytes
	}
	cipher.NewCBCEncrypter(block, iv[:]).CryptBlocks(plain, plain)
	payload := append(iv[:], plain...)

	packet := slices.Concat([]byte{authTypeRMCPPlus, encrypted | authenticated | payloadIPMI},
		le32(s.bmcID), le32(s.sequence), le16(len(payload)), payload)
	// What is covered, padding length and next header included, is a multiple of four bytes.
	fill := (4 - (len(packet)+2)%4) % 4
	packet = append(packet, bytes.Repeat([]byte{0xff}, fill)...)
	packet = append(packet, byte(fill), 0x07)
	packet = append(packet, s.suite.mac(s.keys.integrity, packet)[:s.suite.truncated]...)
	return append(rmcpHeader(), packet...)
}

// unseal returns the message of a datagram that is this session's, new and authentic.
func (s *session) unseal(d datagram) ([]byte, bool) {
	if d.kind != payloadIPMI || d.flags != encrypted|authenticated || d.session != s.consoleID || d.sequence <= s.heard {
		return nil, false
	}
	if !hmac.Equal(d.code, s.suite.mac(s.keys.integrity, d.covered)[:s.suite.truncated]) {
		return nil, false
	}
	s.heard = d.sequence
	if len(d.payload) < 2*aes.BlockSize || len(d.payload)%aes.BlockSize != 0 {
		return nil, false
	}
	block, err := aes.NewCipher(s.keys.encryption)
	if err != nil {
		panic(err) // the key has 16 bytes
	}
	plain := slices.Clone(d.payload[aes.BlockSize:])
	cipher.NewCBCDecrypter(block, d.payload[:aes.BlockSize]).CryptBlocks(plain, plain)
	end := len(plain) - 1 - int(plain[len(plain)-1])
	if end < 0 {
		return nil, false
	}
	return plain[:end], true
}

// checksum is the two's complement of the sum.
func checksum(b []byte) byte {
	var sum byte
	for _, c := range b {
		sum += c
	}
	return -sum
}

func le16(n int) []byte { return binary.LittleEndian.AppendUint16(nil, uint16(n)) }

func le32(n uint32) []byte { return binary.LittleEndian.AppendUint32(nil, n) }
