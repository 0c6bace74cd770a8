// Package certs is the cluster's certificate authority and the TLS configurations made from it.
//
// One CA per cluster signs one certificate per node, which serves as client and as server
// certificate, for the store and for the API. The package holds no state and reads no clock:
// times are parameters. Users' passwords and API tickets are not its business.
//
// Invariant: a connection built here is either authenticated by the cluster CA on both sides, or it is one of
// the two exceptions that joining needs, [ServerOptionalClient] and [ClientByFingerprint]. Start reading with [NewCA].
package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"strings"
	"time"

	"sauh.dev/sauh/internal/sys"
)

// Validity of the CA and of the certificates it signs.
const (
	// CAYears is how long a CA is valid: longer than hardware lives, since replacing it touches every node.
	CAYears = 10
	// NodeYears is how long a node's certificate is valid; the CA's own end cuts it.
	NodeYears = 10
	// backdate lets a node whose clock is a little behind accept a new certificate.
	backdate = 10 * time.Minute
)

// ErrMismatch means that a certificate, key, CA or fingerprint does not belong to the others.
var ErrMismatch = errors.New("certificate does not match")

// Pair is a certificate with its private key.
type Pair struct {
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey
}

// NewCA makes the CA of the cluster named, valid for CAYears from now.
func NewCA(cluster string, now time.Time) (Pair, error) {
	key, err := newKey()
	if err != nil {
		return Pair{}, err
	}
	serial, err := newSerial()
	if err != nil {
		return Pair{}, err
	}
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"Sauh"}, CommonName: "Sauh cluster " + cluster},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.AddDate(CAYears, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return Pair{}, fmt.Errorf("create CA of cluster %s: %w", cluster, err)
	}
	return pairOf(der, key)
}

// NewRequest makes a key for the node named and the PEM request that [Sign] turns into its certificate.
// addresses are the node's IPs.
func NewRequest(node string, addresses []string) (key *ecdsa.PrivateKey, csrPEM []byte, err error) {
	ips, err := parseIPs(addresses)
	if err != nil {
		return nil, nil, err
	}
	if key, err = newKey(); err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:     subject(node),
		DNSNames:    []string{node, "localhost"},
		IPAddresses: append(ips, net.IPv4(127, 0, 0, 1)),
	}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("request certificate of node %s: %w", node, err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: blockCSR, Bytes: der}), nil
}

// Sign makes a node's certificate from its request; p is the CA. Only the public key is taken from the request:
// name and addresses are what the caller says, "localhost" and 127.0.0.1 are added.
// Errors: ErrMismatch if the request is not signed by its own key.
func (p Pair) Sign(csrPEM []byte, node string, addresses []string, now time.Time) (*x509.Certificate, error) {
	ips, err := parseIPs(addresses)
	if err != nil {
		return nil, err
	}
	der, err := decode(csrPEM, blockCSR)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of node %s: %w", node, err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of node %s: %w", node, err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("sign certificate of node %s: %w: %w", node, ErrMismatch, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	end := now.AddDate(NodeYears, 0, 0)
	if end.After(p.Cert.NotAfter) {
		end = p.Cert.NotAfter
	}
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               subject(node),
		DNSNames:              []string{node, "localhost"},
		IPAddresses:           append(ips, net.IPv4(127, 0, 0, 1)),
		NotBefore:             now.Add(-backdate),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	signed, err := x509.CreateCertificate(rand.Reader, t, p.Cert, csr.PublicKey, p.Key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of node %s: %w", node, err)
	}
	return x509.ParseCertificate(signed)
}

// Issue makes a key and its certificate in one step, for the node that holds the CA, p.
func (p Pair) Issue(node string, addresses []string, now time.Time) (Pair, error) {
	key, csr, err := NewRequest(node, addresses)
	if err != nil {
		return Pair{}, err
	}
	cert, err := p.Sign(csr, node, addresses, now)
	if err != nil {
		return Pair{}, err
	}
	return Pair{Cert: cert, Key: key}, nil
}

// Fingerprint is the SHA-256 of a certificate's DER form in lower-case hexadecimal.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// plainFingerprint brings both forms to the first one.
func plainFingerprint(s string) string {
	return strings.ToLower(strings.ReplaceAll(s, ":", ""))
}

// The PEM block types that the package writes and reads.
const (
	blockCert = "CERTIFICATE"
	blockCSR  = "CERTIFICATE REQUEST"
	blockKey  = "EC PRIVATE KEY"
)

// EncodeCert prints a certificate as PEM.
func EncodeCert(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: blockCert, Bytes: cert.Raw})
}

