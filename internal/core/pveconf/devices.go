package pveconf

import (
	"cmp"
	"math"
	"slices"
)

// readChecked reads a structured value with all of its checks.
func readChecked(key, value string) (options, error) {
	os, err := readOptions(key, value)
	if err != nil {
		return options{}, err
	}
	return os, together(key, os)
}

// one reads the value of a key with its parser; ok is false without the key.
func one[T any](g *Guest, key string, parse func(string) (T, error)) (v T, ok bool) {
	value, ok := g.Get(key)
	if !ok {
		return v, false
	}
	v, err := parse(value)
	return v, err == nil // ParseGuest and Set have checked it
}

// each reads the values of families of numbered keys, in the order of the families, then of the numbers.
func each[T any](g *Guest, parse func(key, value string) (T, error), families ...string) []T {
	var out []T
	for _, key := range g.numbered(families...) {
		if v, err := parse(key, g.value(key, "")); err == nil {
			out = append(out, v)
		}
	}
	return out
}

// value returns the value of key, or def where the file has none.
func (g *Guest) value(key, def string) string {
	if v, ok := g.Get(key); ok {
		return v
	}
	return def
}

// flag reads a yes or no; ParseGuest and Set have checked it.
func (g *Guest) flag(key string, def bool) bool {
	v, ok := g.Get(key)
	if !ok {
		return def
	}
	b, err := parseBool(key, v)
	return err == nil && b
}

func (g *Guest) number(key string, def int64) int64 {
	n, err := parseInt(key, g.value(key, ""), 0, math.MaxInt64)
	if err != nil {
		return def
	}
	return n
}

// Name is the guest's name, "" if it has none.
func (g *Guest) Name() string { return g.value("name", "") }

// MemoryMiB is the guest's memory; Proxmox VE's default is 512.
func (g *Guest) MemoryMiB() int64 {
	os, err := readOptions("memory", g.value("memory", "512"))
	if err != nil {
		return 512
	}
	return os.integer("current")
}

// BalloonMiB is the memory that the guest is shrunk to when the node has little; ok is false without a line, 0 is no balloon.
func (g *Guest) BalloonMiB() (mib int64, ok bool) {
	_, ok = g.Get("balloon")
	return g.number("balloon", 0), ok
}

// Cores is the number of cores per socket.
func (g *Guest) Cores() int { return int(g.number("cores", 1)) }

// Sockets is the number of processor sockets.
func (g *Guest) Sockets() int { return int(g.number("sockets", 1)) }

// VCPUs is the number of processors that are there at the start, 0 for all.
func (g *Guest) VCPUs() int { return int(g.number("vcpus", 0)) }

// CPU is the processor model; its zero value means the default.
func (g *Guest) CPU() CPU {
	c, _ := one(g, "cpu", ParseCPU)
	return c
}

// Machine is the machine type as it stands in the file, "pc" by default.
func (g *Guest) Machine() string { return cmp.Or(g.MachineOptions().Type, "pc") }

// MachineOptions are all that the key machine says.
func (g *Guest) MachineOptions() Machine {
	m, _ := one(g, "machine", ParseMachine)
	return m
}

// OSType is the kind of system inside, "other" by default.
func (g *Guest) OSType() string { return g.value("ostype", "other") }

// OnBoot says that the guest is started with its node.
func (g *Guest) OnBoot() bool { return g.flag("onboot", false) }

// ACPI says that the guest has ACPI, which a shutdown needs.
func (g *Guest) ACPI() bool { return g.flag("acpi", true) }

// KVM is false if the file forbids hardware acceleration.
func (g *Guest) KVM() bool { return g.flag("kvm", true) }

// Agent says that the QEMU guest agent is expected inside.
func (g *Guest) Agent() bool { return g.AgentOptions().Enabled }

// AgentOptions are all that the key agent says.
func (g *Guest) AgentOptions() Agent {
	a, ok := one(g, "agent", ParseAgent)
	if !ok {
		a, _ = ParseAgent("0")
	}
	return a
}

// Template says that the guest is a template and cannot be started.
func (g *Guest) Template() bool { return g.flag("template", false) }

// Protection says that the guest must not be destroyed.
func (g *Guest) Protection() bool { return g.flag("protection", false) }

// Lock names the operation that has locked the guest, "" if none has.
func (g *Guest) Lock() string { return g.value("lock", "") }

// VGA is the display.
func (g *Guest) VGA() VGA {
	v, ok := one(g, "vga", ParseVGA)
	if !ok {
		v, _ = ParseVGA("std")
	}
	return v
}

// Args are further arguments for QEMU, "" if there are none.
func (g *Guest) Args() string { return g.value("args", "") }

// Description is the text for people, lines ended by "\n".
func (g *Guest) Description() string {
	text := ""
	for _, l := range g.lines {
		if l.comment {
			text += l.value + "\n"
		}
	}
	return text
}

// Tags are the words that a person sorts guests by.
func (g *Guest) Tags() []string { return splitList(g.value("tags", "")) }

