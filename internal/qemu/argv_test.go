package qemu

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/storage"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func smallSpec() Spec {
	return Spec{
		VMID: 100, Name: "web", RunDir: "/run/sauh/qemu", Accel: TCG, Machine: "pc-i440fx-10.0",
		CPU: "qemu64", Sockets: 1, Cores: 1, MemoryMiB: 256, Serials: []string{"socket"},
	}
}

func diskSpec() Spec {
	s := smallSpec()
	s.UUID = "6e2c5f0a-3f0e-4a57-9c0d-1d2b8a5f7c11"
	s.Disks = []Disk{
		{ID: "virtio0", Path: "/srv/nas/images/100/vm-100-disk-0.qcow2", Format: storage.QCOW2, Direct: true, Discard: true, WError: "stop", RError: "stop", BootIndex: 100},
		{ID: "virtio1", Path: "/srv/n,a\"s/x.raw", Format: storage.Raw, WriteThrough: true, ReadOnly: true, Serial: "a,b", WError: "report", RError: "report"},
		{ID: "virtio7", Path: "/srv/7.raw", Format: storage.Raw, NoFlush: true, WError: "stop", RError: "stop"},
	}
	s.NICs = []NIC{
		{ID: "net0", Device: virtioNet, MAC: "BC:24:11:00:00:01", Bridge: "vmbr0", Tap: "tap100i0", MTU: 1400},
		{ID: "net1", Device: "e1000", MAC: "BC:24:11:00:00:02", BootIndex: 101},
	}
	return s
}

func fullSpec() Spec {
	s := diskSpec()
	s.Name, s.Accel, s.CPU, s.Machine = "a,b", KVM, "host,enforce", "pc-i440fx-10.0+sauh1"
	s.NoACPI, s.GuestAgent, s.Incoming, s.Paused = true, true, true, true
	s.VMGenID = "0f6f3a54-94a5-4a1c-8a8e-1e2d3c4b5a69"
	s.SMBIOS = []string{"manufacturer=Acme, Inc.", "product=Anchor"}
	s.SCSIController = "virtio-scsi-pci"
	s.Disks = append(s.Disks,
		Disk{ID: "scsi0", Path: "/srv/s.raw", Format: storage.Raw, WError: "stop", RError: "stop"},
		Disk{ID: "scsi1", Path: "/srv/cd.iso", Format: storage.Raw, CDROM: true})
	s.Serials = []string{"socket", "", "/dev/ttyS0"}
	s.Extra = []string{"-device", "virtio-rng-pci"}
	return s
}

func TestArgvIsWhatTheGoldenFilesSay(t *testing.T) {
	for name, s := range map[string]Spec{"small": smallSpec(), "disks": diskSpec(), "full": fullSpec()} {
		t.Run(name, func(t *testing.T) { golden(t, name, oneOptionALine(Argv(s))) })
	}
}

func oneOptionALine(argv []string) string {
	var b strings.Builder
	for _, a := range argv {
		if strings.HasPrefix(a, "-") && b.Len() > 0 {
			b.WriteString("\n")
		} else if b.Len() > 0 {
			b.WriteString(" ")
		}
		b.WriteString(a)
	}
	return b.String() + "\n"
}

func TestArgvDoesNotChangeItsSpec(t *testing.T) {
	s := fullSpec()
	if diff := cmp.Diff(Argv(s), Argv(s)); diff != "" {
		t.Errorf("two calls differ:\n%s", diff)
	}
	if diff := cmp.Diff(fullSpec(), s); diff != "" {
		t.Errorf("the Spec changed:\n%s", diff)
	}
}