// EncodeKey prints a private key as PEM.
func EncodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: blockKey, Bytes: der}), nil
}

// ParseCert reads the first certificate of a PEM text.
func ParseCert(pemText []byte) (*x509.Certificate, error) {
	der, err := decode(pemText, blockCert)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse certificate: %w", err)
	}
	return cert, nil
}

// ParsePair reads a certificate and its key. ErrMismatch if they do not belong together.
func ParsePair(certPEM, keyPEM []byte) (Pair, error) {
	cert, err := ParseCert(certPEM)
	if err != nil {
		return Pair{}, err
	}
	der, err := decode(keyPEM, blockKey)
	if err != nil {
		return Pair{}, err
	}
	key, err := x509.ParseECPrivateKey(der)
	if err != nil {
		return Pair{}, fmt.Errorf("parse private key: %w", err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return Pair{}, fmt.Errorf("%w: the key is not that of %s", ErrMismatch, cert.Subject.CommonName)
	}
	return Pair{Cert: cert, Key: key}, nil
}

// Save writes the certificate and the key, each by renaming a finished file with mode 0600 into place.
func (p Pair) Save(certFile, keyFile string) error {
	key, err := EncodeKey(p.Key)
	if err != nil {
		return err
	}
	if err := sys.WriteFile(keyFile, key); err != nil {
		return err
	}
	return sys.WriteFile(certFile, EncodeCert(p.Cert))
}

// Load reads what Save wrote. Errors: os.ErrNotExist, ErrMismatch.
func Load(certFile, keyFile string) (Pair, error) {
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return Pair{}, fmt.Errorf("load certificate: %w", err)
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return Pair{}, fmt.Errorf("load private key: %w", err)
	}
	p, err := ParsePair(cert, key)
	if err != nil {
		return Pair{}, fmt.Errorf("load %s and %s: %w", certFile, keyFile, err)
	}
	return p, nil
}

// LoadCert reads a certificate file. Errors: os.ErrNotExist.
func LoadCert(file string) (*x509.Certificate, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("load certificate: %w", err)
	}
	cert, err := ParseCert(text)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", file, err)
	}
	return cert, nil
}

func subject(node string) pkix.Name {
	return pkix.Name{Organization: []string{"Sauh"}, CommonName: node}
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	return key, nil
}

// newSerial is random, so that nobody needs to remember which were given out.
func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("generate serial number: %w", err)
	}
	return serial, nil
}

func pairOf(der []byte, key *ecdsa.PrivateKey) (Pair, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return Pair{}, fmt.Errorf("parse certificate: %w", err)
	}
	return Pair{Cert: cert, Key: key}, nil
}

func decode(text []byte, blockType string) ([]byte, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == blockType {
			return block.Bytes, nil
		}
	}
	return nil, fmt.Errorf("no PEM block %q found", blockType)
}

func parseIPs(addresses []string) ([]net.IP, error) {
	ips := make([]net.IP, 0, len(addresses)+1)
	for _, a := range addresses {
		ip := net.ParseIP(a)
		if ip == nil {
			return nil, fmt.Errorf("%q is not an IP address", a)
		}
		ips = append(ips, ip)
	}
	return ips, nil
}
