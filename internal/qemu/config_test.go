package qemu

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/storage"
)

// node1 resolves what a node would, from nothing but names.
type node1 struct{}

func (node1) File(_ context.Context, volid string) (string, storage.Format, error) {
	name, ok := strings.CutPrefix(volid, "nas:")
	if !ok {
		return "", "", model.Errorf(model.ErrNotFound, "volume %s does not exist", volid)
	}
	f := storage.Raw
	if strings.HasSuffix(name, ".qcow2") {
		f = storage.QCOW2
	}
	return "/srv/nas/images/" + name, f, nil
}

func (node1) Direct(path string) bool { return !strings.Contains(path, "fuse") }

func (node1) Machine(_ context.Context, name string) (string, error) {
	return resolveMachine("pc    Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-10.0)\npc-i440fx-9.2   Standard PC (i440FX + PIIX, 1996) (deprecated)\n", name)
}

func fromText(t *testing.T, text string) (Spec, error) {
	t.Helper()
	g, err := pveconf.ParseGuest([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return FromConfig(t.Context(), 100, g, "/run/sauh/qemu", TCG, node1{})
}

func TestAConfigurationBecomesASpec(t *testing.T) {
	got, err := fromText(t, `agent: 1
boot: order=virtio1;net0
cores: 2
machine: pc-i440fx-9.2+pve1
memory: 1024
name: web
net0: virtio=bc:24:11:00:00:01,bridge=vmbr0,mtu=1
net3: e1000=BC:24:11:00:00:02
scsi0: nas:100/vm-100-disk-2.raw,cache=writethrough
scsihw: virtio-scsi-single
serial1: socket
smbios1: uuid=6e2c5f0a-3f0e-4a57-9c0d-1d2b8a5f7c11,base64=1,product=QW5jaG9y
sockets: 2
virtio0: nas:100/vm-100-disk-0.qcow2,size=4G,discard=on
virtio1: /srv/fuse/x.raw,werror=report
args: -device 'virtio rng' "a b" c\ d
`)
	if err != nil {
		t.Fatal(err)
	}
	want := Spec{
		VMID: 100, Name: "web", RunDir: "/run/sauh/qemu", Accel: TCG, Machine: "pc-i440fx-9.2+sauh1",
		CPU: "qemu64,+popcnt,+pni,+sse4.1,+sse4.2,+ssse3,+aes", Sockets: 2, Cores: 2, MemoryMiB: 1024,
		UUID: "6e2c5f0a-3f0e-4a57-9c0d-1d2b8a5f7c11", SMBIOS: []string{"product=Anchor"},
		Disks: []Disk{
			{ID: "virtio0", Volume: "nas:100/vm-100-disk-0.qcow2", Path: "/srv/nas/images/100/vm-100-disk-0.qcow2", Format: storage.QCOW2, Direct: true, Discard: true, WError: "stop", RError: "stop"},
			{ID: "virtio1", Volume: "/srv/fuse/x.raw", Path: "/srv/fuse/x.raw", Format: storage.Raw, WError: "report", RError: "stop", BootIndex: 100},
			{ID: "scsi0", Volume: "nas:100/vm-100-disk-2.raw", Path: "/srv/nas/images/100/vm-100-disk-2.raw", Format: storage.Raw, WriteThrough: true, WError: "stop", RError: "stop"},
		},
		SCSIController: "virtio-scsi-pci",
		NICs: []NIC{
			{ID: "net0", Device: "virtio-net-pci", MAC: "BC:24:11:00:00:01", Bridge: "vmbr0", Tap: "tap100i0", BootIndex: 101},
			{ID: "net3", Device: "e1000", MAC: "BC:24:11:00:00:02"},
		},
		Serials: []string{"socket", "socket"}, GuestAgent: true,
		Extra: []string{"-device", "virtio rng", "a b", "c d"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("FromConfig (-want +got):\n%s", diff)
	}
}

func TestAnEmptyConfigurationIsAGuestWithAConsole(t *testing.T) {
	got, err := fromText(t, "")
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != "VM100" || got.MemoryMiB != 512 || got.Machine != "pc-i440fx-10.0+sauh1" || len(got.Serials) != 1 || got.Serials[0] != "socket" {
		t.Errorf("got %+v", got)
	}
}

func TestWhatCannotBeMadeIsNamed(t *testing.T) {
	for text, want := range map[string]string{
		"template: 1\n":                                "is a template",
		"virtio0: lost:100/vm-100-disk-0.raw\n":        "virtio0: volume lost:100/vm-100-disk-0.raw does not exist",
		"virtio0: nas:100/x,format=vmdk\n":             "format vmdk is not supported",
		"virtio0: nas:100/x,media=cdrom\n":             "cannot be a CD drive",
		"scsihw: megasas\nscsi0: nas:100/x\n":          "scsihw: megasas is not supported",
		"net0: pcnet=BC:24:11:00:00:01,bridge=vmbr0\n": "network card pcnet is not supported",
		"net0: virtio,bridge=vmbr0\n":                  "no MAC address",
		"cpu: host\n":                                  "needs KVM",
		"machine: pc-i440fx-3.1\n":                     "has no machine type",
		"args: 'open\n":                                "not closed",
	} {
		_, err := fromText(t, text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q in it", text, err, want)
		}
	}
}

func TestKVMOffInTheConfigurationMeansTCG(t *testing.T) {
	g, err := pveconf.ParseGuest([]byte("kvm: 0\ncpu: max\n"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := FromConfig(t.Context(), 100, g, "/run", KVM, node1{})
	if err != nil || s.Accel != TCG || s.CPU != "max" {
		t.Errorf("got %+v, %v", s, err)
	}
}

func TestTCGMigrationIsRefusedBelowQEMU8(t *testing.T) {
	for _, c := range []struct {
		accel, version string
		ok             bool
	}{
		{TCG, "7.2.13", false}, {TCG, "8.0.0", true}, {TCG, "10.0.2", true}, {KVM, "7.2.13", true}, {TCG, "x", false},
	} {
		err := SupportsMigration(c.accel, c.version)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, model.ErrInvalid) {
			t.Errorf("SupportsMigration(%s, %s): %v", c.accel, c.version, err)
		}
	}
}

func TestQEMUsComplaintsBecomeSentences(t *testing.T) {
	s := diskSpec()
	for _, c := range []struct {
		stderr string
		kind   error
		want   string
	}{
		{
			`qemu-system-x86_64: -blockdev {"driver":"qcow2","node-name":"drive-virtio0","file":"file-virtio0"}: Failed to get "write" lock` + "\nIs another process using the image [/srv/nas/images/100/vm-100-disk-0.qcow2]?\n",
			storage.ErrInUse, `the disk image /srv/nas/images/100/vm-100-disk-0.qcow2 of guest 100 is in use by another process: end that one first (Failed to get "write" lock)`,
		},
		{
			"qemu-system-x86_64: -blockdev {\"driver\":\"file\"}: Could not open '/srv/7.raw': No such file or directory\n",
			model.ErrNotFound, "the disk image /srv/7.raw of guest 100 cannot be opened: No such file or directory",
		},
		{
			"qemu-system-x86_64: -blockdev {}: Could not open '/srv/7.raw': Permission denied\n",
			model.ErrUnavailable, "the disk image /srv/7.raw of guest 100 cannot be opened: Permission denied",
		},
		{
			"qemu-system-x86_64: -blockdev {}: Could not open '/srv/7.raw': Transport endpoint is not connected\n",
			storage.ErrAway, "the disk image /srv/7.raw of guest 100 cannot be opened: Transport endpoint is not connected",
		},
		{
			"qemu-system-x86_64: -netdev tap,id=net0,ifname=tap100i0: could not configure /dev/net/tun (tap100i0): Device or resource busy\n",
			model.ErrBusy, "a network interface of guest 100 is in use by another process (could not configure /dev/net/tun (tap100i0): Device or resource busy)",
		},
		{
			"qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory\n",
			model.ErrUnavailable, "this node has not enough free memory for the 256 MiB of guest 100",
		},
		{
			"qemu-system-x86_64: warning: something\nqemu-system-x86_64: -device nonsense: 'nonsense' is not a valid device model name\n",
			model.ErrUnavailable, "QEMU refused to start guest 100: 'nonsense' is not a valid device model name",
		},
		{"", model.ErrUnavailable, "QEMU refused to start guest 100: exit status 1"},
	} {
		err := explain(s, c.stderr, errors.New("exit status 1"))
		if !errors.Is(err, c.kind) {
			t.Errorf("%q is not %q", err, c.kind)
		}
		if diff := cmp.Diff(c.want, err.Error()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

func TestACPUModelMustBeOneThatQEMULists(t *testing.T) {
	const help = `Available CPUs:
  Broadwell             (alias configured by machine type)
x86 qemu64              (alias configured by machine type)
  host                  processor with all supported host features

Recognized CPUID flags:
  3dnow 3dnowext
`
	for name, want := range map[string]bool{"Broadwell": true, "qemu64": true, "host": true, "bogus": false, "3dnow": false} {
		if got := knowsCPU(help, name); got != want {
			t.Errorf("%s is known: %t", name, got)
		}
	}
	if _, err := QEMUVersion(t.Context()); err != nil {
		t.Skip(err)
	}
	for _, model := range []string{"", "host", "x86-64-v2-AES", "x86-64-v4", "kvm64"} {
		if err := KnowsCPU(t.Context(), pveconf.CPU{Type: model}); err != nil {
			t.Error(err)
		}
	}
	if err := KnowsCPU(t.Context(), pveconf.CPU{Type: "bogus"}); err == nil {
		t.Error("a model that QEMU does not have is taken")
	}
}
