package pveconf_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

func guest(t *testing.T, name string) *pveconf.Guest {
	t.Helper()
	return parse(t, corpus(t)[name])
}

func same(t *testing.T, what string, want, got any) {
	t.Helper()
	ignore := cmpopts.IgnoreFields(pveconf.Disk{}, "Props")
	ignoreEFI := cmpopts.IgnoreFields(pveconf.EFIDisk{}, "Props")
	ignoreTPM := cmpopts.IgnoreFields(pveconf.TPMState{}, "Props")
	ignoreNet := cmpopts.IgnoreFields(pveconf.Net{}, "Props")
	if diff := cmp.Diff(want, got, ignore, ignoreEFI, ignoreTPM, ignoreNet); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestADiskHasAllOfItsOptions(t *testing.T) {
	disks := map[string]pveconf.Disk{}
	for _, d := range guest(t, "many-disks").Drives() {
		disks[d.Key] = d
	}
	for _, want := range []pveconf.Disk{
		{
			Key: "scsi0", Volume: "ceph:vm-105-disk-3", Size: 100 << 30, AIO: "native", Cache: "none", NoDetectZeroes: true,
			Discard: true, IOThread: true, Queues: 8, NoReplicate: true, SSD: true,
		},
		{Key: "scsi1", Volume: "/dev/disk/by-id/ata-WDC_WD40EFRX-68N32N0_WD-WCC7K0", Size: 3907018584 << 10, NoBackup: true, SCSIBlock: true},
		{Key: "scsi30", Volume: "ceph:vm-105-disk-4", Size: 4 << 40, Product: "ANCHOR DISK", Vendor: "SAUH", ReadOnly: true},
		{Key: "ide0", Volume: "local:105/vm-105-disk-0.raw", Size: 1 << 30, Model: "Big Disk 40"},
		{Key: "ide2", Volume: "local:iso/debian-12.iso", Size: 628 << 20, CDROM: true},
		{Key: "sata0", Volume: "local:105/vm-105-disk-1.qcow2", Size: 10 << 30, Cache: "directsync", Serial: "S3Z-001", SSD: true},
		{Key: "sata5", Volume: "local:105/vm-105-disk-2.vmdk", Size: 10 << 30, NoBackup: true, WWN: "0x5000c500a1b2c3d4"},
		{
			Key: "virtio0", Volume: "local-lvm:vm-105-disk-5", Size: 64 << 30, AIO: "io_uring",
			Limits: pveconf.Limits{
				ReadBytes: pveconf.Limit{PerSecond: 1 << 20, BurstSeconds: 10}, IOPS: pveconf.Limit{PerSecond: 500, Burst: 1000, BurstSeconds: 5},
			},
		},
		{
			Key: "virtio1", Volume: "local-lvm:vm-105-disk-6", Size: 64 << 30, RError: "report", WError: "enospc",
			Limits: pveconf.Limits{
				Bytes:     pveconf.Limit{PerSecond: 100 << 20, Burst: 401 << 19},
				ReadBytes: pveconf.Limit{PerSecond: 50 << 20}, WriteBytes: pveconf.Limit{PerSecond: 101 << 18},
			},
		},
		{
			Key: "virtio15", Volume: "local-lvm:vm-105-disk-7", Size: 1 << 40, Shared: true, Snapshot: true,
			Limits: pveconf.Limits{ReadIOPS: pveconf.Limit{PerSecond: 100, Burst: 200, BurstSeconds: 3}, WriteIOPS: pveconf.Limit{PerSecond: 100, Burst: 200, BurstSeconds: 3}},
		},
	} {
		same(t, want.Key, want, disks[want.Key])
	}
	g := guest(t, "many-disks")
	same(t, "Unused", []pveconf.Prop{{Key: "unused0", Value: "local:105/vm-105-disk-9.qcow2"}, {Key: "unused255", Value: "ceph:vm-105-disk-10"}}, g.Unused())
	if n := len(g.Disks()); n != 6 {
		t.Errorf("the machine is given %d disks", n)
	}
}

func TestACardHasAllOfItsOptions(t *testing.T) {
	g := parse(t, "net0: virtio=bc:24:11:00:00:01,bridge=vmbr0,tag=42,trunks=2;10-20,rate=12.5,queues=4,link_down=1,firewall=1,mtu=1\n")
	same(t, "Nets", []pveconf.Net{{
		Key: "net0", Model: "virtio", MAC: "BC:24:11:00:00:01", Bridge: "vmbr0", Tag: 42, Trunks: []pveconf.Range{{First: 2, Last: 2}, {First: 10, Last: 20}},
		Rate: 12.5, Queues: 4, LinkDown: true, Firewall: true, MTU: 1,
	}}, g.Nets())
}

func TestCloudInitIsReadWhole(t *testing.T) {
	same(t, "CloudInit", pveconf.CloudInit{
		User: "debian", Password: "$5$saltsalt$Fy5Z8b0p1nT7J0Zl3Z7f2m0yC5Hn9m2c8r1tq5l3u7D", NoUpgrade: true,
		SSHKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBkq+Zr/9x ops@example.org", "ssh-rsa AAAAB3NzaC1yc2E= jane"},
		Addresses: []pveconf.IPConfig{
			{Key: "ipconfig0", IP: "192.0.2.10/24", Gateway: "192.0.2.1", IP6: "auto"},
			{Key: "ipconfig1", IP: "dhcp", IP6: "2001:db8::10/64", Gateway6: "2001:db8::1"},
		},
		NameServers: []string{"192.0.2.53", "2001:db8::53"}, SearchDomains: []string{"example.org", "lab.example.org"},
		Custom: pveconf.CICustom{User: "local:snippets/user.yaml", Network: "local:snippets/net.yaml"},
	}, guest(t, "debian-cloudinit").CloudInit())
	if c := parse(t, "").CloudInit(); c.NoUpgrade || c.Addresses != nil || c.SSHKeys != nil {
		t.Errorf("without keys: %+v", c)
	}
}

func TestAWindowsGuestIsReadWhole(t *testing.T) {
	g := guest(t, "windows11")
	efi, _ := g.EFIDisk()
	same(t, "EFIDisk", pveconf.EFIDisk{Volume: "local-zfs:vm-110-disk-0", Size: 1 << 20, Type: "4m", PreEnrolledKeys: true, MSCert: "2023"}, efi)
	tpm, _ := g.TPMState()
	same(t, "TPMState", pveconf.TPMState{Volume: "local-zfs:vm-110-disk-2", Size: 4 << 20, Version: "v2.0"}, tpm)
	rng, _ := g.RNG()
	same(t, "RNG", pveconf.RNG{Source: "/dev/urandom", MaxBytes: 1024, PeriodMS: 1000}, rng)
	audio, _ := g.Audio()
	same(t, "Audio", pveconf.Audio{Device: "ich9-intel-hda", Driver: "spice"}, audio)
	spice, _ := g.SPICE()
	same(t, "SPICE", pveconf.SPICE{FolderSharing: true, VideoStreaming: "all"}, spice)
	same(t, "VGA", pveconf.VGA{Type: "qxl2", MemoryMiB: 64, Clipboard: "vnc"}, g.VGA())
	same(t, "CPU", pveconf.CPU{Type: "host", Flags: []string{"+hv-evmcs", "+hv-tlbflush", "-pcid"}, Hidden: true, HVVendorID: "proxmox", PhysBits: "host"}, g.CPU())
	same(t, "Machine", pveconf.Machine{Type: "pc-q35-9.0", VIOMMU: "virtio", AWBits: 48, EnableS3: "0", EnableS4: "0"}, g.MachineOptions())
	same(t, "USBs", []pveconf.USB{{Key: "usb0", SPICE: true, USB3: true}}, g.USBs())
	same(t, "Hotplug", []string{"disk", "network", "usb"}, g.Hotplug())
	same(t, "BIOS", "ovmf", g.BIOS())
	same(t, "Agent", pveconf.Agent{Enabled: true, FreezeFS: true, Type: "virtio"}, g.AgentOptions())
	same(t, "SMBIOS", pveconf.Props{{Key: "manufacturer", Value: "Sauh"}, {Key: "product", Value: "Anchor"}, {Key: "serial", Value: "123456"}}, g.SMBIOS().Fields)
	if l := g.Nets()[0]; !l.LinkDown || l.Queues != 4 || l.Model != "e1000e" {
		t.Errorf("net0 is %+v", l)
	}
}

func TestHardwareOfTheNodeIsReadWhole(t *testing.T) {
	g := guest(t, "passthrough")
	same(t, "HostPCIs", []pveconf.HostPCI{
		{Key: "hostpci0", Addresses: []string{"0000:01:00"}, Driver: "vfio", PCIe: true, XVGA: true, ROMFile: "vbios.bin"},
		{Key: "hostpci1", Mapping: "gpu", Driver: "vfio", MDev: "nvidia-63", NoROMBar: true},
		{
			Key: "hostpci2", Addresses: []string{"0000:02:00.0", "0000:02:00.1"}, Driver: "keep",
			VendorID: "0x10de", DeviceID: "0x1234", SubVendorID: "0x8086", SubDeviceID: "0xabcd",
		},
	}, g.HostPCIs())
	same(t, "USBs", []pveconf.USB{
		{Key: "usb0", VendorID: "046d", ProductID: "c52b"}, {Key: "usb1", Port: "1-1.4", USB3: true}, {Key: "usb2", Mapping: "dongle"},
	}, g.USBs())
	same(t, "NUMANodes", []pveconf.NUMANode{
		{Key: "numa0", CPUs: []pveconf.Range{{First: 0, Last: 3}}, MemoryMiB: 16384, HostNodes: []pveconf.Range{{}}, Policy: "bind"},
		{
			Key: "numa1", CPUs: []pveconf.Range{{First: 4, Last: 4}, {First: 5, Last: 5}, {First: 6, Last: 7}}, MemoryMiB: 16384,
			HostNodes: []pveconf.Range{{First: 1, Last: 1}}, Policy: "preferred",
		},
	}, g.NUMANodes())
	same(t, "VirtioFS", []pveconf.VirtioFS{
		{Key: "virtiofs0", DirID: "share", Cache: "always", DirectIO: true, ExposeACL: true},
		{Key: "virtiofs1", DirID: "data", Cache: "auto", ExposeXAttrs: true},
	}, g.VirtioFS())
	mem, _ := g.IVSHMem()
	same(t, "IVSHMem", pveconf.IVSHMem{SizeMiB: 32, Name: "looking-glass"}, mem)
	watchdog, _ := g.Watchdog()
	same(t, "Watchdog", pveconf.Watchdog{Model: "i6300esb", Action: "reset"}, watchdog)
	affinity, err := pveconf.ParseAffinity("0,2,4-7")
	same(t, "ParseAffinity", []pveconf.Range{{}, {First: 2, Last: 2}, {First: 4, Last: 7}}, affinity)
	if err != nil || g.MemoryMiB() != 32768 || !g.NUMA() || g.CPU().Level != 30 || g.CPU().GuestPhysBits != 42 {
		t.Errorf("%v, %d MiB, %+v", err, g.MemoryMiB(), g.CPU())
	}
	sev, _ := pveconf.ParseAMDSEV("snp,allow-smt=0,kernel-hashes=1,no-debug=1")
	same(t, "ParseAMDSEV", pveconf.AMDSEV{Type: "snp", KernelHashes: true, NoDebug: true}, sev)
	tdx, _ := pveconf.ParseIntelTDX("tdx,vsock-cid=2,vsock-port=4050")
	same(t, "ParseIntelTDX", pveconf.IntelTDX{Type: "tdx", Attestation: true, VsockCID: 2, VsockPort: 4050}, tdx)
}

func TestTheOrderOfStartsIsRead(t *testing.T) {
	for text, want := range map[string]pveconf.Startup{
		"2,up=30,down=60": {Order: 2, UpSeconds: 30, DownSeconds: 60}, "order=0": {UpSeconds: -1, DownSeconds: -1}, "up=5": {Order: -1, UpSeconds: 5, DownSeconds: -1},
	} {
		got, ok := parse(t, "startup: "+text+"\n").Startup()
		same(t, text, want, got)
		if !ok {
			t.Errorf("%s is not there", text)
		}
	}
	if _, ok := parse(t, "").Startup(); ok {
		t.Error("an empty file has an order")
	}
}

func TestSnapshotsAreATree(t *testing.T) {
	g := guest(t, "snapshots")
	all, err := g.Snapshots()
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		Name, Parent, VMState, Description string
		Time                               int64
		MemoryMiB                          int64
	}
	var got []row
	for _, s := range all {
		got = append(got, row{s.Name, s.Parent, s.VMState, s.Config.Description(), s.Time.Unix(), s.Config.MemoryMiB()})
	}
	same(t, "Snapshots", []row{
		{"after", "before-upgrade", "nas:103/vm-103-state-after.raw", "everything works: keep\n", 1712345678, 1024},
		{"before-upgrade", "root", "", "", 1702345678, 512},
		{"root", "", "", "", 1692345678, 512},
	}, got)
	if g.Parent() != "after" || all[0].Time.Location() != time.UTC {
		t.Errorf("the parent is %q, the time %v", g.Parent(), all[0].Time)
	}
	if s, err := guest(t, "locked-snapshot").Snapshots(); err != nil || s[0].State != "delete" {
		t.Errorf("%+v %v", s, err)
	}
}

