package qemu

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/storage"
)

// Resolver answers what a configuration leaves to the node.
type Resolver interface {
	// File returns the path and the format of a volume; see storage.Driver.File.
	File(ctx context.Context, volid string) (path string, f storage.Format, err error)
	// Direct reports whether the file at path can be opened with O_DIRECT; ProbeDirect does it.
	Direct(path string) bool
	// Machine returns the versioned machine type that name means; ResolveMachine does it.
	Machine(ctx context.Context, name string) (string, error)
}

// virtioNet is the device of the card model "virtio".
const virtioNet = "virtio-net-pci"

// FromConfig turns a guest's configuration into a Spec for this node. runDir is
// where its sockets will be, accel what this node can do (KVM or TCG). A template, a
// device that cannot be made, a volume that does not exist: the error is a sentence and
// names the key.
func FromConfig(ctx context.Context, id model.VMID, g *pveconf.Guest, runDir, accel string, r Resolver) (Spec, error) {
	if g.Template() {
		return Spec{}, model.Invalidf("template", "guest %s is a template and cannot be started: clone it", id)
	}
	if !g.KVM() {
		accel = TCG
	}
	cpu, err := CPUModel(accel, g.CPU())
	if err != nil {
		return Spec{}, err
	}
	extra, err := splitArgs(g.Args())
	if err != nil {
		return Spec{}, err
	}
	machine, err := r.Machine(ctx, g.Machine())
	if err != nil {
		return Spec{}, fmt.Errorf("machine of guest %s: %w", id, err)
	}
	s := Spec{
		VMID: id, Name: cmp.Or(g.Name(), "VM"+id.String()), RunDir: runDir, Accel: accel, Machine: withLayout(machine), NoACPI: !g.ACPI(),
		CPU: cpu, Sockets: g.Sockets(), Cores: g.Cores(), MemoryMiB: g.MemoryMiB(),
		UUID: g.SMBIOS().UUID, VMGenID: g.VMGenID(), Serials: serialPorts(g), GuestAgent: g.Agent(), Extra: extra,
	}
	for _, p := range g.SMBIOS().Fields {
		s.SMBIOS = append(s.SMBIOS, p.Key+"="+p.Value)
	}
	if err := s.addDisks(ctx, g, r); err != nil {
		return Spec{}, err
	}
	if err := s.addNICs(g); err != nil {
		return Spec{}, err
	}
	s.setBootOrder(g.BootOrder())
	return s, nil
}

// serialPorts always has port 0: it is a guest's only console.
func serialPorts(g *pveconf.Guest) []string {
	ports := make([]string, 4)
	ports[0] = "socket"
	for _, key := range g.Serials() {
		_, n, _ := pveconf.SplitIndex(key)
		ports[n], _ = g.Get(key)
	}
	for len(ports) > 1 && ports[len(ports)-1] == "" {
		ports = ports[:len(ports)-1]
	}
	return ports
}

func (s *Spec) addDisks(ctx context.Context, g *pveconf.Guest, r Resolver) error {
	for _, c := range g.Disks() {
		if c.Volume == "none" {
			continue // a drive without a medium
		}
		d, err := diskOf(ctx, c, r)
		if err != nil {
			return err
		}
		if strings.HasPrefix(d.ID, "scsi") {
			if s.SCSIController, err = scsiController(g.SCSIHW()); err != nil {
				return err
			}
		}
		s.Disks = append(s.Disks, d)
	}
	return nil
}

