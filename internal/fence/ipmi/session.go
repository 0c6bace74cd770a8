package ipmi

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

// errCipher: the BMC does not have the cipher suite.
var errCipher = errors.New("the BMC does not have the cipher suite")

// errSilent: no answer came. A BMC that lost track of a session never answers in it again, so the whole is begun anew.
var errSilent = errors.New("the BMC does not answer")

// sends is how often a datagram is sent in one session.
const sends = 2

// Payload types of RMCP+.
const (
	payloadIPMI         = 0x00
	payloadOpenRequest  = 0x10
	payloadOpenResponse = 0x11
	payloadRAKP1        = 0x12
	payloadRAKP2        = 0x13
	payloadRAKP3        = 0x14
	payloadRAKP4        = 0x15

	encrypted     = 0x80
	authenticated = 0x40

	authTypeRMCPPlus = 0x06
	rmcpClassIPMI    = 0x07

	// byName in RAKP 1's role: the user is found by name alone.
	byName = 0x10

	consoleAddress = 0x81
	bmcAddress     = 0x20
)

// session is one session with a BMC, from the first datagram to the last. One question is under way at a time.
type session struct {
	ctx    context.Context // of the call that the session lives in
	conn   net.Conn
	resend time.Duration
	suite  suite

	consoleID, bmcID uint32
	tag              byte // of the messages that open the session
	sequence         uint32
	heard            uint32 // highest sequence number of the BMC
	question         byte   // sequence number of the IPMI message, 6 bits
	keys             keys
}

// open does the three exchanges after which both sides have shown that they know the password. No more
// than privilege is asked for: the user needs to have no more.
func (s *session) open(user, password string, privilege byte) error {
	if len(user) > 16 || len(password) > 20 {
		return fmt.Errorf("%w: IPMI allows 16 characters for the user and 20 for the password", ErrAuth)
	}
	var random [20]byte
	_, _ = rand.Read(random[:]) // never fails
	s.consoleID = binary.LittleEndian.Uint32(random[16:]) | 1
	h := handshake{password: []byte(password), user: []byte(user), console: random[:16], role: byName | privilege}

	body := slices.Concat([]byte{0, privilege, 0, 0}, le32(s.consoleID), s.suite.proposal())
	answer, err := s.shake(payloadOpenRequest, payloadOpenResponse, body, 36)
	if err != nil {
		return err
	}
	if !bytes.Equal(answer[12:36], s.suite.proposal()) {
		return fmt.Errorf("%w: it chose another cipher suite", errCipher)
	}
	s.bmcID = binary.LittleEndian.Uint32(answer[8:])

	body = slices.Concat([]byte{0, 0, 0, 0}, le32(s.bmcID), h.console, []byte{h.role, 0, 0, byte(len(user))}, h.user)
	answer, err = s.shake(payloadRAKP1, payloadRAKP2, body, 40)
	if err != nil {
		return err
	}
	h.bmc, h.guid = slices.Clone(answer[8:24]), slices.Clone(answer[24:40])
	if !hmac.Equal(answer[40:], h.bmcProof(s.suite, s.consoleID, s.bmcID)) {
		return fmt.Errorf("%w: the BMC does not know this password", ErrAuth)
	}

	s.keys = h.keys(s.suite)
	body = slices.Concat([]byte{0, 0, 0, 0}, le32(s.bmcID), h.consoleProof(s.suite, s.consoleID))
	answer, err = s.shake(payloadRAKP3, payloadRAKP4, body, 8)
	if err != nil {
		return err
	}
	if !hmac.Equal(answer[8:], h.integrity(s.suite, s.keys, s.bmcID)) {
		return fmt.Errorf("%w: the last message of the handshake is not authentic", ErrAuth)
	}
	return nil
}