func TestABrokenSnapshotIsNamedWhenItIsNeeded(t *testing.T) {
	g := parse(t, "name: a\n\n[old]\n#x\nmemory: lots\n")
	_, err := g.Snapshots()
	var invalid *model.InvalidError
	if !errors.As(err, &invalid) || invalid.Line != 5 || !strings.Contains(err.Error(), "line 5: [old] memory: \"lots\" is not allowed") {
		t.Errorf("got %v", err)
	}
	if _, err = parse(t, "[PENDING]\ndelete: nothing\n").Pending(); err == nil || !strings.Contains(err.Error(), "line 2: delete: \"nothing\" is no key") {
		t.Errorf("got %v", err)
	}
}

func TestPendingChangesAreRead(t *testing.T) {
	p, err := guest(t, "pending").Pending()
	if err != nil {
		t.Fatal(err)
	}
	same(t, "Delete", []pveconf.PendingDelete{{Key: "balloon"}, {Key: "scsi1", Force: true}}, p.Delete)
	same(t, "Set", map[string]string{"cores": "4", "memory": "8192", "net0": "virtio=BC:24:11:00:02:01,bridge=vmbr0,tag=7"}, p.Set.Values())
	if snaps, err := guest(t, "pending").Snapshots(); len(snaps) > 0 || err != nil {
		t.Errorf("other sections are taken for snapshots: %v %v", snaps, err)
	}
	if p, err := parse(t, "").Pending(); err != nil || len(p.Set.Keys())+len(p.Delete) > 0 {
		t.Errorf("of an empty file: %+v %v", p, err)
	}
}

// cdrom is Proxmox VE's other name of ide2.
func TestTheOldNameOfTheCDDriveIsItsNew(t *testing.T) {
	g := guest(t, "old-style")
	if v, ok := g.Get("ide2"); !ok || v != "none,media=cdrom" {
		t.Errorf("ide2 is %q", v)
	}
	if err := g.Set("cdrom", "local:iso/x.iso,media=cdrom"); err != nil {
		t.Fatal(err)
	}
	text := string(g.Bytes())
	if !strings.Contains(text, "\nide2: local:iso/x.iso,media=cdrom\n") || strings.Contains(text, "cdrom:") || !g.Delete("cdrom") {
		t.Errorf("got\n%s", text)
	}
}
