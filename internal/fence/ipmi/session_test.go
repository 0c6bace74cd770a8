package ipmi

import (
	"bytes"
	"net"
	"slices"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/fence"
)

// pair is a session and a BMC's side of it, with keys that nobody had to agree on.
func pair(t *testing.T) (console, bmc *session, server *net.UDPConn) {
	t.Helper()
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("udp4", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = conn.Close(), server.Close() })
	s, err := suiteOf(CipherSHA256)
	if err != nil {
		t.Fatal(err)
	}
	k := keys{integrity: bytes.Repeat([]byte{7}, 32), encryption: bytes.Repeat([]byte{9}, 16)}
	console = &session{ctx: t.Context(), conn: conn, resend: time.Second, suite: s, keys: k, consoleID: 11, bmcID: 22}
	bmc = &session{suite: s, keys: k, consoleID: 22, bmcID: 11}
	return console, bmc, server
}

// answer is an answer to question with a chassis status.
func answer(question, netFn, number byte, status ...byte) []byte {
	head := []byte{consoleAddress, (netFn | 1) << 2}
	rest := append([]byte{bmcAddress, question << 2, number, 0}, status...)
	return slices.Concat(head, []byte{checksum(head)}, rest, []byte{checksum(rest)})
}

func TestAnAuthenticAnswerToAnotherQuestionIsDropped(t *testing.T) {
	console, bmc, server := pair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1024)
		n, from, err := server.ReadFrom(buf)
		d, ok := parseDatagram(buf[:n])
		m, authentic := bmc.unseal(d)
		if err != nil || !ok || !authentic {
			t.Error("the question does not arrive")
			return
		}
		off, on := []byte{0, 0, 0}, []byte{1, 0, 0}
		broken := answer(m[4]>>2, netFnChassis, cmdChassisStatus, off...)
		broken[len(broken)-1]++
		for _, a := range [][]byte{
			answer(m[4]>>2-1, netFnChassis, cmdChassisStatus, off...), // the one before
			answer(m[4]>>2, netFnApp, cmdChassisStatus, off...),
			answer(m[4]>>2, netFnChassis, cmdChassisControl, off...),
			broken,
			answer(m[4]>>2, netFnChassis, cmdChassisStatus, on...),
		} {
			_, _ = server.WriteTo(bmc.seal(a), from)
		}
	}()
	got, err := console.power()
	if err != nil || got != fence.On {
		t.Errorf("%s, %v", got, err)
	}
	<-done
}

func TestADatagramIsTakenOnceAndOnlyAsItWasSealed(t *testing.T) {
	console, bmc, _ := pair(t)
	first, second := bmc.seal([]byte("0123456789")), bmc.seal([]byte("abcdefghij"))
	read := func(b []byte) (string, bool) {
		d, ok := parseDatagram(b)
		if !ok {
			return "", false
		}
		m, ok := console.unseal(d)
		return string(m), ok
	}
	if m, ok := read(second); !ok || m != "abcdefghij" {
		t.Errorf("%q, %v", m, ok)
	}
	for name, b := range map[string][]byte{"again": second, "older": first} {
		if m, ok := read(b); ok {
			t.Errorf("%s: %q", name, m)
		}
	}
	third := bmc.seal([]byte("0123456789"))
	third[5] &^= encrypted // authentic, and claims to be plain
	body := third[rmcpLength : len(third)-bmc.suite.truncated]
	copy(third[len(third)-bmc.suite.truncated:], bmc.suite.mac(bmc.keys.integrity, body))
	if m, ok := read(third); ok {
		t.Errorf("plain: %q", m)
	}
}
