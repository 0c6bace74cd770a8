package lease

import (
	"strconv"
	"strings"
)

// A pill is a small file on a shared storage through which a node that has no
// network but its storage learns that it was fenced: who takes over writes the node's new epoch into it.

// MaxPill is the most that a reader of a pill needs to read, in bytes.
const MaxPill = 32

// FormatPill returns the content of a pill.
func FormatPill(epoch uint64) []byte { return []byte(strconv.FormatUint(epoch, 10) + "\n") }

// ParsePill reads the content of a pill; ok is false for anything else, a half-written one included.
func ParsePill(b []byte) (epoch uint64, ok bool) {
	digits, whole := strings.CutSuffix(string(b), "\n")
	if !whole || digits == "" || digits[0] < '0' || digits[0] > '9' {
		return 0, false
	}
	epoch, err := strconv.ParseUint(digits, 10, 64)
	return epoch, err == nil
}
