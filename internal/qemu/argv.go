package qemu

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"sauh.dev/sauh/internal/storage"
)

// Argv returns QEMU's arguments, the program's name not included. It is pure:
// the same Spec gives the same arguments on every node.
func Argv(s Spec) []string {
	machine, _, _ := splitMachine(s.Machine)
	a := []string{
		"-name", "guest=" + escape(s.Name) + ",debug-threads=on",
		"-no-user-config", "-nodefaults",
		"-display", "none",
		// No display, so firmware and boot loader print on the serial port instead.
		"-machine", machine + ",graphics=off" + opt(s.NoACPI, ",acpi=off"),
		"-accel", s.Accel,
		"-cpu", s.CPU,
		"-smp", fmt.Sprintf("cpus=%d,sockets=%d,cores=%d,threads=1", s.Sockets*s.Cores, s.Sockets, s.Cores),
		"-m", fmt.Sprintf("size=%dM", s.MemoryMiB),
		"-rtc", "base=utc",
		"-boot", "menu=off,strict=on,reboot-timeout=1000",
	}
	a = append(a, identity(s)...)
	a = append(a, monitors(s)...)
	a = append(a, serials(s)...)
	a = append(a, devices(s)...)
	if s.hasPanicDevice() {
		// QEMU would end a guest that says it panicked. A guest that has a plan for that, a reboot or a dump, keeps it.
		a = append(a, "-action", "panic=none")
	}
	if s.Incoming {
		a = append(a, "-incoming", "defer")
	}
	if s.Paused {
		a = append(a, "-S")
	}
	// The two other switches of the sandbox, elevateprivileges and spawn, forbid
	// what -daemonize itself does (setsid, fork).
	a = append(a, "-sandbox", "on,obsolete=deny,resourcecontrol=deny", "-pidfile", s.PIDFile(), "-daemonize")
	return append(a, s.Extra...)
}

func identity(s Spec) []string {
	var a []string
	if s.UUID != "" {
		a = append(a, "-uuid", s.UUID)
	}
	fields := make([]string, 0, len(s.SMBIOS))
	for _, f := range s.SMBIOS {
		fields = append(fields, ","+escape(f))
	}
	if len(fields) > 0 {
		a = append(a, "-smbios", "type=1"+strings.Join(fields, ""))
	}
	if s.VMGenID != "" {
		a = append(a, "-device", "vmgenid,guid="+s.VMGenID)
	}
	return a
}

func monitors(s Spec) []string {
	var a []string
	for _, m := range []struct{ id, path string }{{"qmp0", s.QMPSocket()}, {"qmp1", s.SpareSocket()}} {
		a = append(a, "-chardev", socket(m.id, m.path), "-mon", "chardev="+m.id+",mode=control")
	}
	return a
}

func serials(s Spec) []string {
	var a []string
	for n, where := range s.Serials {
		if where == "" {
			continue
		}
		id := "serial" + strconv.Itoa(n)
		chardev := "serial,id=" + id + ",path=" + escape(where)
		if where == "socket" {
			chardev = socket(id, s.SerialSocket(n)) + ",logfile=" + escape(s.SerialLog(n)) + ",logappend=off"
		}
		a = append(a, "-chardev", chardev, "-device", fmt.Sprintf("isa-serial,id=%s-port,index=%d,chardev=%s", id, n, id))
	}
	return a
}

func socket(id, path string) string {
	return "socket,id=" + id + ",path=" + escape(path) + ",server=on,wait=off"
}

// devices puts what has a fixed PCI slot first, because QEMU gives the others
// the lowest slot that is free at that moment.
func devices(s Spec) []string {
	var fixed, rest []string
	add := func(slot int, device string, backend ...string) {
		if slot > 0 {
			fixed = append(append(fixed, backend...), "-device", fmt.Sprintf("%s,addr=0x%x", device, slot))
		} else {
			rest = append(append(rest, backend...), "-device", device)
		}
	}
	if s.SCSIController != "" {
		add(0x5, s.SCSIController+",id=scsihw0")
	}
	if s.hasPanicDevice() {
		// Bits 0 and 1: panicked, and loads a kernel to write a dump. Newer QEMUs have more by themselves, older ones have not.
		add(0x9, "pvpanic-pci,id=panic0,events=3")
	}
	if s.GuestAgent {
		add(0x8, "virtio-serial-pci,id=qga0")
		rest = append(rest, "-chardev", socket("qga0", s.AgentSocket()),
			"-device", "virtserialport,chardev=qga0,name=org.qemu.guest_agent.0")
	}
	for _, d := range s.Disks {
		if strings.HasPrefix(d.ID, "scsi") {
			rest = append(append(rest, blockdev(d)...), "-device", scsiDevice(d))
		} else {
			add(slotOf(d.ID, "virtio", 0xa), diskOptions("virtio-blk-pci,write-cache="+onOff(!d.WriteThrough), d), blockdev(d)...)
		}
	}
	for _, n := range s.NICs {
		add(slotOf(n.ID, "net", 0x12), nicDevice(n), "-netdev", netdev(n))
	}
	return append(fixed, rest...)
}

