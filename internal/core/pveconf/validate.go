package pveconf

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/units"
)

// Validate checks the value of one key as it would stand in the file. The error
// is a *model.InvalidError that says which part is wrong and what is allowed. A key that
// Proxmox VE does not have is refused.
func Validate(key, value string) error {
	o, ok := keyOption(key)
	if !ok {
		return unknownKey(key)
	}
	if err := o.check(key, "", value); err != nil {
		return err
	}
	if o.kind != kindStructured {
		return nil
	}
	os, err := readOptions(key, value)
	if err != nil {
		return err
	}
	return together(key, os)
}

// together checks what the options of a key say of one another.
func together(key string, os options) error {
	switch collapse(canonical(key)) {
	case "smbios1":
		_, err := smbiosOf(os)
		return err
	case "hostpci[n]", "usb[n]":
		_, host := os.Get("host")
		_, mapping := os.Get("mapping")
		if host == mapping {
			return model.Invalidf(key, "write either host, the device, or mapping, a name that stands for one")
		}
	case "ipconfig[n]":
		for _, p := range [][2]string{{"gw", "ip"}, {"gw6", "ip6"}} {
			gateway, has := os.Get(p[0])
			if _, address := os.Get(p[1]); has && !address {
				return model.Invalidf(key, "%s=%s is a gateway without an address: write %s too", p[0], gateway, p[1])
			}
		}
	case "boot":
		return bootTogether(key, os.list("order"))
	case "ide[n]", "sata[n]", "scsi[n]", "virtio[n]":
		return diskTogether(key, os)
	}
	return nil
}

// diskTogether checks the texts that a disk's firmware has room for: 20 bytes of serial number, 40 of model.
func diskTogether(key string, os options) error {
	for name, limit := range map[string]int{"serial": 20, "model": 40} {
		if n := len(decodeText(os.text(name))); n > limit {
			return model.Invalidf(key, "%s has %d bytes: %d is the limit", name, n, limit)
		}
	}
	return nil
}

// bootTogether refuses what cannot be booted from, and a device that stands in the order twice.
func bootTogether(key string, order []string) error {
	for i, d := range order {
		family, _, _ := SplitIndex(d)
		if collapse(d) == d || !inList("virtio scsi sata ide net hostpci usb", family) {
			return model.Invalidf(key, "%s is not a device to boot from: write order=virtio0;net0", quote(d))
		}
		if slices.Contains(order[:i], d) {
			return model.Invalidf(key, "%s stands in the order twice", d)
		}
	}
	return nil
}

func unknownKey(key string) error {
	if family, _, ok := SplitIndex(key); ok {
		if limit, numbered := indexLimit(family); numbered {
			return model.Invalidf(key, "there is no such device: use %s0 to %s%d", family, family, limit)
		}
	}
	return model.Invalidf(key, "a guest's configuration has no such key")
}

// check refuses a value. name is that of an option whose name belongs into the message, "tag=5000"; without one the value
// stands there in quotes.
func (o *option) check(key, name, value string) error {
	if n := len([]rune(value)); o.maxLen > 0 && n > o.maxLen {
		return model.Invalidf(key, "%.60s has %d characters: %d is the limit", label(name, value), n, o.maxLen)
	}
	switch o.kind {
	case kindBoolean:
		if _, err := parseBool("", value); err != nil {
			return model.Invalidf(key, "%s is neither yes nor no: write 1 or 0", label(name, value))
		}
	case kindInteger:
		if n, ok := parseWhole(value); !ok || !o.inRange(float64(n)) {
			return model.Invalidf(key, "%s is not allowed: %s", label(name, value), o.allowed())
		}
	case kindNumber:
		if f, ok := parseDecimal(value); !ok || !o.inRange(f) {
			return model.Invalidf(key, "%s is not allowed: %s", label(name, value), o.allowed())
		}
	case kindText:
		return o.checkText(key, name, value)
	case kindStructured:
	}
	return nil
}