// shake is one exchange of the handshake; the answer has at least length bytes and status 0.
func (s *session) shake(ask, want byte, body []byte, length int) ([]byte, error) {
	s.tag++
	body[0] = s.tag
	packet := slices.Concat(rmcpHeader(), []byte{authTypeRMCPPlus, ask}, le32(0), le32(0), le16(len(body)), body)
	var answer []byte
	err := s.exchange(packet, func(p datagram) bool {
		if p.kind != want || p.session != 0 || len(p.payload) < 2 || p.payload[0] != s.tag {
			return false
		}
		answer = p.payload
		refused := answer[1] != 0 // then nothing need follow
		return refused || len(answer) >= 8 && binary.LittleEndian.Uint32(answer[4:]) == s.consoleID
	})
	if err != nil {
		return nil, err
	}
	if err := statusError(answer[1]); err != nil {
		return nil, err
	}
	if len(answer) < length {
		return nil, fmt.Errorf("%w: message %#02x has %d bytes", ErrProtocol, want, len(answer))
	}
	return answer, nil
}

// statusError translates the status of a handshake message, table 13-15.
func statusError(status byte) error {
	switch status {
	case 0:
		return nil
	case 0x04, 0x05, 0x06, 0x07, 0x10, 0x11:
		return fmt.Errorf("%w: status %#02x", errCipher, status)
	case 0x09, 0x0a, 0x0c, 0x0d, 0x0e, 0x0f:
		return fmt.Errorf("%w: status %#02x", ErrAuth, status)
	}
	return fmt.Errorf("%w: the session was refused with status %#02x", ErrProtocol, status)
}

// command sends one IPMI command and returns the data of its answer. A completion code other than 0 is a CompletionError.
func (s *session) command(netFn, number byte, data ...byte) ([]byte, error) {
	s.question = (s.question + 1) & 0x3f
	head := []byte{bmcAddress, netFn << 2}
	rest := append([]byte{consoleAddress, s.question << 2, number}, data...)
	message := slices.Concat(head, []byte{checksum(head)}, rest, []byte{checksum(rest)})
	var answer []byte
	match := func(p datagram) bool {
		m, ok := s.unseal(p)
		if !ok || len(m) < 8 || m[1]>>2 != netFn|1 || m[4]>>2 != s.question || m[5] != number {
			return false
		}
		if checksum(m[:2]) != m[2] || checksum(m[3:len(m)-1]) != m[len(m)-1] {
			return false
		}
		answer = m[6 : len(m)-1]
		return true
	}
	// Each time that it is sent it is a new packet with a number of its own: one that arrives twice is dropped by the BMC.
	if err := s.exchangeNew(func() []byte { return s.seal(message) }, match); err != nil {
		return nil, err
	}
	if answer[0] != 0 {
		return nil, CompletionError(answer[0])
	}
	return answer[1:], nil
}

// close says goodbye and does not wait for an answer: BMCs have few sessions to give.
func (s *session) close() {
	body := le32(s.bmcID)
	head := []byte{bmcAddress, netFnApp << 2}
	rest := append([]byte{consoleAddress, (s.question + 1) << 2, cmdCloseSession}, body...)
	_ = s.conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	_, _ = s.conn.Write(s.seal(slices.Concat(head, []byte{checksum(head)}, rest, []byte{checksum(rest)})))
}

func (s *session) exchange(packet []byte, match func(datagram) bool) error {
	return s.exchangeNew(func() []byte { return packet }, match)
}

// exchangeNew sends what next makes until a datagram matches, the context ends, or nothing came (errSilent). What
// does not match is dropped.
func (s *session) exchangeNew(next func() []byte, match func(datagram) bool) error {
	buf := make([]byte, 1024)
	for range sends {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		if _, err := s.conn.Write(next()); err != nil {
			return err
		}
		_ = s.conn.SetReadDeadline(time.Now().Add(s.resend))
		for s.ctx.Err() == nil {
			n, err := s.conn.Read(buf)
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				break
			}
			if err != nil {
				return err
			}
			if p, ok := parseDatagram(buf[:n]); ok && match(p) {
				return nil
			}
		}
	}
	return errSilent
}
