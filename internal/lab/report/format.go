package report

import (
	"math"
	"strconv"
	"strings"
)

// Value prints a measured figure with its unit, "not measured" for nil.
func Value(v *float64, unit string) string {
	if v == nil {
		return "not measured"
	}
	return strings.TrimSpace(figure(*v) + " " + unit)
}

// figure prints a number with three or four significant digits and groups of thousands.
func figure(v float64) string {
	digits := 0
	switch a := math.Abs(v); {
	case a == math.Trunc(a):
	case a < 10:
		digits = 2
	case a < 100:
		digits = 1
	}
	s := strconv.FormatFloat(v, 'f', digits, 64)
	whole, rest, _ := strings.Cut(s, ".")
	if rest != "" {
		rest = "." + rest
	}
	return group(whole) + rest
}

// group puts a thin space between thousands.
func group(s string) string {
	sign := ""
	if strings.HasPrefix(s, "-") {
		sign, s = "-", s[1:]
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u2009" + s[i:]
	}
	return sign + s
}
