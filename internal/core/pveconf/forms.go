package pveconf

import (
	"net/netip" //nolint:depguard // it computes with addresses and opens nothing
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// form is a way to write a text that no list of values describes.
type form struct {
	what  string // "a host name": what a wrong text is not
	write string // what to write instead
	ok    func(string) bool
	// split takes a list apart, of which each part must be ok; nil if it is none.
	split func(string) []string
}

// wrong returns the first part of a value that is not ok.
func (f form) wrong(value string) (part string, found bool) {
	parts := []string{value}
	if f.split != nil {
		parts = f.split(value)
	}
	i := slices.IndexFunc(parts, func(p string) bool { return !f.ok(p) })
	if i >= 0 {
		return parts[i], true
	}
	return value, len(parts) == 0
}

// at splits a list at a sign.
func at(sign string) func(string) []string {
	return func(s string) []string { return strings.Split(s, sign) }
}

var (
	dnsName      = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$`)
	machine      = regexp.MustCompile(`^(pc|pc(-i440fx)?-\d+(\.\d+)+(\+pve\d+)?(\.pxe)?|q35|pc-q35-\d+(\.\d+)+(\+pve\d+)?(\.pxe)?|virt(-\d+(\.\d+)+)?(\+pve\d+)?)$`)
	macAddr      = regexp.MustCompile(`^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$`)
	uuidText     = regexp.MustCompile(`^[a-fA-F0-9]{8}(-[a-fA-F0-9]{4}){3}-[a-fA-F0-9]{12}$`)
	bridge       = regexp.MustCompile(`^[-_.\w]{1,15}$`)
	volid        = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9\-_.]*[a-zA-Z0-9]:\S+$`)
	cpuType      = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9\-_.]*$`)
	cpuFlag      = regexp.MustCompile(`^[+-][a-zA-Z0-9\-_.]+$`)
	diskSize     = regexp.MustCompile(`^\d+(\.\d+)?[KMGT]?$`)
	urlEncoded   = regexp.MustCompile(`^([-a-zA-Z0-9_.!~*'()]|%[0-9a-fA-F]{2})*$`)
	wwn          = regexp.MustCompile(`^0x[0-9a-fA-F]{16}$`)
	scsiVendor   = regexp.MustCompile(`^[A-Za-z0-9\-_\s]{0,8}$`)
	scsiProduct  = regexp.MustCompile(`^[A-Za-z0-9\-_\s]{0,16}$`)
	word         = regexp.MustCompile(`^[a-zA-Z0-9-]+$`)
	parallelPort = regexp.MustCompile(`^(/dev/parport\d+|/dev/usb/lp\d+)$`)
	serialPort   = regexp.MustCompile(`^(/dev/[^,]+|socket)$`)
	startDate    = regexp.MustCompile(`^(now|\d{4}-\d{1,2}-\d{1,2}(T\d{1,2}:\d{1,2}:\d{1,2})?)$`)
	usbHost      = regexp.MustCompile(`^((0x)?[0-9A-Fa-f]{4}:(0x)?[0-9A-Fa-f]{4}|\d+-\d+(\.\d+)*|[Ss][Pp][Ii][Cc][Ee])$`)
	pciAddress   = regexp.MustCompile(`^([0-9a-fA-F]{4,}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(\.[0-9a-fA-F])?$`)
	pciID        = regexp.MustCompile(`^0x[0-9a-fA-F]{4}$`)
	mdevType     = regexp.MustCompile(`^[^/.:;,]+$`)
	fileName     = regexp.MustCompile(`^[^,;]+$`)
	hvVendor     = regexp.MustCompile(`^[a-zA-Z0-9]{1,12}$`)
	guestTag     = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.+-]*$`)
	bootDisk     = regexp.MustCompile(`^(ide|sata|scsi|virtio)\d+$`)
	bootLegacy   = regexp.MustCompile(`^[acdn]{1,4}$`)
	qemuVersion  = regexp.MustCompile(`^\d+(\.\d+)+$`)
	runningCPU   = regexp.MustCompile(`^[+\w\-.=,]+$`)
	runningMTU   = regexp.MustCompile(`^net\d+=\d+(,net\d+=\d+)*$`)
)

// formOf returns a form by the name that the tables give it: the schema's own for a named format, one of ours for
// a pattern.
func formOf(name string) (form, bool) {
	for _, forms := range []func(string) form{deviceForm, systemForm, networkForm, textForm} {
		if f := forms(name); f.ok != nil {
			return f, true
		}
	}
	return form{}, false
}

// deviceForm has what names volumes and devices.
func deviceForm(name string) form {
	switch name {
	case "pve-volume-id-or-qm-path":
		return form{what: "a volume", write: "write storage:name, such as nas:100/vm-100-disk-0.qcow2, an absolute path, or none", ok: func(s string) bool {
			return volid.MatchString(s) || isPath(s) || s == "none" || s == "cdrom"
		}}
	case "pve-volume-id-or-absolute-path":
		return form{what: "a volume or a file", write: "write storage:name, or an absolute path", ok: func(s string) bool { return volid.MatchString(s) || isPath(s) }}
	case "pve-volume-id":
		return form{what: "a volume", write: "write storage:name, such as nas:snippets/guest.yaml", ok: volid.MatchString}
	case "disk-size":
		return form{what: "a size", write: "write a number and K, M, G or T, such as 4G", ok: isSize}
	case "wwn":
		return form{what: "a world wide name", write: "write 0x and 16 hexadecimal digits", ok: wwn.MatchString}
	case "scsi-vendor":
		return form{what: "a vendor", write: "use at most 8 letters, digits, '-', '_' and blanks", ok: scsiVendor.MatchString}
	case "scsi-product":
		return form{what: "a product", write: "use at most 16 letters, digits, '-', '_' and blanks", ok: scsiProduct.MatchString}
	case "serial-port":
		return form{what: "a serial port", write: "write socket, or a device such as /dev/ttyS0", ok: serialPort.MatchString}
	case "parallel-port":
		return form{what: "a parallel port", write: "write a device such as /dev/parport0 or /dev/usb/lp0", ok: parallelPort.MatchString}
	case "usb-host":
		return form{what: "a USB device", write: "write vendor:product such as 046d:c52b, a port such as 1-1.4, or spice", ok: usbHost.MatchString}
	case "pci-addresses":
		return form{what: "the address of a PCI device", write: "write one such as 0000:01:00.0, several separated by ';'", ok: pciAddress.MatchString, split: at(";")}
	case "pci-id":
		return form{what: "a PCI id", write: "write 0x and four hexadecimal digits", ok: pciID.MatchString}
	case "mdev":
		return form{what: "a mediated device", write: "write its type, such as i915-GVTg_V5_4", ok: mdevType.MatchString}
	case "file-name":
		return form{what: "a file name", write: "write one without ',' and ';'", ok: fileName.MatchString}
	case "boot-legacy":
		return form{what: "a boot order", write: "write order=virtio0;net0", ok: bootLegacy.MatchString}
	case "pve-qm-bootdisk":
		return form{what: "a disk", write: "write a device such as virtio0", ok: bootDisk.MatchString}
	}
	return form{}
}

// systemForm has what describes the machine.
func systemForm(name string) form {
	switch name {
	case "machine-type":
		return form{what: "a machine type", write: "use pc, q35 or a version of one, such as pc-i440fx-10.0", ok: machine.MatchString}
	case "cpu-model":
		return form{what: "a CPU model", write: "use letters, digits, '-', '_' and '.', such as x86-64-v2-AES", ok: cpuType.MatchString}
	case "cpu-flags":
		return form{what: "a CPU flag", write: "write +flag or -flag, separated by ';'", ok: cpuFlag.MatchString, split: at(";")}
	case "phys-bits":
		return form{what: "a number of address bits", write: "use a whole number from 8 to 64, or host", ok: isPhysBits}
	case "hv-vendor-id":
		return form{what: "a vendor id", write: "use at most 12 letters and digits", ok: hvVendor.MatchString}
	case "uuid":
		return form{what: "a UUID", write: "write one such as 6e2c5f0a-3f0e-4a57-9c0d-1d2b8a5f7c11", ok: uuidText.MatchString}
	case "generation-id":
		return form{what: "a generation id", write: "write a UUID, 1 to have one made, or 0 for none", ok: func(s string) bool {
			return s == "0" || s == "1" || uuidText.MatchString(s)
		}}
	case "pve-cpuset":
		return form{what: "a processor or a range", write: "write numbers and ranges such as 0,4-7", ok: isRange, split: at(",")}
	case "ranges":
		return form{what: "a number or a range", write: "write numbers and ranges such as 0-3;8", ok: isRange, split: at(";")}
	case "pve-hotplug-features":
		return form{
			what: "something that can be plugged", write: "use network, disk, cpu, memory, usb and cloudinit, separated by ',', or 1 or 0 alone",
			ok: func(s string) bool { return inList("network disk cpu memory usb cloudinit", s) }, split: splitHotplug,
		}
	case "start-date":
		return form{what: "a date", write: "write now, 2006-06-17 or 2006-06-17T16:01:21", ok: startDate.MatchString}
	case "qemu-version":
		return form{what: "a version of QEMU", write: "write one such as 10.0.2", ok: qemuVersion.MatchString}
	case "running-cpu":
		return form{what: "QEMU's name of a processor", write: "use letters, digits and '+', '-', '_', '.', '=', ','", ok: runningCPU.MatchString}
	}
	return form{}
}

// networkForm has names and addresses.
func networkForm(name string) form {
	switch name {
	case "dns-name":
		return form{what: "a host name", write: "use letters, digits, '-' and '.'", ok: dnsName.MatchString}
	case "mac-addr":
		return form{what: "the MAC address of a card", write: "write six hexadecimal bytes, the first one even, such as BC:24:11:00:00:01", ok: macAddr.MatchString}
	case "pve-bridge-id":
		return form{what: "the name of a bridge", write: "use at most 15 letters, digits, '-', '_' and '.'", ok: bridge.MatchString}
	case "running-mtu":
		return form{what: "a list of MTUs", write: "write net0=1500,net1=9000", ok: runningMTU.MatchString}
	case "ipv4":
		return form{what: "an IPv4 address", write: "write one such as 192.0.2.1", ok: func(s string) bool { a, ok := ipAddr(s); return ok && a.Is4() }}
	case "ipv6":
		return form{what: "an IPv6 address", write: "write one such as 2001:db8::1", ok: func(s string) bool { a, ok := ipAddr(s); return ok && a.Is6() }}
	case "ipv4-config":
		return form{what: "an IPv4 address with its prefix", write: "write one such as 192.0.2.10/24, dhcp or manual", ok: func(s string) bool {
			p, ok := ipPrefix(s)
			return s == "dhcp" || s == "manual" || ok && p.Addr().Is4()
		}}
	case "ipv6-config":
		return form{what: "an IPv6 address with its prefix", write: "write one such as 2001:db8::10/64, dhcp, auto or manual", ok: func(s string) bool {
			p, ok := ipPrefix(s)
			return s == "dhcp" || s == "auto" || s == "manual" || ok && p.Addr().Is6()
		}}
	case "address-list":
		return form{what: "an address", write: "write IP addresses or host names, separated by blanks or ','", ok: func(s string) bool {
			_, ok := ipAddr(s)
			return ok || dnsName.MatchString(s)
		}, split: splitList}
	}
	return form{}
}

// textForm has names of other things and encoded texts.
func textForm(name string) form {
	switch name {
	case "pve-configid":
		return form{what: "a name", write: "use a letter, then at least one more letter, digit, '-' or '_'", ok: configID.MatchString}
	case "pve-storage-id":
		return form{what: "the name of a storage", write: "use a letter, then letters, digits, '-', '_' and '.'", ok: storageID.MatchString}
	case "word":
		return form{what: "a word", write: "use letters, digits and '-'", ok: word.MatchString}
	case "urlencoded":
		return form{what: "URL-encoded", write: "write what is not a letter, a digit or one of -_.!~*'() as '%' and two hexadecimal digits", ok: urlEncoded.MatchString}
	case "pve-tag-list":
		return form{what: "a tag", write: "use letters, digits, '_', '-', '+' and '.'; several are separated by ';'", ok: guestTag.MatchString, split: splitList}
	}
	return form{}
}

func isPath(s string) bool {
	return strings.HasPrefix(s, "/") && !strings.ContainsAny(s, " \t") && s != "/"
}

func isSize(s string) bool {
	_, err := parseSize("", s)
	return err == nil
}

// splitList splits where Proxmox VE splits its lists.
func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(",; \t\x00", r) })
}

// Range is First to Last, both included.
type Range struct{ First, Last int }

func isRange(s string) bool {
	_, ok := parseRange(s)
	return ok
}

// parseRange reads "4" or "4-7".
func parseRange(s string) (Range, bool) {
	first, last, both := strings.Cut(s, "-")
	if !both {
		last = first
	}
	a, err1 := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	return Range{int(a), int(b)}, err1 == nil && err2 == nil && a <= b
}

// parseRanges reads what isRange has allowed of each part.
func parseRanges(parts []string) []Range {
	var out []Range
	for _, p := range parts {
		if r, ok := parseRange(p); ok {
			out = append(out, r)
		}
	}
	return out
}

func isPhysBits(s string) bool {
	n, err := strconv.ParseUint(s, 10, 8)
	return s == "host" || err == nil && n >= 8 && n <= 64
}

// splitHotplug lists the features; "1" stands for the default, "0" for none.
func splitHotplug(s string) []string {
	if s == "0" || s == "1" {
		return []string{"network", "disk", "usb"}
	}
	return splitList(s)
}

func ipAddr(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	return a, err == nil && a.Zone() == ""
}

func ipPrefix(s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	return p, err == nil
}
