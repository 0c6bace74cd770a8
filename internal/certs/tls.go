package certs

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"
)

// Clock tells the time that certificates are checked against. nil means the system's clock.
type Clock func() time.Time

// TLSCertificate is the pair with the CA behind it, so that a peer which knows
// only the CA's fingerprint finds the CA in the chain.
func (p Pair) TLSCertificate(ca *x509.Certificate) tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{p.Cert.Raw, ca.Raw}, PrivateKey: p.Key, Leaf: p.Cert}
}

// ServerOptionalClient is the configuration of a member's server. It also lets clients in that show no certificate; one that is shown
// must be of ca.
// The caller looks at ConnectionState.VerifiedChains (see [PeerName]) before it does anything that only members may.
func ServerOptionalClient(p Pair, ca *x509.Certificate, clock Clock) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{p.TLSCertificate(ca)},
		ClientAuth:   tls.VerifyClientCertIfGiven,
		ClientCAs:    pool(ca),
		Time:         clock,
	}
}

// Client is the configuration of a member that talks to another one: it shows its certificate and
// demands one of ca for the host that it dialled.
func Client(p Pair, ca *x509.Certificate, clock Clock) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{p.TLSCertificate(ca)},
		RootCAs:      pool(ca),
		Time:         clock,
	}
}

// ClientByFingerprint is the configuration of a node that knows the cluster only by its CA's fingerprint,
// in either form, and has no certificate yet. The server must present a chain that ends in
// exactly that CA and a certificate for serverName, the host that is dialled. Errors of the handshake: ErrMismatch, x509's.
func ClientByFingerprint(fingerprint, serverName string, clock Clock) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: serverName,
		Time:       clock,
		// The usual verification needs the CA, which arrives with this very
		// handshake; VerifyConnection does all of it.
		InsecureSkipVerify: true, //nolint:gosec // see above
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := verifyByFingerprint(cs.PeerCertificates, fingerprint, serverName, clock)
			return err
		},
	}
}

// CAOf returns the CA that a connection made with ClientByFingerprint was verified against.
func CAOf(cs tls.ConnectionState, fingerprint string) (*x509.Certificate, error) {
	for _, c := range cs.PeerCertificates {
		if c.IsCA && Fingerprint(c) == plainFingerprint(fingerprint) {
			return c, nil
		}
	}
	return nil, fmt.Errorf("%w: the server did not present the cluster CA", ErrMismatch)
}

func verifyByFingerprint(chain []*x509.Certificate, fingerprint, serverName string, clock Clock) (*x509.Certificate, error) {
	ca, err := CAOf(tls.ConnectionState{PeerCertificates: chain}, fingerprint)
	if err != nil {
		return nil, err
	}
	opts := x509.VerifyOptions{
		Roots:     pool(ca),
		DNSName:   serverName,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if clock != nil {
		opts.CurrentTime = clock()
	}
	if _, err := chain[0].Verify(opts); err != nil {
		return nil, fmt.Errorf("verify server %s: %w", serverName, err)
	}
	return ca, nil
}

// PeerName is the node name in the certificate that the other side has proved to own, "" if it showed none.
func PeerName(cs *tls.ConnectionState) string {
	if cs == nil || len(cs.VerifiedChains) == 0 {
		return ""
	}
	return cs.VerifiedChains[0][0].Subject.CommonName
}

func pool(ca *x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca)
	return p
}