// slotOf gives the first six devices of a kind the slots that Proxmox VE gives
// them, so that adding a disk does not rename a guest's network card. 0 leaves it to QEMU.
func slotOf(id, kind string, first int) int {
	n, err := strconv.Atoi(strings.TrimPrefix(id, kind))
	if err != nil || n > 5 {
		return 0
	}
	return first + n
}

func scsiDevice(d Disk) string {
	typ := "scsi-hd,write-cache=" + onOff(!d.WriteThrough)
	if d.CDROM {
		typ = "scsi-cd"
	}
	return diskOptions(typ+",bus=scsihw0.0,scsi-id="+strings.TrimPrefix(d.ID, "scsi"), d)
}

func diskOptions(device string, d Disk) string {
	device += ",id=" + d.ID + ",drive=drive-" + d.ID
	if !d.CDROM {
		device += ",werror=" + d.WError + ",rerror=" + d.RError
	}
	if d.Serial != "" {
		device += ",serial=" + escape(d.Serial)
	}
	return device + bootIndex(d.BootIndex)
}

// node is a -blockdev in JSON, where a path needs no quoting.
type node struct {
	Driver   string `json:"driver"`
	Name     string `json:"node-name"`
	Filename string `json:"filename,omitempty"`
	File     string `json:"file,omitempty"`
	AIO      string `json:"aio,omitempty"`
	Locking  string `json:"locking,omitempty"`
	Cache    cache  `json:"cache"`
	Discard  string `json:"discard"`
	ReadOnly bool   `json:"read-only"`
}

type cache struct {
	Direct  bool `json:"direct"`
	NoFlush bool `json:"no-flush"`
}

func blockdev(d Disk) []string {
	common := node{Cache: cache{d.Direct, d.NoFlush}, Discard: "ignore", ReadOnly: d.ReadOnly || d.CDROM}
	if d.Discard {
		common.Discard = "unmap"
	}
	file, top := common, common
	// Threads work on every file system; io_uring and native AIO do not.
	file.Driver, file.Name, file.Filename, file.AIO, file.Locking = "file", "file-"+d.ID, d.Path, "threads", "on"
	top.Driver, top.Name, top.File = string(d.Format), "drive-"+d.ID, file.Name
	if d.Format == "" {
		top.Driver = string(storage.Raw)
	}
	return []string{"-blockdev", asJSON(file), "-blockdev", asJSON(top)}
}

func asJSON(n node) string {
	text, err := json.Marshal(n)
	if err != nil {
		panic(err) // strings and booleans always have a JSON form
	}
	return string(text)
}

func netdev(n NIC) string {
	if n.Bridge == "" {
		return "user,id=" + n.ID
	}
	return "tap,id=" + n.ID + ",ifname=" + n.Tap + ",script=no,downscript=no"
}

func nicDevice(n NIC) string {
	device := n.Device + ",id=" + n.ID + ",netdev=" + n.ID + ",mac=" + n.MAC
	if n.MTU > 0 && n.Device == virtioNet {
		device += ",host_mtu=" + strconv.Itoa(n.MTU)
	}
	if n.BootIndex == 0 {
		device += ",romfile=" // the boot ROM is of no use to a card that nothing boots from
	}
	return device + bootIndex(n.BootIndex)
}

func bootIndex(n int) string {
	if n == 0 {
		return ""
	}
	return ",bootindex=" + strconv.Itoa(n)
}

// escape doubles the commas of a value inside QEMU's key=value lists.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func opt(b bool, s string) string {
	if b {
		return s
	}
	return ""
}
