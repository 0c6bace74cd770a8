package pveconf

import (
	"cmp"
	"encoding/base64"
	"math"
	"slices"
	"strings"

	"sauh.dev/sauh/internal/core/model"
)

// Disk is a disk of a guest: virtio[n] or scsi[n].
type Disk struct {
	Key string // "virtio0"
	// Volume is "<storage>:<name>", or an absolute path.
	Volume string
	// Format is "raw", "qcow2" or "" if the line does not say.
	Format string
	Size   int64 // bytes, 0 if the line does not say
	// Cache is Proxmox VE's cache mode, "" for none.
	Cache    string
	Discard  bool
	ReadOnly bool
	CDROM    bool
	Serial   string
	// WError and RError are what happens on an I/O error, "" leaves it to the driver.
	WError, RError string
	// ImportFrom is the volume or file that a new disk is copied from.
	ImportFrom string
	Props      Props
}

// Net is a network card of a guest: net[n].
type Net struct {
	Key      string // "net0"
	Model    string // "virtio", "e1000" …
	MAC      string // upper case; "" until one is generated
	Bridge   string
	Firewall bool
	LinkDown bool
	MTU      int // 0: QEMU's default
	Props    Props
}

// CPU is the processor model of a guest.
type CPU struct {
	Type  string   // "" for the default of the accelerator
	Flags []string // "+aes", "-svm"
}

// SMBIOS are the fields of smbios1, decoded.
type SMBIOS struct {
	UUID   string
	Fields Props // manufacturer, product, version, serial, sku, family
}

// DiskFormat is the format of a disk's property string.
func DiskFormat() Format {
	return Format{
		Default: "file",
		Keys: []string{
			"file", "aio", "backup", "bps", "bps_max_length", "bps_rd", "bps_rd_max_length", "bps_wr",
			"bps_wr_max_length", "cache", "detect_zeroes", "discard", "format", "import-from", "iops", "iops_max",
			"iops_max_length", "iops_rd", "iops_rd_max", "iops_rd_max_length", "iops_wr", "iops_wr_max",
			"iops_wr_max_length", "iothread", "mbps", "mbps_max", "mbps_rd", "mbps_rd_max", "mbps_wr", "mbps_wr_max",
			"media", "product", "queues", "replicate", "rerror", "ro", "scsiblock", "serial", "shared", "size",
			"snapshot", "ssd", "vendor", "werror", "wwn",
		},
		Aliases: []Alias{
			{Name: "volume", Key: "file"},
			{Name: "bps_rd_length", Key: "bps_rd_max_length"},
			{Name: "bps_wr_length", Key: "bps_wr_max_length"},
			{Name: "iops_rd_length", Key: "iops_rd_max_length"},
			{Name: "iops_wr_length", Key: "iops_wr_max_length"},
		},
	}
}

func netModels() []string {
	return []string{
		"virtio", "e1000", "e1000-82540em", "e1000-82544gc", "e1000-82545em", "e1000e", "i82551", "i82557b",
		"i82559er", "ne2k_isa", "ne2k_pci", "pcnet", "rtl8139", "vmxnet3",
	}
}

// NetFormat is the format of a network card's property string.
func NetFormat() Format {
	f := Format{
		Default: "model",
		Keys:    []string{"model", "macaddr", "bridge", "firewall", "link_down", "mtu", "queues", "rate", "tag", "trunks"},
	}
	for _, m := range netModels() {
		f.Aliases = append(f.Aliases, Alias{Name: m, Key: "macaddr", NameKey: "model"})
	}
	return f
}

func vgaFormat() Format {
	return Format{Default: "type", Keys: []string{"type", "memory", "clipboard"}}
}

