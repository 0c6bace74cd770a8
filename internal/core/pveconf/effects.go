package pveconf

import (
	"slices"
	"strings"
)

// Effect is what a key that is set does today.
type Effect int

// The effects.
const (
	// NoEffect: it is checked and kept, and the machine is made as if it were not there. A start names it.
	NoEffect Effect = iota
	// AtStart: the guest's process is made by it, so a guest that runs has it from its next start on.
	AtStart
	// AtOnce: it works from the moment when it is set.
	AtOnce
	// Noted: it says something about the guest, and there is nothing to do.
	Noted
)

// String is the word for e in a sentence or a table.
func (e Effect) String() string {
	switch e {
	case AtStart:
		return "at the next start"
	case AtOnce:
		return "at once"
	case Noted:
		return "noted"
	case NoEffect:
	}
	return "no effect"
}

// EffectRow is one row of the table.
type EffectRow struct {
	Key string // "net[n]" stands for net0, net1, …
	// Options are those of a structured key that the row is about, separated by blanks; "" is the key as a whole.
	Options string
	Effect  Effect
	// Neutral are the values, separated by blanks, that ask for what is done anyway, where the others have no effect.
	Neutral string
}

// Effects is the one table of what works: whoever makes something work changes its row. Each key, or each of its
// options, stands there once.
func Effects() []EffectRow {
	return slices.Concat(systemEffects(), deviceEffects(), diskEffects("scsi[n]"), diskEffects("virtio[n]"), otherEffects())
}

func systemEffects() []EffectRow {
	return []EffectRow{
		{"acpi", "", AtStart, ""},
		{"affinity", "", NoEffect, ""},
		{"agent", "enabled", AtStart, ""},
		{"agent", "freeze-fs fstrim_cloned_disks", NoEffect, "0"},
		{"agent", "type", NoEffect, "virtio"},
		{"allow-ksm", "", NoEffect, "1"},
		{"amd-sev", "", NoEffect, ""},
		{"arch", "", NoEffect, "x86_64"},
		{"args", "", AtStart, ""},
		{"balloon", "", NoEffect, "0"},
		{"bios", "", NoEffect, "seabios"},
		{"boot", "order", AtStart, ""},
		{"boot", "legacy", NoEffect, ""},
		{"bootdisk", "", NoEffect, ""},
		{"cores", "", AtStart, ""},
		{"cpu", "cputype flags", AtStart, ""},
		{"cpu", "hidden", NoEffect, "0"},
		{"cpu", "guest-phys-bits hv-vendor-id level phys-bits reported-model", NoEffect, ""},
		{"cpulimit", "", NoEffect, "0"},
		{"cpuunits", "", NoEffect, ""},
		{"freeze", "", NoEffect, "0"},
		{"hotplug", "", NoEffect, "0"},
		{"hugepages", "", NoEffect, ""},
		{"intel-tdx", "", NoEffect, ""},
		{"keephugepages", "", NoEffect, "0"},
		{"kvm", "", AtStart, ""},
		{"localtime", "", NoEffect, "0"},
		{"machine", "type", AtStart, ""},
		{"machine", "aw-bits enable-s3 enable-s4 viommu", NoEffect, ""},
		{"memory", "current", AtStart, ""},
		{"numa", "", NoEffect, "0"},
		{"numa[n]", "", NoEffect, ""},
		{"ostype", "", NoEffect, "other l24 l26 solaris"},
		{"reboot", "", NoEffect, "1"},
		{"shares", "", NoEffect, ""},
		{"smbios1", "uuid manufacturer product version serial sku family base64", AtStart, ""},
		{"smp", "", NoEffect, ""},
		{"sockets", "", AtStart, ""},
		{"startdate", "", NoEffect, "now"},
		{"tdf", "", NoEffect, "0"},
		{"vcpus", "", NoEffect, ""},
		{"vmgenid", "", AtStart, ""},
	}
}

func deviceEffects() []EffectRow {
	return []EffectRow{
		{"audio0", "", NoEffect, ""},
		{"efidisk0", "", NoEffect, ""},
		{"hostpci[n]", "", NoEffect, ""},
		{"ide[n]", "", NoEffect, ""},
		{"ivshmem", "", NoEffect, ""},
		{"keyboard", "", NoEffect, ""},
		{"net[n]", "bridge macaddr model mtu", AtStart, ""},
		{"net[n]", "firewall link_down rate", NoEffect, "0"},
		{"net[n]", "queues", NoEffect, "0 1"},
		{"net[n]", "tag trunks", NoEffect, ""},
		{"parallel[n]", "", NoEffect, ""},
		{"rng0", "", NoEffect, ""},
		{"sata[n]", "", NoEffect, ""},
		{"scsihw", "", AtStart, ""},
		{"serial[n]", "", AtStart, ""},
		{"spice_enhancements", "", NoEffect, ""},
		{"tablet", "", NoEffect, "0"},
		{"tpmstate0", "", NoEffect, ""},
		{"unused[n]", "", Noted, ""},
		{"usb[n]", "", NoEffect, ""},
		{"vga", "type", NoEffect, "none serial0 serial1 serial2 serial3"},
		{"vga", "clipboard memory", NoEffect, ""},
		{"virtiofs[n]", "", NoEffect, ""},
		{"watchdog", "", NoEffect, ""},
	}
}