// Parent is the snapshot that the guest was like last, "" without one.
func (g *Guest) Parent() string { return g.value("parent", "") }

// SMBIOS returns the identity that the firmware shows to the guest.
func (g *Guest) SMBIOS() SMBIOS {
	s, _ := one(g, "smbios1", ParseSMBIOS)
	return s
}

// VMGenID is the generation id, "" if there is none.
func (g *Guest) VMGenID() string {
	if v := g.value("vmgenid", ""); uuidText.MatchString(v) {
		return v
	}
	return ""
}

// SCSIHW is the SCSI controller, "lsi" by default.
func (g *Guest) SCSIHW() string { return g.value("scsihw", "lsi") }

// numbered lists the keys of families in the order of the families, then of their numbers.
func (g *Guest) numbered(families ...string) []string {
	var keys []string
	for _, l := range g.lines {
		if family, _, ok := SplitIndex(l.key); ok && slices.Contains(families, family) {
			keys = append(keys, l.key)
		}
	}
	slices.SortFunc(keys, func(a, b string) int {
		fa, na, _ := SplitIndex(a)
		fb, nb, _ := SplitIndex(b)
		return cmp.Or(cmp.Compare(slices.Index(families, fa), slices.Index(families, fb)), cmp.Compare(na, nb))
	})
	return keys
}

// Disks lists the disks that the machine is given: virtio[n], then scsi[n], each by number.
func (g *Guest) Disks() []Disk { return each(g, ParseDisk, "virtio", "scsi") }

// Drives lists all that the file has, those on SATA and IDE too, which have no effect yet.
func (g *Guest) Drives() []Disk { return each(g, ParseDisk, "virtio", "scsi", "sata", "ide") }

// Nets lists net[n] by number.
func (g *Guest) Nets() []Net { return each(g, ParseNet, "net") }

// USBs lists usb[n] by number.
func (g *Guest) USBs() []USB { return each(g, ParseUSB, "usb") }

// HostPCIs lists hostpci[n] by number.
func (g *Guest) HostPCIs() []HostPCI { return each(g, ParseHostPCI, "hostpci") }

// NUMANodes lists numa[n] by number.
func (g *Guest) NUMANodes() []NUMANode { return each(g, ParseNUMANode, "numa") }

// VirtioFS lists virtiofs[n] by number.
func (g *Guest) VirtioFS() []VirtioFS { return each(g, ParseVirtioFS, "virtiofs") }

// Serials lists the keys serial[n] by number.
func (g *Guest) Serials() []string { return g.numbered("serial") }

// Unused lists the volumes that belong to the guest and are no disk of it now.
func (g *Guest) Unused() []Prop {
	return each(g, func(key, value string) (Prop, error) {
		os, err := readChecked(key, value)
		return Prop{key, os.text("file")}, err
	}, "unused")
}

// EFIDisk is the disk of the firmware's variables; ok is false without one.
func (g *Guest) EFIDisk() (d EFIDisk, ok bool) { return one(g, "efidisk0", ParseEFIDisk) }

// TPMState is the disk of the TPM; ok is false without one.
func (g *Guest) TPMState() (s TPMState, ok bool) { return one(g, "tpmstate0", ParseTPMState) }

// RNG is the source of random numbers; ok is false without one.
func (g *Guest) RNG() (r RNG, ok bool) { return one(g, "rng0", ParseRNG) }

// Watchdog is the watchdog card; ok is false without one.
func (g *Guest) Watchdog() (w Watchdog, ok bool) { return one(g, "watchdog", ParseWatchdog) }

// Audio is the sound card; ok is false without one.
func (g *Guest) Audio() (a Audio, ok bool) { return one(g, "audio0", ParseAudio) }

// SPICE are the extensions of the display's protocol; ok is false without a line.
func (g *Guest) SPICE() (s SPICE, ok bool) { return one(g, "spice_enhancements", ParseSPICE) }

// IVSHMem is memory shared with the node; ok is false without a line.
func (g *Guest) IVSHMem() (m IVSHMem, ok bool) { return one(g, "ivshmem", ParseIVSHMem) }

// Startup is the order in which the node's guests start; ok is false without a line.
func (g *Guest) Startup() (s Startup, ok bool) { return one(g, "startup", ParseStartup) }

// Hotplug lists what may be plugged while the guest runs; network, disk and usb by default.
func (g *Guest) Hotplug() []string {
	features, _ := ParseHotplug(g.value("hotplug", "1"))
	return features
}

// HookScript is the volume of a script that is run around start and stop, "" without one.
func (g *Guest) HookScript() string { return g.value("hookscript", "") }

// NUMA says that the guest has NUMA nodes.
func (g *Guest) NUMA() bool { return g.flag("numa", false) }

// BIOS is the firmware, "seabios" by default.
func (g *Guest) BIOS() string { return g.value("bios", "seabios") }

// BootOrder lists the devices to boot from, nil if the file does not say.
func (g *Guest) BootOrder() []string {
	b, _ := one(g, "boot", ParseBoot)
	return b.Order
}
