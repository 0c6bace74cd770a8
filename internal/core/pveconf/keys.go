package pveconf

import (
	"slices"
	"strings"
)

// use says what Sauh does with a key of a guest's file.
type use int

const (
	unknown use = iota
	working     // it has its effect
	kept        // it is valid in Proxmox VE, kept in the file and has no effect
	record      // it says something about the guest and needs no effect on the machine
)

// keyUse is the table of Proxmox VE 9's configuration keys, from the
// parameters of POST and GET /nodes/{node}/qemu[/{vmid}/config]. "net[n]" stands for net0, net1, …
func keyUse(key string) use {
	switch collapse(key) {
	case "acpi", "agent", "args", "boot", "cores", "cpu", "kvm", "machine", "memory", "name",
		"net[n]", "scsi[n]", "scsihw", "serial[n]", "smbios1", "sockets", "vga", "virtio[n]", "vmgenid",
		"onboot", "lock", "template":
		return working
	case "description", "tags", "ostype", "meta", "parent", "snaptime", "protection", "unused[n]", "bootdisk",
		"digest", "runningcpu", "runningmachine", "vmstate", "snapstate", "running-nets-host-mtu":
		return record
	case "affinity", "allow-ksm", "amd-sev", "arch", "audio0", "autostart", "balloon", "bios",
		"cdrom", "cicustom", "cipassword", "citype", "ciupgrade", "ciuser", "cpulimit", "cpuunits",
		"efidisk0", "freeze", "hookscript", "hostpci[n]", "hotplug", "hugepages", "ide[n]", "intel-tdx",
		"ipconfig[n]", "ivshmem", "keephugepages", "keyboard", "localtime",
		"migrate_downtime", "migrate_speed", "nameserver", "numa", "numa[n]", "parallel[n]",
		"reboot", "rng0", "sata[n]", "searchdomain", "shares", "smp", "spice_enhancements", "sshkeys",
		"startdate", "startup", "tablet", "tdf", "tpmstate0", "usb[n]", "vcpus",
		"virtiofs[n]", "vmstatestorage", "watchdog":
		return kept
	}
	return unknown
}

// indexLimits are the highest numbers of the numbered keys, from the Proxmox VE manual.
func indexLimit(family string) (int, bool) {
	switch family {
	case "net", "scsi":
		if family == "net" {
			return 31, true
		}
		return 30, true
	case "virtio":
		return 15, true
	case "sata":
		return 5, true
	case "ide", "serial":
		return 3, true
	case "parallel":
		return 2, true
	case "hostpci", "usb":
		return 15, true
	case "ipconfig":
		return 31, true
	case "numa":
		return 7, true
	case "virtiofs":
		return 9, true
	case "unused":
		return 255, true
	}
	return 0, false
}

// collapse turns "net12" into "net[n]" if the number is in range, and leaves other keys alone.
func collapse(key string) string {
	family, n, ok := SplitIndex(key)
	if !ok {
		return key
	}
	if limit, numbered := indexLimit(family); numbered && n <= limit {
		return family + "[n]"
	}
	return key
}

// SplitIndex takes "net0" apart into "net" and 0. ok is false without a number,
// and for a number with needless zeros in front.
func SplitIndex(key string) (family string, n int, ok bool) {
	family = strings.TrimRight(key, "0123456789")
	num := key[len(family):]
	if num == "" || len(num) > 3 || (len(num) > 1 && num[0] == '0') {
		return key, 0, false
	}
	for _, c := range num {
		n = 10*n + int(c-'0')
	}
	return family, n, true
}

// Known reports whether key is a key of a guest's file in Proxmox VE.
func Known(key string) bool { return keyUse(key) != unknown }

// AtNextStart reports whether a change of key reaches a guest that runs only when it is started anew.
func AtNextStart(key string) bool {
	switch key {
	case "name", "onboot", "lock", "template":
		return false
	}
	return keyUse(key) == working
}

// Unsupported lists, sorted, the keys of g that are valid or unknown and have no
// effect on the machine that Sauh starts, so that a start can name them.
func Unsupported(g *Guest) []string {
	var keys []string
	for _, k := range g.Keys() {
		v, _ := g.Get(k)
		switch keyUse(k) {
		case unknown:
			keys = append(keys, k)
		case kept:
			if !isNeutral(k, v) {
				keys = append(keys, k)
			}
		case working:
			if unsupportedValue(k, v) {
				keys = append(keys, k)
			}
		case record:
		}
	}
	slices.Sort(keys)
	return keys
}

// isNeutral is true where the value asks for what is done anyway.
func isNeutral(key, value string) bool {
	switch key {
	case "balloon", "numa", "localtime", "autostart", "tablet", "tdf", "freeze", "keephugepages":
		return value == "0"
	case "bios":
		return value == "seabios"
	case "arch":
		return value == "x86_64"
	case "reboot":
		return value == "1"
	}
	return false
}

// unsupportedValue is true where the key works and this value of it does not.
func unsupportedValue(key, value string) bool {
	if key == "vga" {
		typ, _, _ := strings.Cut(strings.TrimPrefix(value, "type="), ",")
		return typ != "none" && !strings.HasPrefix(typ, "serial")
	}
	return false
}
