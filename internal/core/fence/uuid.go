package fence

import (
	"encoding/hex"
	"slices"
	"strings"
)

// parseUUID reads a UUID in any usual spelling.
func parseUUID(s string) (u [16]byte, ok bool) {
	text := strings.NewReplacer("-", "", "{", "", "}", "").Replace(strings.TrimPrefix(strings.ToLower(strings.TrimSpace(s)), "urn:uuid:"))
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(u) {
		return u, false
	}
	copy(u[:], b)
	return u, true
}

// ValidUUID says whether s is a UUID that can tell machines apart: not the ones that boards have whose maker set none.
func ValidUUID(s string) bool {
	u, ok := parseUUID(s)
	if !ok {
		return false
	}
	same := true
	for _, b := range u {
		same = same && b == u[0]
	}
	placeholders := []string{
		"03000200040005000006000700080009", "00020003000400050006000700080009", // many desktop boards
		"00112233445566778899aabbccddeeff", // the specification's example
	}
	return !same && !slices.Contains(placeholders, hex.EncodeToString(u[:]))
}

// SameSystem says whether two UUIDs are one machine's. BMCs, firmware and the kernel disagree about the order of
// its bytes: as it is written, with the first three fields turned round (SMBIOS), or turned round as a whole (IPMI).
func SameSystem(a, b string) bool {
	x, okX := parseUUID(a)
	y, okY := parseUUID(b)
	if !okX || !okY {
		return false
	}
	reversed := y
	slices.Reverse(reversed[:])
	return x == y || x == swapped(y) || x == reversed || x == swapped(reversed)
}

// swapped turns the first three fields round.
func swapped(u [16]byte) [16]byte {
	slices.Reverse(u[0:4])
	slices.Reverse(u[4:6])
	slices.Reverse(u[6:8])
	return u
}