// ParseDisk reads the value of virtio[n] or scsi[n].
func ParseDisk(key, value string) (Disk, error) {
	ps, err := ParseProps(key, DiskFormat(), value)
	if err != nil {
		return Disk{}, err
	}
	d := Disk{Key: key, Props: ps}
	d.Volume, _ = ps.Get("file")
	if !volid.MatchString(d.Volume) {
		return Disk{}, model.Invalidf(key, "%q is not a volume: write storage:name, such as nas:100/vm-100-disk-0.qcow2", d.Volume)
	}
	d.Cache, _ = ps.Get("cache")
	d.Format, _ = ps.Get("format")
	d.Serial, _ = ps.Get("serial")
	d.WError, _ = ps.Get("werror")
	d.RError, _ = ps.Get("rerror")
	d.ImportFrom, _ = ps.Get("import-from")
	if size, ok := ps.Get("size"); ok {
		if d.Size, err = parseSize(key, size); err != nil {
			return Disk{}, err
		}
	}
	if ro, ok := ps.Get("ro"); ok {
		if d.ReadOnly, err = parseBool(key, ro); err != nil {
			return Disk{}, err
		}
	}
	if discard, _ := ps.Get("discard"); discard == "on" {
		d.Discard = true
	}
	if media, _ := ps.Get("media"); media == "cdrom" {
		d.CDROM = true
	}
	return d, diskEnums(key, ps)
}

func diskEnums(key string, ps Props) error {
	for _, e := range []struct {
		prop    string
		allowed []string
	}{
		{"format", []string{"raw", "qcow", "qed", "qcow2", "vmdk", "cloop"}},
		{"cache", []string{"none", "writethrough", "writeback", "unsafe", "directsync"}},
		{"aio", []string{"native", "threads", "io_uring"}},
		{"discard", []string{"ignore", "on"}},
		{"media", []string{"cdrom", "disk"}},
		{"werror", []string{"enospc", "ignore", "report", "stop"}},
		{"rerror", []string{"ignore", "report", "stop"}},
	} {
		if v, ok := ps.Get(e.prop); ok && !slices.Contains(e.allowed, v) {
			return model.Invalidf(key, "%s=%s is not allowed: use one of %s", e.prop, v, strings.Join(e.allowed, ", "))
		}
	}
	return nil
}

// ParseNet reads the value of net[n].
func ParseNet(key, value string) (Net, error) {
	ps, err := ParseProps(key, NetFormat(), value)
	if err != nil {
		return Net{}, err
	}
	n := Net{Key: key, Props: ps}
	n.Model, _ = ps.Get("model")
	if !slices.Contains(netModels(), n.Model) {
		return Net{}, model.Invalidf(key, "%q is not a network card: use one of %s", n.Model, strings.Join(netModels(), ", "))
	}
	mac, _ := ps.Get("macaddr")
	if mac != "" && !macAddr.MatchString(mac) {
		return Net{}, model.Invalidf(key, "%q is not the MAC address of a card: write six hexadecimal bytes, the first one even, such as BC:24:11:00:00:01", mac)
	}
	n.MAC = strings.ToUpper(mac)
	n.Bridge, _ = ps.Get("bridge")
	if n.Bridge != "" && !bridge.MatchString(n.Bridge) {
		return Net{}, model.Invalidf(key, "%q cannot name a bridge: use at most 15 letters, digits, '-', '_' and '.'", n.Bridge)
	}
	for prop, target := range map[string]*bool{"firewall": &n.Firewall, "link_down": &n.LinkDown} {
		if v, ok := ps.Get(prop); ok {
			if *target, err = parseBool(key, v); err != nil {
				return Net{}, err
			}
		}
	}
	if mtu, ok := ps.Get("mtu"); ok {
		v, err := parseInt(key, mtu, 1, 65520)
		if err != nil {
			return Net{}, err
		}
		n.MTU = int(v)
	}
	return n, nil
}

