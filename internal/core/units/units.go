// Package units reads and prints the quantities that people write: bytes and
// percent. It is pure, knows no clock and no locale.
//
// It is not a general parser: what Proxmox VE's configuration and command line
// write is read, and nothing else. Invariant: ParseBytes(FormatSize(n)) == n for
// every n ≥ 0. Start reading with [ParseBytes].
package units

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"sauh.dev/sauh/internal/core/model"
)

// Powers of 1024, the only multiples that the configuration format knows.
const (
	KiB int64 = 1 << 10
	MiB int64 = 1 << 20
	GiB int64 = 1 << 30
	TiB int64 = 1 << 40
)

// ParseBytes reads a size such as "4G", "512M", "0.5T", "1048576". The suffixes
// K, M, G and T are powers of 1024; without one the number counts bytes. A fraction
// is rounded down to a whole byte. Errors satisfy errors.Is(err, model.ErrInvalid).
func ParseBytes(s string) (int64, error) {
	num, unit := s, int64(1)
	if n := len(s); n > 0 {
		if u := suffix(s[n-1]); u != 0 {
			num, unit = s[:n-1], u
		}
	}
	if whole, err := strconv.ParseInt(num, 10, 64); err == nil && plain(num) {
		if whole > math.MaxInt64/unit {
			return 0, tooBig(s)
		}
		return whole * unit, nil
	}
	f, err := strconv.ParseFloat(num, 64)
	if err != nil || !plain(num) {
		return 0, model.Invalidf("size", "%q is not a size: write a number and K, M, G or T, such as 4G", s)
	}
	if f*float64(unit) >= math.MaxInt64 {
		return 0, tooBig(s)
	}
	return int64(f * float64(unit)), nil
}

func tooBig(s string) error {
	return model.Invalidf("size", "%q is more than can be counted: the limit is %d bytes", s, int64(math.MaxInt64))
}

// plain is true for digits with at most one point between them.
func plain(s string) bool {
	whole, frac, point := strings.Cut(s, ".")
	return digits(whole) && (!point || digits(frac))
}

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func suffix(c byte) int64 {
	switch c {
	case 'K':
		return KiB
	case 'M':
		return MiB
	case 'G':
		return GiB
	case 'T':
		return TiB
	}
	return 0
}

// FormatSize prints n bytes as Proxmox VE writes a disk's size: the largest
// unit that divides it, "4G", "4098K", "123". It is exact.
func FormatSize(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{TiB, "T"}, {GiB, "G"}, {MiB, "M"}, {KiB, "K"}} {
		if n != 0 && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// FormatBytes prints n bytes for a person, rounded: "1.5 GiB", "512 B".
func FormatBytes(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{TiB, "TiB"}, {GiB, "GiB"}, {MiB, "MiB"}, {KiB, "KiB"}} {
		if n >= u.size || n <= -u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

// FormatPercent prints the fraction f with one digit after the point: 0.125 is "12.5 %".
func FormatPercent(f float64) string { return fmt.Sprintf("%.1f %%", 100*f) }
