package pveconf_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

const web = `#The web server%3A ask Jane
#
#100% uptime
agent: 1,fstrim_cloned_disks=1
boot: order=virtio0;net0
cores: 2
cpu: x86-64-v2-AES,flags=+aes;-svm
frobnicate: kept as it is
hostpci0: 0000:01:00.0
machine: pc-i440fx-9.2+pve1
memory: 2048
name: web.example
net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1,link_down=1,mtu=1400
net10: e1000=bc:24:11:00:00:0a
net2: model=rtl8139,macaddr=BC:24:11:00:00:02
onboot: 1
ostype: l26
scsi0: nas:100/vm-100-disk-1.raw,size=512M,ro=1
serial0: socket
smbios1: uuid=6e2c5f0a-3f0e-4a57-9c0d-1d2b8a5f7c11,base64=1,product=QW5jaG9y
sockets: 2
tags: a;b
vga: serial0
virtio0: nas:100/vm-100-disk-0.qcow2,size=4G,discard=on,werror=report
vmgenid: 0f6f3a54-94a5-4a1c-8a8e-1e2d3c4b5a69

[PENDING]
memory: 4096
delete: cores

[before-upgrade]
#a snapshot%3A
memory: 1024
whatever stands here
`

func parse(t *testing.T, text string) *pveconf.Guest {
	t.Helper()
	g, err := pveconf.ParseGuest([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestAGuestFileIsPrintedAsItWasRead(t *testing.T) {
	for _, text := range []string{"", "memory: 512\n", "#text\n", web} {
		if diff := cmp.Diff(text, string(parse(t, text).Bytes())); diff != "" {
			t.Errorf("(-read +printed):\n%s", diff)
		}
	}
}

func TestAccessorsReadWhatTheFileSays(t *testing.T) {
	g := parse(t, web)
	type scalars struct {
		Name, Machine, OSType, VGA, VMGenID, Description string
		MemoryMiB                                        int64
		Cores, Sockets                                   int
		OnBoot, Agent, ACPI, KVM, Template               bool
		CPU                                              pveconf.CPU
		Boot, Serials                                    []string
		SMBIOS                                           pveconf.SMBIOS
	}
	got := scalars{
		g.Name(), g.Machine(), g.OSType(), g.VGA().Type, g.VMGenID(), g.Description(), g.MemoryMiB(), g.Cores(), g.Sockets(),
		g.OnBoot(), g.Agent(), g.ACPI(), g.KVM(), g.Template(), g.CPU(), g.BootOrder(), g.Serials(), g.SMBIOS(),
	}
	want := scalars{
		Name: "web.example", Machine: "pc-i440fx-9.2+pve1", OSType: "l26", VGA: "serial0", VMGenID: "0f6f3a54-94a5-4a1c-8a8e-1e2d3c4b5a69",
		Description: "The web server: ask Jane\n\n100% uptime\n", MemoryMiB: 2048, Cores: 2, Sockets: 2,
		OnBoot: true, Agent: true, ACPI: true, KVM: true,
		CPU:  pveconf.CPU{Type: "x86-64-v2-AES", Flags: []string{"+aes", "-svm"}},
		Boot: []string{"virtio0", "net0"}, Serials: []string{"serial0"},
		SMBIOS: pveconf.SMBIOS{UUID: "6e2c5f0a-3f0e-4a57-9c0d-1d2b8a5f7c11", Fields: pveconf.Props{{Key: "product", Value: "Anchor"}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDevicesComeInTheOrderOfTheirNumbers(t *testing.T) {
	g := parse(t, web)
	disks := []pveconf.Disk{
		{Key: "virtio0", Volume: "nas:100/vm-100-disk-0.qcow2", Size: 4 << 30, Discard: true, WError: "report"},
		{Key: "scsi0", Volume: "nas:100/vm-100-disk-1.raw", Size: 512 << 20, ReadOnly: true},
	}
	if diff := cmp.Diff(disks, g.Disks(), cmpopts.IgnoreFields(pveconf.Disk{}, "Props")); diff != "" {
		t.Errorf("Disks (-want +got):\n%s", diff)
	}
	nets := []pveconf.Net{
		{Key: "net0", Model: "virtio", MAC: "BC:24:11:00:00:01", Bridge: "vmbr0", Firewall: true, LinkDown: true, MTU: 1400},
		{Key: "net2", Model: "rtl8139", MAC: "BC:24:11:00:00:02"},
		{Key: "net10", Model: "e1000", MAC: "BC:24:11:00:00:0A"},
	}
	if diff := cmp.Diff(nets, g.Nets(), cmpopts.IgnoreFields(pveconf.Net{}, "Props")); diff != "" {
		t.Errorf("Nets (-want +got):\n%s", diff)
	}
}

func TestAnEmptyFileHasProxmoxVEsDefaults(t *testing.T) {
	g := parse(t, "")
	if g.MemoryMiB() != 512 || g.Cores() != 1 || g.Sockets() != 1 || g.Machine() != "pc" || g.OSType() != "other" || !g.ACPI() || g.OnBoot() || g.Agent() {
		t.Errorf("memory %d cores %d sockets %d machine %s", g.MemoryMiB(), g.Cores(), g.Sockets(), g.Machine())
	}
}

func TestWhatIsWrongIsRefusedWithItsLine(t *testing.T) {
	for text, want := range map[string]string{
		"name: a\nmemory 512\n":            `line 2: "memory 512": not a configuration line: write "key: value"`,
		"name: a\n\n#x\nmemory: lots\n":    `line 4: memory: "lots" is not allowed: use a whole number of MiB from 16`,
		"memory: 8\n":                      "line 1: memory:",
		"cores: 0\n":                       "line 1: cores:",
		"cores: 1\ncores: 2\n":             "line 2: cores: given twice, first in line 1",
		"Memory: 512\n":                    "line 1:",
		"memory:\n":                        "line 1:",
		"name: -x\n":                       "line 1: name:",
		"onboot: maybe\n":                  `line 1: onboot: "maybe" is neither yes nor no`,
		"ostype: beos\n":                   "line 1: ostype: \"beos\" is not allowed: use one of other,",
		"lock: mine\n":                     "line 1: lock:",
		"net0: virtio=01:00:00:00:00:01\n": "line 1: net0:",
		"net0: tulip=BC:24:11:00:00:01\n":  "line 1: net0: invalid key in comma-separated list property: tulip",
		"net0: virtio,bridge=a b\n":        "line 1: net0: bridge=a b is not the name of a bridge",
		"net0: virtio,mtu=99999\n":         "line 1: net0:",
		"net0: virtio=BC:24:11:00:00:01,e1000=BC:24:11:00:00:01\n": "line 1: net0: key alias 'model' is already defined",
		"virtio0: nas:100/x,size=big\n":                            "line 1: virtio0: size=big is not a size",
		"virtio0: nas:100/x,size=9G,size=8G\n":                     "line 1: virtio0: duplicate key in comma-separated list property: size",
		"virtio0: nas:100/x,nas:100/y\n":                           "line 1: virtio0: duplicate key in comma-separated list property: file",
		"virtio0: size=4G\n":                                       "line 1: virtio0: file is missing: write storage:name",
		"virtio0: nas:100/x,cache=fast\n":                          "line 1: virtio0: cache=fast is not allowed: use one of none,",
		"boot: order=virtio0;floppy0\n":                            "line 1: boot:",
		"boot: order=virtio0;virtio0\n":                            "line 1: boot: virtio0 stands in the order twice",
		"machine: vax\n":                                           "line 1: machine:",
		"smbios1: uuid=x\n":                                        "line 1: smbios1:",
		"smbios1: base64=1,serial=%%\n":                            "line 1: smbios1:",
		"serial0: tcp\n":                                           "line 1: serial0:",
		"cpu: max,flags=aes\n":                                     "line 1: cpu: flags=aes is not a CPU flag",
		"agent: perhaps\n":                                         "line 1: agent:",
		"vmgenid: 7\n":                                             "line 1: vmgenid:",
		"name: a\n[snap]\nx: 1\n[snap]\n":                          "line 4: [snap]: this section is there twice",
	} {
		g, err := pveconf.ParseGuest([]byte(text))
		var invalid *model.InvalidError
		if !errors.As(err, &invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v; want %q", text, g, err, want)
		}
	}
}

func TestUnknownKeysAreKeptAndNamed(t *testing.T) {
	g := parse(t, web+"")
	if v, ok := g.Get("frobnicate"); !ok || v != "kept as it is" {
		t.Errorf("frobnicate is %q, %v", v, ok)
	}
	if diff := cmp.Diff([]string{"agent: fstrim_cloned_disks=1", "frobnicate", "hostpci0", "net0: firewall=1", "net0: link_down=1"}, pveconf.Unsupported(g)); diff != "" {
		t.Errorf("Unsupported (-want +got):\n%s", diff)
	}
	neutral := parse(t, "balloon: 0\nnuma: 0\nbios: seabios\nvga: serial0\ndescription: x\nmeta: creation-qemu=10.0.2\n")
	if got := pveconf.Unsupported(neutral); len(got) > 0 {
		t.Errorf("values that ask for what is done anyway are named: %v", got)
	}
	if diff := cmp.Diff([]string{"bios", "net99", "vga: type=std"}, pveconf.Unsupported(parse(t, "vga: std\nbios: ovmf\nnet99: x\n"))); diff != "" {
		t.Errorf("Unsupported (-want +got):\n%s", diff)
	}
}

func TestSetRefusesWhatAParseWould(t *testing.T) {
	g := parse(t, "memory: 512\n")
	for _, c := range [][2]string{
		{"memory", "x"},
		{"memory", ""},
		{"frobnicate", "1"},
		{"net32", "virtio"},
		{"virtio16", "nas:x"},
		{"scsi31", "nas:x"},
		{"name", "a\nb"},
		{"tags", "a\nonboot: 1"},
		{"net01", "virtio"},
		{"description", strings.Repeat("x", 8193)},
	} {
		if err := g.Set(c[0], c[1]); !errors.Is(err, model.ErrInvalid) {
			t.Errorf("Set(%s, %q): %v", c[0], c[1], err)
		}
	}
	if got := string(g.Bytes()); got != "memory: 512\n" {
		t.Errorf("the file became %q", got)
	}
}

func TestSetChangesInPlaceAndDeleteTakesAway(t *testing.T) {
	g := parse(t, "memory: 512\nname: a\n\n[snap]\nmemory: 256\n")
	before := g.Clone()
	for _, c := range [][2]string{{"memory", "1024"}, {"cores", "2"}, {"description", "one: two\n50%41"}} {
		if err := g.Set(c[0], c[1]); err != nil {
			t.Fatal(err)
		}
	}
	if !g.Delete("name") || g.Delete("name") {
		t.Error("Delete does not say whether the key was there")
	}
	want := "#one%3A two\n#50%2541\nmemory: 1024\ncores: 2\n\n[snap]\nmemory: 256\n"
	if diff := cmp.Diff(want, string(g.Bytes())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := parse(t, want).Description(); got != "one: two\n50%41\n" {
		t.Errorf("the description comes back as %q", got)
	}
	if diff := cmp.Diff("memory: 512\nname: a\n\n[snap]\nmemory: 256\n", string(before.Bytes())); diff != "" {
		t.Errorf("the clone changed:\n%s", diff)
	}
	if diff := cmp.Diff([]string{"description", "memory", "cores"}, g.Keys()); diff != "" {
		t.Errorf("Keys (-want +got):\n%s", diff)
	}
}

func TestADescriptionLineOfAnOldFileBecomesACommentWhenItChanges(t *testing.T) {
	const old = "name: a\ndescription: x%0Ay\n#z\n"
	g := parse(t, old)
	if g.Description() != "x\ny\nz\n" || string(g.Bytes()) != old {
		t.Errorf("the description is %q in %q", g.Description(), g.Bytes())
	}
	if err := g.Set("description", "new"); err != nil {
		t.Fatal(err)
	}
	if got := string(g.Bytes()); got != "name: a\n#new\n" {
		t.Errorf("got %q", got)
	}
}

func TestDigestIsTheSHA1OfTheFile(t *testing.T) {
	if got := pveconf.Digest([]byte("abc")); got != "a9993e364706816aba3e25717850c26c9cd0d89d" {
		t.Errorf("got %s", got)
	}
}

func TestPropertyStringsArePrintedShort(t *testing.T) {
	for _, c := range []struct {
		format     pveconf.Format
		text, want string
	}{
		{pveconf.NetFormat(), "model=virtio,macaddr=BC:24:11:00:00:01,bridge=vmbr0", "virtio=BC:24:11:00:00:01,bridge=vmbr0"},
		{pveconf.NetFormat(), "bridge=vmbr0,virtio=BC:24:11:00:00:01", "virtio=BC:24:11:00:00:01,bridge=vmbr0"},
		{pveconf.NetFormat(), "virtio,bridge=vmbr0", "virtio,bridge=vmbr0"},
		{pveconf.DiskFormat(), "size=4G,volume=nas:100/x", "nas:100/x,size=4G"},
		{pveconf.DiskFormat(), ",nas:1, ,format=qcow2", "nas:1,format=qcow2"},
	} {
		ps, err := pveconf.ParseProps("x", c.format, c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if got := ps.Print(c.format); got != c.want {
			t.Errorf("%s is printed as %s, want %s", c.text, got, c.want)
		}
	}
}

func TestPropsAreValues(t *testing.T) {
	ps := pveconf.Props{{Key: "a", Value: "1"}, {Key: "b", Value: "2"}}
	changed := ps.Set("a", "9").Set("c", "3").Without("b")
	if diff := cmp.Diff(pveconf.Props{{Key: "a", Value: "9"}, {Key: "c", Value: "3"}}, changed); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(pveconf.Props{{Key: "a", Value: "1"}, {Key: "b", Value: "2"}}, ps); diff != "" {
		t.Errorf("the original changed:\n%s", diff)
	}
}

func TestEveryDescriptionComesBackAsItWas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringN(0, 60, 2000).Draw(t, "text")
		g := &pveconf.Guest{}
		if err := g.Set("description", text); err != nil {
			t.Fatal(err)
		}
		again, err := pveconf.ParseGuest(g.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(g.Description(), again.Description()); diff != "" {
			t.Fatalf("(-set +read):\n%s", diff)
		}
	})
}