func (o *option) checkText(key, name, value string) error {
	if o.enum != "" && !inList(o.enum, value) {
		return model.Invalidf(key, "%s is not allowed: %s", label(name, value), o.allowed())
	}
	f, ok := formOf(o.form)
	if !ok {
		return nil
	}
	part, wrong := f.wrong(value)
	switch {
	case !wrong:
		return nil
	case name == "":
		return model.Invalidf(key, "%s is not %s: %s", quote(part), f.what, f.write)
	case part != value:
		return model.Invalidf(key, "%s: %s is not %s: %s", label(name, value), quote(part), f.what, f.write)
	}
	return model.Invalidf(key, "%s is not %s: %s", label(name, value), f.what, f.write)
}

// inList looks a value up in a list that is separated by blanks.
func inList(list, value string) bool {
	for s := range strings.SplitSeq(list, " ") {
		if s == value {
			return true
		}
	}
	return false
}

// allowed says to a person what to write.
func (o *option) allowed() string {
	what := "number"
	if o.kind == kindInteger {
		what = "whole number"
	}
	if o.unit != "" {
		what += " of " + o.unit
	}
	f, formed := formOf(o.form)
	switch {
	case o.kind == kindBoolean:
		return "write 1 or 0"
	case (o.kind == kindInteger || o.kind == kindNumber) && o.low == "":
		return "use a " + what
	case (o.kind == kindInteger || o.kind == kindNumber) && o.high == "":
		return "use a " + what + " from " + o.low
	case o.kind == kindInteger || o.kind == kindNumber:
		return "use a " + what + " from " + o.low + " to " + o.high
	case o.enum != "":
		return "use one of " + strings.ReplaceAll(o.enum, " ", ", ")
	case formed:
		return f.write
	}
	return "write it as " + o.name + "=TEXT"
}

func (o *option) inRange(f float64) bool {
	for _, bound := range []struct {
		text string
		sign float64
	}{{o.low, 1}, {o.high, -1}} {
		if limit, err := strconv.ParseFloat(bound.text, 64); err == nil && (f-limit)*bound.sign < 0 {
			return false
		}
	}
	return true
}

// label is how a message calls a value.
func label(name, value string) string {
	if name == "" {
		return quote(value)
	}
	return name + "=" + value
}

// quote is a value in quotes, cut where it is too long to read.
func quote(value string) string { return fmt.Sprintf("%.80q", value) }

func parseBool(key, value string) (bool, error) {
	switch strings.ToLower(value) {
	case "1", "on", "yes", "true":
		return true, nil
	case "0", "off", "no", "false":
		return false, nil
	}
	return false, model.Invalidf(key, "%q is neither yes nor no: write 1 or 0", value)
}

func parseInt(key, value string, low, high int64) (int64, error) {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < low || n > high {
		if high == math.MaxInt64 {
			return 0, model.Invalidf(key, "%q is not allowed: use a whole number from %d", value, low)
		}
		return 0, model.Invalidf(key, "%q is not allowed: use a whole number from %d to %d", value, low, high)
	}
	return n, nil
}

func parseWhole(value string) (int64, bool) {
	n, err := strconv.ParseInt(value, 10, 64)
	return n, err == nil
}

var decimalText = regexp.MustCompile(`^-?\d{1,15}(\.\d+)?$`)

// parseDecimal reads a number with a point, and none with an exponent.
func parseDecimal(value string) (float64, bool) {
	f, err := strconv.ParseFloat(value, 64)
	return f, err == nil && decimalText.MatchString(value)
}

func parseSize(key, value string) (int64, error) {
	if !diskSize.MatchString(value) {
		return 0, model.Invalidf(key, "size=%s is not a size: write a number and K, M, G or T, such as 4G", value)
	}
	n, err := units.ParseBytes(value)
	if err != nil {
		return 0, model.Invalidf(key, "size=%s is too large", value)
	}
	return n, nil
}
