package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/certs"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func at(t time.Time) certs.Clock { return func() time.Time { return t } }

func newCA(t *testing.T) certs.Pair {
	t.Helper()
	ca, err := certs.NewCA("c1", now)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t *testing.T, ca certs.Pair, node string) certs.Pair {
	t.Helper()
	p, err := ca.Issue(node, []string{"10.10.1.1", "10.10.2.1"}, now)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// handshake connects the two over a pipe and returns the server's view of the client and what each side says.
func handshake(t *testing.T, server, client *tls.Config) (peer string, serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	deadline := time.Now().Add(5 * time.Second)
	_ = a.SetDeadline(deadline)
	_ = b.SetDeadline(deadline)
	s, c := tls.Server(a, server), tls.Client(b, client)
	done := make(chan error, 1)
	go func() {
		err := s.HandshakeContext(context.Background())
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		if err != nil {
			_ = a.Close()
		}
		done <- err
	}()
	clientErr = c.HandshakeContext(t.Context())
	if clientErr == nil { // in TLS 1.3 the server's refusal arrives with the first read
		_, clientErr = io.ReadFull(c, make([]byte, 1))
	}
	_ = b.Close()
	serverErr = <-done
	state := s.ConnectionState()
	return certs.PeerName(&state), serverErr, clientErr
}

func clientFor(p certs.Pair, ca *x509.Certificate, clock certs.Clock, host string) *tls.Config {
	c := certs.Client(p, ca, clock)
	c.ServerName = host
	return c
}

func TestNodeCertificateNamesTheNodeBothAddressesAndTheLocalHost(t *testing.T) {
	ca := newCA(t)
	cert := issue(t, ca, "n1").Cert
	for _, host := range []string{"n1", "10.10.1.1", "10.10.2.1", "localhost", "127.0.0.1"} {
		if err := cert.VerifyHostname(host); err != nil {
			t.Errorf("host %s: %v", host, err)
		}
	}
	if err := cert.VerifyHostname("n2"); err == nil {
		t.Error("host n2 is accepted, want it refused")
	}
}

func TestCAIsValidForTenYears(t *testing.T) {
	ca := newCA(t)
	if d := cmp.Diff(now.AddDate(10, 0, 0), ca.Cert.NotAfter); d != "" {
		t.Errorf("end (-want +got):\n%s", d)
	}
	late, err := ca.Issue("n1", nil, now.AddDate(5, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(ca.Cert.NotAfter, late.Cert.NotAfter); d != "" {
		t.Errorf("end of a node's certificate (-want +got):\n%s", d)
	}
}

func TestMembersRecogniseEachOther(t *testing.T) {
	ca := newCA(t)
	n1, n2 := issue(t, ca, "n1"), issue(t, ca, "n2")
	for _, host := range []string{"10.10.1.1", "10.10.2.1", "n1"} {
		peer, se, ce := handshake(t, certs.ServerOptionalClient(n1, ca.Cert, at(now)), clientFor(n2, ca.Cert, at(now), host))
		if se != nil || ce != nil || peer != "n2" {
			t.Errorf("host %s: server %v, client %v, peer %q; want no errors and n2", host, se, ce, peer)
		}
	}
}

func TestServerRefusesAClientOfAnotherCA(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	n1, stranger := issue(t, ca, "n1"), issue(t, other, "n2")
	_, se, ce := handshake(t, certs.ServerOptionalClient(n1, ca.Cert, at(now)), clientFor(stranger, ca.Cert, at(now), "n1"))
	if se == nil || ce == nil {
		t.Errorf("server %v, client %v; want errors", se, ce)
	}
}

func TestAClientWithoutCertificateIsLetInWithoutAName(t *testing.T) {
	ca := newCA(t)
	n1 := issue(t, ca, "n1")
	client := certs.ClientByFingerprint(certs.Fingerprint(ca.Cert), "10.10.1.1", at(now))
	peer, se, ce := handshake(t, certs.ServerOptionalClient(n1, ca.Cert, at(now)), client)
	if se != nil || ce != nil || peer != "" {
		t.Errorf("server %v, client %v, peer %q; want no errors and no name", se, ce, peer)
	}
}

func TestClientRefusesAServerOfAnotherCA(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	impostor, n2 := issue(t, other, "n1"), issue(t, ca, "n2")
	_, _, ce := handshake(t, certs.ServerOptionalClient(impostor, ca.Cert, at(now)), clientFor(n2, ca.Cert, at(now), "n1"))
	var unknown x509.UnknownAuthorityError
	if !errors.As(ce, &unknown) {
		t.Errorf("client error %v, want an unknown authority", ce)
	}
}

func TestExpiredCertificatesAreRefused(t *testing.T) {
	ca := newCA(t)
	n1, n2 := issue(t, ca, "n1"), issue(t, ca, "n2")
	later := at(now.AddDate(11, 0, 0))
	for name, client := range map[string]*tls.Config{
		"member":      clientFor(n2, ca.Cert, later, "n1"),
		"fingerprint": certs.ClientByFingerprint(certs.Fingerprint(ca.Cert), "n1", later),
	} {
		_, _, ce := handshake(t, certs.ServerOptionalClient(n1, ca.Cert, at(now)), client)
		var invalid x509.CertificateInvalidError
		if !errors.As(ce, &invalid) || invalid.Reason != x509.Expired {
			t.Errorf("%s: client error %v, want expired", name, ce)
		}
	}
	if _, se, _ := handshake(t, certs.ServerOptionalClient(n1, ca.Cert, later), clientFor(n2, ca.Cert, at(now), "n1")); se == nil {
		t.Error("the server accepts an expired client")
	}
}

func TestAFingerprintIsTrustedInBothForms(t *testing.T) {
	ca := newCA(t)
	n1 := issue(t, ca, "n1")
	plain := strings.ToUpper(certs.Fingerprint(ca.Cert))
	var pairs []string
	for i := 0; i < len(plain); i += 2 {
		pairs = append(pairs, plain[i:i+2])
	}
	colon := strings.Join(pairs, ":")
	for _, f := range []string{colon, certs.Fingerprint(ca.Cert)} {
		_, se, ce := handshake(t, certs.ServerOptionalClient(n1, ca.Cert, at(now)), certs.ClientByFingerprint(f, "n1", at(now)))
		if se != nil || ce != nil {
			t.Errorf("%s: server %v, client %v; want no errors", f, se, ce)
		}
	}
}

func TestAWrongFingerprintIsRefused(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	n1 := issue(t, ca, "n1")
	for name, f := range map[string]string{
		"another CA's": certs.Fingerprint(other.Cert),
		"the node's":   certs.Fingerprint(n1.Cert), // only the CA may be pinned: a leaf does not sign itself
		"empty":        "",
	} {
		_, _, ce := handshake(t, certs.ServerOptionalClient(n1, ca.Cert, at(now)), certs.ClientByFingerprint(f, "n1", at(now)))
		if ce == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// An impostor can copy the CA's certificate, which is public, into its chain.
func TestTheRightCAInTheChainOfAForeignCertificateIsRefused(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	impostor := issue(t, other, "n1")
	server := certs.ServerOptionalClient(impostor, ca.Cert, at(now)) // presents the leaf of other and the certificate of ca
	_, _, ce := handshake(t, server, certs.ClientByFingerprint(certs.Fingerprint(ca.Cert), "n1", at(now)))
	var unknown x509.UnknownAuthorityError
	if !errors.As(ce, &unknown) {
		t.Errorf("client error %v, want an unknown authority", ce)
	}
}

func TestAFingerprintClientChecksTheHost(t *testing.T) {
	ca := newCA(t)
	n1 := issue(t, ca, "n1")
	_, _, ce := handshake(t, certs.ServerOptionalClient(n1, ca.Cert, at(now)),
		certs.ClientByFingerprint(certs.Fingerprint(ca.Cert), "10.10.1.9", at(now)))
	var host x509.HostnameError
	if !errors.As(ce, &host) {
		t.Errorf("client error %v, want a wrong host", ce)
	}
}

func TestSigningTakesNothingButTheKeyFromTheRequest(t *testing.T) {
	ca := newCA(t)
	_, csr, err := certs.NewRequest("admin", []string{"10.10.1.7"})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Sign(csr, "n7", []string{"10.10.1.8"}, now)
	if err != nil {
		t.Fatal(err)
	}
	if cert.Subject.CommonName != "n7" || cert.VerifyHostname("10.10.1.7") == nil || cert.VerifyHostname("admin") == nil || cert.IsCA {
		t.Errorf("subject %s, names %v, addresses %v, CA %v; want those of n7 alone", cert.Subject, cert.DNSNames, cert.IPAddresses, cert.IsCA)
	}
}

func TestBadRequestsAreRefused(t *testing.T) {
	ca := newCA(t)
	_, csr, err := certs.NewRequest("n1", nil)
	if err != nil {
		t.Fatal(err)
	}
	broken := []byte(strings.Replace(string(csr), "MI", "NI", 1))
	for name, request := range map[string][]byte{"no PEM": []byte("hello"), "broken": broken, "a certificate": certs.EncodeCert(ca.Cert)} {
		if _, err := ca.Sign(request, "n1", nil, now); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := ca.Sign(csr, "n1", []string{"nowhere"}, now); err == nil {
		t.Error("an address that is none: no error")
	}
}

func TestSavedPairsLoadAgainAndOnlyTheOwnerReadsThem(t *testing.T) {
	ca := newCA(t)
	dir := filepath.Join(t.TempDir(), "certs")
	certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	for range 2 { // over an existing file too
		if err := ca.Save(certFile, keyFile); err != nil {
			t.Fatal(err)
		}
	}
	got, err := certs.Load(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Cert.Equal(ca.Cert) || !got.Key.Equal(ca.Key) {
		t.Error("the pair changed on its way over the disk")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	modes := map[string]os.FileMode{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		modes[e.Name()] = info.Mode()
	}
	if d := cmp.Diff(map[string]os.FileMode{"ca.pem": 0o600, "ca.key": 0o600}, modes); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
}

func TestAKeyThatIsNotTheCertificatesIsRefused(t *testing.T) {
	ca := newCA(t)
	a, b := issue(t, ca, "n1"), issue(t, ca, "n2")
	key, err := certs.EncodeKey(b.Key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := certs.ParsePair(certs.EncodeCert(a.Cert), key); !errors.Is(err, certs.ErrMismatch) {
		t.Errorf("error %v, want ErrMismatch", err)
	}
	if _, err := certs.Load("/nonexistent/a", "/nonexistent/b"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Load of a missing file: error %v, want os.ErrNotExist", err)
	}
}