// ParseCPU reads the value of cpu.
func ParseCPU(value string) (CPU, error) {
	f := Format{Default: "cputype", Keys: []string{"cputype", "flags", "guest-phys-bits", "hidden", "hv-vendor-id", "level", "phys-bits", "reported-model"}}
	ps, err := ParseProps("cpu", f, value)
	if err != nil {
		return CPU{}, err
	}
	c := CPU{}
	c.Type, _ = ps.Get("cputype")
	if c.Type != "" && !cpuType.MatchString(c.Type) {
		return CPU{}, model.Invalidf("cpu", "%q cannot be a CPU model", c.Type)
	}
	if flags, ok := ps.Get("flags"); ok {
		for flag := range strings.SplitSeq(flags, ";") {
			if !cpuFlag.MatchString(flag) {
				return CPU{}, model.Invalidf("cpu", "flag %q is not allowed: write +flag or -flag, separated by ';'", flag)
			}
			c.Flags = append(c.Flags, flag)
		}
	}
	return c, nil
}

func parseMemory(value string) (int64, error) {
	ps, err := ParseProps("memory", Format{Default: "current", Keys: []string{"current"}}, value)
	if err != nil {
		return 0, err
	}
	current, _ := ps.Get("current")
	n, err := parseInt("memory", current, 16, 16<<20) // 16 MiB to 16 TiB, in MiB
	if err != nil {
		return 0, model.Invalidf("memory", "%q is not allowed: use a whole number of MiB from 16 to %d", current, 16<<20)
	}
	return n, nil
}

func parseMachine(value string) (string, error) {
	ps, err := ParseProps("machine", Format{Default: "type", Keys: []string{"type", "viommu", "aw-bits", "enable-s3", "enable-s4"}}, value)
	if err != nil {
		return "", err
	}
	typ, _ := ps.Get("type")
	if typ != "" && !machine.MatchString(typ) {
		return "", model.Invalidf("machine", "%q is not a machine type: use pc, q35 or a version of one, such as pc-i440fx-10.0", typ)
	}
	return typ, nil
}

// parseBoot returns the devices in order; nil for the old form ("cdn"), which names none.
func parseBoot(value string) ([]string, error) {
	ps, err := ParseProps("boot", Format{Default: "legacy", Keys: []string{"legacy", "order"}}, value)
	if err != nil {
		return nil, err
	}
	if legacy, ok := ps.Get("legacy"); ok && strings.Trim(legacy, "acdn") != "" {
		return nil, model.Invalidf("boot", "%q is not a boot order: write order=virtio0;net0", legacy)
	}
	order, ok := ps.Get("order")
	if !ok {
		return nil, nil
	}
	devices := strings.Split(order, ";")
	for i, d := range devices {
		family, _, numbered := SplitIndex(d)
		if !numbered || !slices.Contains([]string{"virtio", "scsi", "sata", "ide", "net", "hostpci", "usb"}, family) {
			return nil, model.Invalidf("boot", "%q is not a device to boot from: write order=virtio0;net0", d)
		}
		if slices.Contains(devices[:i], d) {
			return nil, model.Invalidf("boot", "%s stands in the order twice", d)
		}
	}
	return devices, nil
}

func parseAgent(value string) (bool, error) {
	f := Format{
		Default: "enabled", Keys: []string{"enabled", "freeze-fs", "fstrim_cloned_disks", "type"},
		Aliases: []Alias{{Name: "freeze-fs-on-backup", Key: "freeze-fs"}, {Name: "guest-fsfreeze", Key: "freeze-fs"}},
	}
	ps, err := ParseProps("agent", f, value)
	if err != nil {
		return false, err
	}
	enabled, ok := ps.Get("enabled")
	if !ok {
		return false, model.Invalidf("agent", "write 1 or 0 first")
	}
	return parseBool("agent", enabled)
}