func diskOf(ctx context.Context, c pveconf.Disk, r Resolver) (Disk, error) {
	d := Disk{
		ID: c.Key, Volume: c.Volume, Discard: c.Discard, ReadOnly: c.ReadOnly, CDROM: c.CDROM, Serial: c.Serial,
		// An I/O error stops the guest instead of reaching it: a full or lost storage
		// costs a pause, after which QMP cont tries again, and not a broken file system.
		WError: cmp.Or(c.WError, "stop"), RError: cmp.Or(c.RError, "stop"),
		WriteThrough: c.Cache == "writethrough" || c.Cache == "directsync",
		NoFlush:      c.Cache == "unsafe",
	}
	if c.CDROM && strings.HasPrefix(c.Key, "virtio") {
		return Disk{}, model.Invalidf(c.Key, "a virtio disk cannot be a CD drive: use scsi[n]")
	}
	if filepath.IsAbs(c.Volume) {
		d.Path, d.Format = c.Volume, formatByName(c.Volume)
	} else {
		var err error
		if d.Path, d.Format, err = r.File(ctx, c.Volume); err != nil {
			return Disk{}, fmt.Errorf("%s: %w", c.Key, err)
		}
	}
	d.Format = cmp.Or(storage.Format(c.Format), d.Format)
	if d.Format != storage.Raw && d.Format != storage.QCOW2 {
		return Disk{}, model.Invalidf(c.Key, "format %s is not supported: use raw or qcow2", d.Format)
	}
	wantDirect := c.Cache == "" || c.Cache == "none" || c.Cache == "directsync"
	d.Direct = wantDirect && r.Direct(d.Path)
	return d, nil
}

func formatByName(path string) storage.Format {
	if strings.HasSuffix(path, ".qcow2") {
		return storage.QCOW2
	}
	return storage.Raw
}

func scsiController(hw string) (string, error) {
	switch hw {
	case "virtio-scsi-pci", "virtio-scsi-single":
		return "virtio-scsi-pci", nil
	case "lsi":
		return "lsi", nil
	}
	return "", model.Invalidf("scsihw", "%s is not supported: use virtio-scsi-pci", hw)
}

func (s *Spec) addNICs(g *pveconf.Guest) error {
	for _, c := range g.Nets() {
		device := map[string]string{
			"virtio": virtioNet, "e1000": "e1000", "e1000e": "e1000e", "rtl8139": "rtl8139", "vmxnet3": "vmxnet3",
		}[c.Model]
		if device == "" {
			return model.Invalidf(c.Key, "network card %s is not supported: use virtio", c.Model)
		}
		if c.MAC == "" {
			return model.Invalidf(c.Key, "the card has no MAC address: write virtio=BC:24:11:…")
		}
		n := NIC{ID: c.Key, Device: device, MAC: c.MAC, Bridge: c.Bridge}
		if c.MTU > 1 { // 1 means the bridge's MTU, which virtio takes over by itself
			n.MTU = c.MTU
		}
		if c.Bridge != "" {
			_, index, _ := pveconf.SplitIndex(c.Key)
			n.Tap = TapName(s.VMID, index)
		}
		s.NICs = append(s.NICs, n)
	}
	return nil
}

// setBootOrder numbers the devices from 100, as Proxmox VE does. Without an
// order the first disk comes first.
func (s *Spec) setBootOrder(order []string) {
	if order == nil && len(s.Disks) > 0 {
		order = []string{s.Disks[0].ID}
	}
	for i := range s.Disks {
		s.Disks[i].BootIndex = place(order, s.Disks[i].ID)
	}
	for i := range s.NICs {
		s.NICs[i].BootIndex = place(order, s.NICs[i].ID)
	}
}

func place(order []string, id string) int {
	if i := slices.Index(order, id); i >= 0 {
		return 100 + i
	}
	return 0
}

// splitArgs splits the key args as a shell would, without any expansion.
func splitArgs(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	inWord, quote := false, rune(0)
	escaped := false
	for _, c := range s {
		switch {
		case escaped:
			word.WriteRune(c)
			escaped = false
		case c == '\\' && quote != '\'':
			inWord, escaped = true, true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(c)
		case c == '\'' || c == '"':
			inWord, quote = true, c
		case c == ' ' || c == '\t':
			if inWord {
				words = append(words, word.String())
				word.Reset()
			}
			inWord = false
		default:
			inWord = true
			word.WriteRune(c)
		}
	}
	if quote != 0 || escaped {
		return nil, model.Invalidf("args", "a quote or backslash is not closed")
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}
