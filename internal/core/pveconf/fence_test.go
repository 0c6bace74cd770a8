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

const pin = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

const fenceCfg = `# who switches whom
redfish: n2-bmc
	node n2
	address 10.10.1.66:8443
	user sauh
	password-file priv/fence/n2
	fingerprint ` + pin + `
	system /redfish/v1/Systems/1
	auth session

ipmi: n3-bmc
	node n3
	# the old one
	address 10.10.1.67
	user sauh
	password-file priv/fence/n3
	uuid 4c4c4544-004a-3810-8051-b4c04f433232
	verify-gap 1.5
	cipher 17
	order 1
	delay 2

ceph: rbd
	storages fast,slow
	nodes n1,n2
	timeout 20
	disable

plug: strange
	what ever
`

func TestFenceConfigIsRead(t *testing.T) {
	got, err := pveconf.ParseFence([]byte(fenceCfg))
	if err != nil {
		t.Fatal(err)
	}
	want := []pveconf.FenceMethod{
		{
			Type: "redfish", ID: "n2-bmc", Nodes: []string{"n2"}, Timeout: 10 * time.Second, AskTimeout: 5 * time.Second,
			Address: "10.10.1.66:8443", User: "sauh", PasswordFile: "priv/fence/n2",
			Fingerprint: pin, System: "/redfish/v1/Systems/1", Session: true,
		},
		{
			Type: "ipmi", ID: "n3-bmc", Nodes: []string{"n3"}, Timeout: 10 * time.Second, AskTimeout: 5 * time.Second,
			Address: "10.10.1.67:623", User: "sauh", PasswordFile: "priv/fence/n3", VerifyGap: 1500 * time.Millisecond,
			UUID: "4c4c4544-004a-3810-8051-b4c04f433232", Cipher: 17, Order: 1, Delay: 2 * time.Second,
		},
		{
			Type: "ceph", ID: "rbd", Nodes: []string{"n1", "n2"}, Timeout: 20 * time.Second, AskTimeout: 5 * time.Second,
			Disable: true, Storages: []string{"fast", "slow"}, Conf: "/etc/ceph/ceph.conf", CephUser: "admin",
		},
		{Type: "plug", ID: "strange", Unsupported: `fencing by "plug" is not supported by this version: only ipmi, redfish and ceph are`},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(pveconf.FenceMethod{}, "Section")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, c := range []struct {
		method int
		node   string
		want   bool
	}{{0, "n2", true}, {0, "n1", false}, {2, "n1", false}, {3, "n1", false}} {
		if got := got[c.method].For(c.node); got != c.want {
			t.Errorf("%s for %s: %v", want[c.method].Name(), c.node, got)
		}
	}
}

func TestFenceConfigIsPrintedAsItWasRead(t *testing.T) {
	methods, err := pveconf.ParseFence([]byte(fenceCfg))
	if err != nil {
		t.Fatal(err)
	}
	got, err := pveconf.PrintFence(methods)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fenceCfg, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestFenceMethodsAreChangedAndMadeByTheirFields(t *testing.T) {
	methods, err := pveconf.ParseFence([]byte(fenceCfg))
	if err != nil {
		t.Fatal(err)
	}
	m := methods[1]
	m.Cipher, m.Order, m.Delay, m.UUID, m.Address = 0, 3, 0, "any", "[fe80::1]:624"
	added := pveconf.NewFenceMethod(pveconf.FenceCeph, "other")
	added.Storages = []string{"rbd1"}
	text, err := pveconf.PrintFence([]pveconf.FenceMethod{m, added})
	if err != nil {
		t.Fatal(err)
	}
	want := `ipmi: n3-bmc
	node n3
	# the old one
	address [fe80::1]:624
	user sauh
	password-file priv/fence/n3
	uuid any
	verify-gap 1.5
	order 3

ceph: other
	storages rbd1
	conf /etc/ceph/ceph.conf
	user admin
`
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	again, err := pveconf.ParseFence(text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]pveconf.FenceMethod{m, added}, again, cmpopts.IgnoreFields(pveconf.FenceMethod{}, "Section"), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTheTextOfAMethodIsTheSameUntilSomethingOfItChanges(t *testing.T) {
	read := func(text string) string {
		m, err := pveconf.ParseFence([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		b, err := m[0].Text()
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	base := read(fenceCfg)
	if got := read(strings.Replace(fenceCfg, "\tauth session\n", "\t# a note\n\tauth session\n\tcomment new\n", 1)); got != base {
		t.Errorf("a comment changes it: %s", got)
	}
	if got := read(strings.Replace(fenceCfg, "10.10.1.66", "10.10.1.65", 1)); got == base {
		t.Error("another address does not change it")
	}
}

func TestMalformedFenceLinesAreRefusedByNameAndLine(t *testing.T) {
	bmc := "ipmi: b\n\tnode n1\n\taddress h\n\tuser u\n\tpassword-file priv/x\n"
	rf := "redfish: b\n\tnode n1\n\taddress h\n\tuser u\n\tpassword-file priv/x\n"
	ceph := "ceph: c\n\tstorages s1\n"
	for _, c := range []struct {
		text, param string
		line        int
	}{
		{"ipmi: b\n\taddress h\n", "node", 1},
		{"ipmi: b\n\tnode n1,n2\n", "node", 2},
		{"ipmi: b\n\tnode n1\n", "address", 1},
		{"ipmi: b\n\tnode n1\n\taddress h:0\n", "address", 3},
		{"ipmi: b\n\tnode n1\n\taddress http://h\n", "address", 3},
		{"ipmi: b\n\tnode n1\n\taddress h:x\n", "address", 3},
		{"ipmi: b\n\tnode n1\n\taddress h\n", "user", 1},
		{"ipmi: b\n\tnode n1\n\taddress h\n\tuser u\n\tpassword-file /etc/passwd\n", "password-file", 5},
		{"ipmi: b\n\tnode n1\n\taddress h\n\tuser u\n\tpassword-file priv/../x\n", "password-file", 5},
		{bmc + "\tpassword geheim\n", "password", 6},
		{bmc + "\ttimout 3\n", "timout", 6},
		{bmc + "\ttimeout soon\n", "timeout", 6},
		{bmc + "\ttimeout -1\n", "timeout", 6},
		{bmc + "\ttimeout NaN\n", "timeout", 6},
		{bmc + "\tverify-gap 11\n", "verify-gap", 6},
		{bmc + "\tverify-gap 0\n", "verify-gap", 6},
		{bmc + "\task-timeout 1e9\n", "ask-timeout", 6},
		{bmc + "\tdelay 61\n", "delay", 6},
		{bmc + "\torder first\n", "order", 6},
		{bmc + "\torder 100\n", "order", 6},
		{bmc + "\tcipher 0\n", "cipher", 6},
		{bmc + "\tuuid 4c4c\n", "uuid", 6},
		{bmc + "\tdisable maybe\n", "disable", 6},
		{bmc + "\tfingerprint " + pin + "\n", "fingerprint", 6},
		{rf, "fingerprint", 1},
		{rf + "\tfingerprint abc\n", "fingerprint", 6},
		{rf + "\tfingerprint " + pin + "\n\tsystem Systems/1\n", "system", 7},
		{rf + "\tfingerprint " + pin + "\n\tauth digest\n", "auth", 7},
		{"ceph: c\n", "storages", 1},
		{"ceph: c\n\tstorages 1,!\n", "storages", 2},
		{ceph + "\tnodes n1,N2\n", "nodes", 3},
		{ceph + "\tconf ceph.conf\n", "conf", 3},
		{ceph + "\tuser -n\n", "user", 3},
		{ceph + "\taddress h\n", "address", 3},
		{bmc + "\nceph: b\n\tstorages s1\n", "ceph", 7},
		{"\tnode n1\n", "node", 1},
		{"what is this\n", "section", 1},
	} {
		_, err := pveconf.ParseFence([]byte(c.text))
		var invalid *model.InvalidError
		if !errors.As(err, &invalid) {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		if invalid.Param != c.param || invalid.Line != c.line {
			t.Errorf("%q: %v, want %s in line %d", c.text, err, c.param, c.line)
		}
	}
}

func TestAFenceMethodByAStorageThatIsNotThereIsRefused(t *testing.T) {
	methods, err := pveconf.ParseFence([]byte("ceph: blocklist\n\tstorages fast,slow\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := pveconf.FenceStorages(methods, []string{"slow", "nas", "fast"}); err != nil {
		t.Error(err)
	}
	err = pveconf.FenceStorages(methods, []string{"nas", "fast"})
	if want := `line 2: storages: storage.cfg has no storage "slow": it has nas, fast`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestAFenceMethodOfANodeThatIsNotThereIsRefused(t *testing.T) {
	methods, err := pveconf.ParseFence([]byte(fenceCfg))
	if err != nil {
		t.Fatal(err)
	}
	if err := pveconf.FenceNodes(methods, []string{"n1", "n2", "n3"}); err != nil {
		t.Error(err)
	}
	err = pveconf.FenceNodes(methods, []string{"n1", "n2"})
	if want := `line 12: node: node 'n3' does not exist: the nodes are n1, n2`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