// ParseSMBIOS reads the value of smbios1; with base64=1 the texts are decoded.
func ParseSMBIOS(value string) (SMBIOS, error) {
	f := Format{Keys: []string{"uuid", "manufacturer", "product", "version", "serial", "sku", "family", "base64"}}
	ps, err := ParseProps("smbios1", f, value)
	if err != nil {
		return SMBIOS{}, err
	}
	var s SMBIOS
	s.UUID, _ = ps.Get("uuid")
	if s.UUID != "" && !uuidText.MatchString(s.UUID) {
		return SMBIOS{}, model.Invalidf("smbios1", "%q is not a UUID", s.UUID)
	}
	encoded, _ := ps.Get("base64")
	for _, p := range ps.Without("uuid", "base64") {
		if encoded == "1" {
			text, err := base64.StdEncoding.DecodeString(p.Value)
			if err != nil {
				return SMBIOS{}, model.Invalidf("smbios1", "%s=%s is not base64, although base64=1", p.Key, p.Value)
			}
			p.Value = string(text)
		}
		s.Fields = append(s.Fields, p)
	}
	return s, nil
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
	n, err := parseMemory(g.value("memory", "512"))
	if err != nil {
		return 512
	}
	return n
}

// Cores is the number of cores per socket.
func (g *Guest) Cores() int { return int(g.number("cores", 1)) }

// Sockets is the number of processor sockets.
func (g *Guest) Sockets() int { return int(g.number("sockets", 1)) }

// CPU is the processor model; its zero value means the default.
func (g *Guest) CPU() CPU {
	c, _ := ParseCPU(g.value("cpu", ""))
	return c
}

// Machine is the machine type as it stands in the file, "pc" by default.
func (g *Guest) Machine() string {
	m, _ := parseMachine(g.value("machine", ""))
	return cmp.Or(m, "pc")
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
func (g *Guest) Agent() bool {
	on, _ := parseAgent(g.value("agent", "0"))
	return on
}

// Template says that the guest is a template and cannot be started.
func (g *Guest) Template() bool { return g.flag("template", false) }

// Protection says that the guest must not be destroyed.
func (g *Guest) Protection() bool { return g.flag("protection", false) }

// Lock names the operation that has locked the guest, "" if none has.
func (g *Guest) Lock() string { return g.value("lock", "") }

// VGA is the display as it stands in the file, "" for the default.
func (g *Guest) VGA() string { return g.value("vga", "") }

// Args are further arguments for QEMU, "" if there are none.
func (g *Guest) Args() string { return g.value("args", "") }

// Description is the text for people, lines ended by "\n".
func (g *Guest) Description() string { return g.description }

// SMBIOS returns the identity that the firmware shows to the guest.
func (g *Guest) SMBIOS() SMBIOS {
	s, _ := ParseSMBIOS(g.value("smbios1", ""))
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

// numbered lists the keys of a family in the order of their numbers.
func (g *Guest) numbered(families ...string) []string {
	var keys []string
	for _, e := range g.entries {
		if family, _, ok := SplitIndex(e.key); ok && slices.Contains(families, family) {
			keys = append(keys, e.key)
		}
	}
	slices.SortFunc(keys, func(a, b string) int {
		fa, na, _ := SplitIndex(a)
		fb, nb, _ := SplitIndex(b)
		return cmp.Or(cmp.Compare(slices.Index(families, fa), slices.Index(families, fb)), cmp.Compare(na, nb))
	})
	return keys
}

// Disks lists virtio[n], then scsi[n], each by number.
func (g *Guest) Disks() []Disk {
	var disks []Disk
	for _, k := range g.numbered("virtio", "scsi") {
		if d, err := ParseDisk(k, g.value(k, "")); err == nil {
			disks = append(disks, d)
		}
	}
	return disks
}

// Nets lists net[n] by number.
func (g *Guest) Nets() []Net {
	var nets []Net
	for _, k := range g.numbered("net") {
		if n, err := ParseNet(k, g.value(k, "")); err == nil {
			nets = append(nets, n)
		}
	}
	return nets
}

// Serials lists the keys serial[n] by number.
func (g *Guest) Serials() []string { return g.numbered("serial") }

// BootOrder lists the devices to boot from, nil if the file does not say.
func (g *Guest) BootOrder() []string {
	order, _ := parseBoot(g.value("boot", ""))
	return order
}
