package pveconf

import (
	"encoding/base64"
	"strings"

	"sauh.dev/sauh/internal/core/model"
)

// CPU is the processor model of a guest.
type CPU struct {
	Type  string   // "" for the default of the accelerator
	Flags []string // "+aes", "-svm"
	// Hidden keeps from the guest that it runs on KVM.
	Hidden        bool
	HVVendorID    string // shown to Windows instead of "Microsoft Hv"
	PhysBits      string // bits of a physical address: a number, "host", or "" for the default
	GuestPhysBits int    // of them those that the guest may use, 0 for the default
	Level         int64  // highest CPUID leaf, 0 for the default
	ReportedModel string // what a custom model shows to the guest; "" without a line
}

// SMBIOS are the fields of smbios1, decoded.
type SMBIOS struct {
	UUID   string
	Fields Props // manufacturer, product, version, serial, sku, family
}

// Machine is the kind of machine.
type Machine struct {
	Type   string // as it stands in the file, "" for the default
	VIOMMU string // "intel", "virtio" or ""
	AWBits int    // address bits of the IOMMU, 0 for the default
	// S3 and S4, suspending to memory and to disk: "1", "0", or "" for the machine type's default.
	EnableS3, EnableS4 string
}

// Agent says whether and how the QEMU guest agent is expected inside.
type Agent struct {
	Enabled           bool
	FreezeFS          bool   // freeze file systems for a backup
	FSTrimClonedDisks bool   // trim after a disk was moved or the guest migrated
	Type              string // "virtio" or "isa"
}

// Boot is what is booted from.
type Boot struct {
	Order  []string // devices; nil if the line does not say
	Legacy string   // the old form: letters of "acdn"
}

// NUMANode is numa[n]: a part of the guest's processors with its memory.
type NUMANode struct {
	Key       string
	CPUs      []Range
	MemoryMiB float64
	HostNodes []Range
	Policy    string // "preferred", "bind", "interleave" or ""
}

// VGA is the display.
type VGA struct {
	Type      string // "std" by default
	MemoryMiB int    // 0 for the default
	Clipboard string // "vnc" or ""
}

// RNG is a source of random numbers for the guest: rng0.
type RNG struct {
	Source   string // a device of the node
	MaxBytes int64  // within Period, 0 is no limit
	PeriodMS int64
}

// Watchdog is a watchdog card.
type Watchdog struct {
	Model  string // "i6300esb" or "ib700"
	Action string // when it is not fed: "reset", "shutdown", "poweroff", "pause", "debug", "none", or "" for QEMU's default
}

// Audio is audio0.
type Audio struct {
	Device string // "ich9-intel-hda", "intel-hda", "AC97"
	Driver string // "spice" or "none"
}

// SPICE is spice_enhancements.
type SPICE struct {
	FolderSharing  bool
	VideoStreaming string // "off", "all", "filter"
}

// Startup is the order and the pace in which a node's guests start and, backwards, end.
type Startup struct {
	Order       int64 // -1 without one, which is after those with one
	UpSeconds   int64 // waited after its start, -1 if the line does not say
	DownSeconds int64 // that it is given to end, -1 if the line does not say
}

// AMDSEV is encrypted memory on AMD's processors.
type AMDSEV struct {
	Type                                        string // "std", "es", "snp"
	AllowSMT, KernelHashes, NoDebug, NoKeyShare bool
}

// IntelTDX is a trust domain on Intel's processors.
type IntelTDX struct {
	Type                string
	Attestation         bool
	VsockCID, VsockPort int64 // 0 for the default
}

// ParseCPU reads the value of cpu.
func ParseCPU(value string) (CPU, error) {
	os, err := readChecked("cpu", value)
	if err != nil {
		return CPU{}, err
	}
	c := CPU{
		Type: os.text("cputype"), Flags: os.list("flags"), Hidden: os.flag("hidden"), HVVendorID: os.text("hv-vendor-id"),
		PhysBits: os.text("phys-bits"), GuestPhysBits: int(os.integer("guest-phys-bits")), Level: os.integer("level"),
	}
	c.ReportedModel, _ = os.Get("reported-model")
	return c, nil
}

// ParseMachine reads the value of machine, and of runningmachine.
func ParseMachine(value string) (Machine, error) {
	os, err := readChecked("machine", value)
	if err != nil {
		return Machine{}, err
	}
	return Machine{
		Type: os.text("type"), VIOMMU: os.text("viommu"), AWBits: int(os.number("aw-bits")),
		EnableS3: os.text("enable-s3"), EnableS4: os.text("enable-s4"),
	}, nil
}

// ParseAgent reads the value of agent.
func ParseAgent(value string) (Agent, error) {
	os, err := readChecked("agent", value)
	if err != nil {
		return Agent{}, err
	}
	return Agent{os.flag("enabled"), os.flag("freeze-fs"), os.flag("fstrim_cloned_disks"), os.text("type")}, nil
}

