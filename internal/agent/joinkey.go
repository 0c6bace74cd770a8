package agent

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// joinKey is what a person carries from a member to the machine that joins:
// where to ask, whom to trust, and a secret that works once.
type joinKey struct {
	Cluster     string   `json:"cluster"`
	Fingerprint string   `json:"fingerprint"` // SHA-256 of the cluster CA
	Addresses   []string `json:"addresses"`   // of members, best first
	ID          string   `json:"id"`
	Secret      string   `json:"secret"`
	Expires     int64    `json:"expires"` // Unix seconds
}

// joinSecret is the store's side of a key: the secret itself is not kept.
type joinSecret struct {
	Hash    string `json:"hash"` // SHA-256 of the secret, hexadecimal
	Expires int64  `json:"expires"`
	By      string `json:"by"`
}

const joinKeyPrefix = "sauh1-"

func (k joinKey) encode() string {
	return joinKeyPrefix + base64.RawURLEncoding.EncodeToString(mustJSON(k))
}

func parseJoinKey(s string) (joinKey, error) {
	var k joinKey
	bad := model.Invalidf("key", "this is not a join key: copy the whole line that `sauh cluster key` printed on a member, it begins with %s", joinKeyPrefix)
	enc, ok := strings.CutPrefix(strings.TrimSpace(s), joinKeyPrefix)
	if !ok {
		return k, bad
	}
	data, err := base64.RawURLEncoding.DecodeString(enc)
	if err != nil || json.Unmarshal(data, &k) != nil || k.ID == "" || k.Secret == "" || len(k.Addresses) == 0 {
		return joinKey{}, bad
	}
	return k, nil
}

func newSecret() (secret string, stored joinSecret) {
	b := make([]byte, 24)
	_, _ = rand.Read(b) // crypto/rand never fails on Linux
	secret = base64.RawURLEncoding.EncodeToString(b)
	return secret, joinSecret{Hash: hashSecret(secret)}
}

func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

func (s joinSecret) matches(secret string) bool {
	return subtle.ConstantTimeCompare([]byte(s.Hash), []byte(hashSecret(secret))) == 1
}

// maxClockDifference is how far a joining node's clock may be off: beyond it logs
// and certificates mislead, though no lease depends on the wall clock.
const maxClockDifference = 2 * time.Second

// joinRequest is what a node sends that wants to become a member.
type joinRequest struct {
	ID     string     `json:"id"`
	Secret string     `json:"secret"`
	Node   model.Node `json:"node"`
	CSR    string     `json:"csr"`  // PEM
	Time   int64      `json:"time"` // Unix nanoseconds, read just before sending
}

// joinReply is all a node needs to start its store.
type joinReply struct {
	Cluster model.Cluster       `json:"cluster"`
	Node    model.Node          `json:"node"`
	CA      string              `json:"ca"`   // PEM
	Cert    string              `json:"cert"` // PEM
	Initial map[string][]string `json:"initial"`
}