// diskEffects are the rows of a bus whose disks are attached.
func diskEffects(key string) []EffectRow {
	rows := []EffectRow{
		{key, "cache discard file format import-from media rerror ro serial werror", AtStart, ""},
		{key, "backup replicate size", Noted, ""},
		{key, "aio", NoEffect, "threads"},
		{key, "detect_zeroes iothread shared snapshot", NoEffect, "0"},
		{key, "bps bps_rd bps_wr iops iops_max iops_rd iops_rd_max iops_wr iops_wr_max", NoEffect, "0"},
		{key, "mbps mbps_max mbps_rd mbps_rd_max mbps_wr mbps_wr_max", NoEffect, "0"},
		{key, "bps_max_length bps_rd_max_length bps_wr_max_length", NoEffect, ""},
		{key, "iops_max_length iops_rd_max_length iops_wr_max_length", NoEffect, ""},
	}
	if key == "scsi[n]" {
		rows = append(rows, EffectRow{key, "scsiblock ssd", NoEffect, "0"}, EffectRow{key, "product queues vendor wwn", NoEffect, ""})
	}
	return rows
}

// otherEffects are what is no part of the machine: life, cloud-init, and what Proxmox VE writes itself.
func otherEffects() []EffectRow {
	return []EffectRow{
		{"autostart", "", NoEffect, "0"},
		{"cicustom", "", NoEffect, ""},
		{"cipassword", "", NoEffect, ""},
		{"citype", "", NoEffect, ""},
		{"ciupgrade", "", NoEffect, ""},
		{"ciuser", "", NoEffect, ""},
		{"description", "", AtOnce, ""},
		{"digest", "", Noted, ""},
		{"hookscript", "", NoEffect, ""},
		{"ipconfig[n]", "", NoEffect, ""},
		{"lock", "", AtOnce, ""},
		{"meta", "", Noted, ""},
		{"migrate_downtime", "", NoEffect, ""},
		{"migrate_speed", "", NoEffect, "0"},
		{"name", "", AtOnce, ""},
		{"nameserver", "", NoEffect, ""},
		{"onboot", "", AtOnce, ""},
		{"parent", "", Noted, ""},
		{"protection", "", AtOnce, ""},
		{"running-nets-host-mtu", "", Noted, ""},
		{"runningcpu", "", Noted, ""},
		{"runningmachine", "", Noted, ""},
		{"searchdomain", "", NoEffect, ""},
		{"snapstate", "", Noted, ""},
		{"snaptime", "", Noted, ""},
		{"sshkeys", "", NoEffect, ""},
		{"startup", "", NoEffect, ""},
		{"tags", "", AtOnce, ""},
		{"template", "", AtOnce, ""},
		{"vmstate", "", Noted, ""},
		{"vmstatestorage", "", NoEffect, ""},
	}
}

// effectOf finds the row of a key, or of one of its options.
func effectOf(rows []EffectRow, key, name string) (EffectRow, bool) {
	key = collapse(canonical(key))
	for _, r := range rows {
		if r.Key == key && (r.Options == "" || inList(r.Options, name)) {
			return r, true
		}
	}
	return EffectRow{}, false
}

// AtNextStart reports whether a change of key, or of one of its options, reaches a guest that runs only when it is
// started anew.
func AtNextStart(key string) bool {
	key = collapse(canonical(key))
	return slices.ContainsFunc(Effects(), func(r EffectRow) bool { return r.Key == key && r.Effect == AtStart })
}

// Unsupported lists, sorted, what g sets and what has no effect on the machine that Sauh starts, so that a start can
// name it: keys ("hostpci0"), options of keys that work in part ("net0: tag=5"), keys that nobody knows.
func Unsupported(g *Guest) []string {
	var out []string
	rows := Effects()
	for _, key := range g.Keys() {
		value, _ := g.Get(key)
		row, known := effectOf(rows, key, "")
		switch {
		case known && row.Effect == NoEffect && !row.isNeutral(value), !Known(key):
			out = append(out, key)
		case !known:
			out = append(out, unsupportedOptions(rows, key, value)...)
		}
	}
	slices.Sort(out)
	return out
}

func unsupportedOptions(rows []EffectRow, key, value string) []string {
	os, err := readOptions(key, value)
	if err != nil {
		return nil // ParseGuest and Set have checked it
	}
	var out []string
	for _, p := range os.Props {
		if row, ok := effectOf(rows, key, p.Key); ok && row.Effect == NoEffect && !row.isNeutral(p.Value) {
			out = append(out, key+": "+p.Key+"="+p.Value)
		}
	}
	return out
}

// isNeutral is true where the value asks for what is done anyway.
func (r EffectRow) isNeutral(value string) bool {
	if b, err := parseBool("", value); err == nil && inList("0 1", r.Neutral) {
		return b == (r.Neutral == "1")
	}
	return r.Neutral != "" && inList(r.Neutral, strings.TrimSpace(value))
}