// ParseBoot reads the value of boot.
func ParseBoot(value string) (Boot, error) {
	os, err := readChecked("boot", value)
	if err != nil {
		return Boot{}, err
	}
	b := Boot{Order: os.list("order")}
	b.Legacy, _ = os.Get("legacy")
	return b, nil
}

// ParseNUMANode reads the value of numa[n].
func ParseNUMANode(key, value string) (NUMANode, error) {
	os, err := readChecked(key, value)
	if err != nil {
		return NUMANode{}, err
	}
	return NUMANode{key, parseRanges(os.list("cpus")), os.number("memory"), parseRanges(os.list("hostnodes")), os.text("policy")}, nil
}

// ParseVGA reads the value of vga.
func ParseVGA(value string) (VGA, error) {
	os, err := readChecked("vga", value)
	if err != nil {
		return VGA{}, err
	}
	return VGA{os.text("type"), int(os.integer("memory")), os.text("clipboard")}, nil
}

// ParseRNG reads the value of rng0.
func ParseRNG(value string) (RNG, error) {
	os, err := readChecked("rng0", value)
	if err != nil {
		return RNG{}, err
	}
	return RNG{os.text("source"), os.integer("max_bytes"), os.integer("period")}, nil
}

// ParseWatchdog reads the value of watchdog.
func ParseWatchdog(value string) (Watchdog, error) {
	os, err := readChecked("watchdog", value)
	if err != nil {
		return Watchdog{}, err
	}
	return Watchdog{os.text("model"), os.text("action")}, nil
}

// ParseAudio reads the value of audio0.
func ParseAudio(value string) (Audio, error) {
	os, err := readChecked("audio0", value)
	if err != nil {
		return Audio{}, err
	}
	return Audio{os.text("device"), os.text("driver")}, nil
}

// ParseSPICE reads the value of spice_enhancements.
func ParseSPICE(value string) (SPICE, error) {
	os, err := readChecked("spice_enhancements", value)
	if err != nil {
		return SPICE{}, err
	}
	return SPICE{os.flag("foldersharing"), os.text("videostreaming")}, nil
}

// ParseStartup reads the value of startup.
func ParseStartup(value string) (Startup, error) {
	os, err := readChecked("startup", value)
	if err != nil {
		return Startup{}, err
	}
	s := Startup{-1, -1, -1}
	for name, target := range map[string]*int64{"order": &s.Order, "up": &s.UpSeconds, "down": &s.DownSeconds} {
		if _, ok := os.Get(name); ok {
			*target = os.integer(name)
		}
	}
	return s, nil
}

// ParseAMDSEV reads the value of amd-sev.
func ParseAMDSEV(value string) (AMDSEV, error) {
	os, err := readChecked("amd-sev", value)
	if err != nil {
		return AMDSEV{}, err
	}
	return AMDSEV{os.text("type"), os.flag("allow-smt"), os.flag("kernel-hashes"), os.flag("no-debug"), os.flag("no-key-sharing")}, nil
}

// ParseIntelTDX reads the value of intel-tdx.
func ParseIntelTDX(value string) (IntelTDX, error) {
	os, err := readChecked("intel-tdx", value)
	if err != nil {
		return IntelTDX{}, err
	}
	return IntelTDX{os.text("type"), os.flag("attestation"), os.integer("vsock-cid"), os.integer("vsock-port")}, nil
}

// ParseSMBIOS reads the value of smbios1; with base64=1 the texts are decoded.
func ParseSMBIOS(value string) (SMBIOS, error) {
	os, err := readOptions("smbios1", value)
	if err != nil {
		return SMBIOS{}, err
	}
	return smbiosOf(os)
}

func smbiosOf(os options) (SMBIOS, error) {
	s := SMBIOS{UUID: os.text("uuid")}
	for _, p := range os.Without("uuid", "base64") {
		if os.flag("base64") {
			decoded, err := base64.StdEncoding.DecodeString(p.Value)
			if err != nil {
				return SMBIOS{}, model.Invalidf("smbios1", "%s=%s is not base64, although base64=1", p.Key, p.Value)
			}
			p.Value = string(decoded)
		}
		s.Fields = append(s.Fields, p)
	}
	return s, nil
}

// ParseHotplug reads the value of hotplug: "1" stands for network, disk and usb, "0" for nothing.
func ParseHotplug(value string) ([]string, error) {
	if err := Validate("hotplug", value); err != nil {
		return nil, err
	}
	switch value {
	case "0":
		return nil, nil
	case "1":
		return []string{"network", "disk", "usb"}, nil
	}
	return splitList(value), nil
}

// ParseAffinity reads the value of affinity: the node's processors that the guest may run on.
func ParseAffinity(value string) ([]Range, error) {
	if err := Validate("affinity", value); err != nil {
		return nil, err
	}
	return parseRanges(strings.Split(value, ",")), nil
}
