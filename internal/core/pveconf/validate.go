package pveconf

import (
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/units"
)

var (
	dnsName  = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$`)
	machine  = regexp.MustCompile(`^(pc|pc(-i440fx)?-\d+(\.\d+)+(\+pve\d+)?(\.pxe)?|q35|pc-q35-\d+(\.\d+)+(\+pve\d+)?(\.pxe)?)$`)
	macAddr  = regexp.MustCompile(`^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$`)
	uuidText = regexp.MustCompile(`^[a-fA-F0-9]{8}(-[a-fA-F0-9]{4}){3}-[a-fA-F0-9]{12}$`)
	bridge   = regexp.MustCompile(`^[-_.\w]{1,15}$`)
	volid    = regexp.MustCompile(`^([a-zA-Z][a-zA-Z0-9\-_.]*[a-zA-Z0-9]:\S+|/\S+|none)$`)
	cpuType  = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9\-_.]*$`)
	cpuFlag  = regexp.MustCompile(`^[+-][a-zA-Z0-9\-_.]+$`)
	diskSize = regexp.MustCompile(`^\d+(\.\d+)?[KMGT]?$`)
)

// Validate checks the value of one key as it would stand in the file. The error
// is a *model.InvalidError that says what is allowed. A key that Proxmox VE does not have
// is refused; of the keys that have no effect yet any value is taken.
func Validate(key, value string) error {
	switch keyUse(key) {
	case unknown:
		return unknownKey(key)
	case kept:
		return nil
	case working, record:
	}
	if err := validateDevice(key, value); err != nil {
		return err
	}
	return validateScalar(key, value)
}

func unknownKey(key string) error {
	if family, _, ok := SplitIndex(key); ok {
		if limit, numbered := indexLimit(family); numbered {
			return model.Invalidf(key, "there is no such device: use %s0 to %s%d", family, family, limit)
		}
	}
	return model.Invalidf(key, "a guest's configuration has no such key")
}

// validateDevice checks the keys whose value is a property string.
func validateDevice(key, value string) error {
	var err error
	switch collapse(key) {
	case "net[n]":
		_, err = ParseNet(key, value)
	case "virtio[n]", "scsi[n]":
		_, err = ParseDisk(key, value)
	case "cpu":
		_, err = ParseCPU(value)
	case "memory":
		_, err = parseMemory(value)
	case "machine":
		_, err = parseMachine(value)
	case "boot":
		_, err = parseBoot(value)
	case "agent":
		_, err = parseAgent(value)
	case "smbios1":
		_, err = ParseSMBIOS(value)
	case "vga":
		_, err = ParseProps(key, vgaFormat(), value)
	}
	return err
}

func validateScalar(key, value string) error {
	switch collapse(key) {
	case "acpi", "kvm", "onboot", "template", "protection":
		_, err := parseBool(key, value)
		return err
	case "cores", "sockets":
		_, err := parseInt(key, value, 1, 256)
		return err
	case "name":
		if len(value) > 253 || !dnsName.MatchString(value) {
			return model.Invalidf(key, "%q is not a host name: use letters, digits, '-' and '.'", value)
		}
	case "description":
		if len(value) > 8192 {
			return model.Invalidf(key, "the text has %d bytes, the limit is 8192", len(value))
		}
	case "serial[n]":
		if value != "socket" && !(strings.HasPrefix(value, "/dev/") && !strings.Contains(value, ",")) {
			return model.Invalidf(key, "%q is not a serial port: write socket, or a device such as /dev/ttyS0", value)
		}
	case "vmgenid":
		if value != "0" && value != "1" && !uuidText.MatchString(value) {
			return model.Invalidf(key, "%q is not a generation id: write a UUID, 1 to have one made, or 0 for none", value)
		}
	case "ostype":
		return oneOf(key, value, "other", "wxp", "w2k", "w2k3", "w2k8", "wvista", "win7", "win8", "win10", "win11", "l24", "l26", "solaris")
	case "lock":
		return oneOf(key, value, "backup", "clone", "create", "migrate", "rollback", "snapshot", "snapshot-delete", "suspending", "suspended")
	case "scsihw":
		return oneOf(key, value, "lsi", "lsi53c810", "virtio-scsi-pci", "virtio-scsi-single", "megasas", "pvscsi")
	}
	return nil
}

func oneOf(key, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return model.Invalidf(key, "%q is not allowed: use one of %s", value, strings.Join(allowed, ", "))
}

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
