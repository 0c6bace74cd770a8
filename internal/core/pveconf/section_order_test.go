package pveconf_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

func TestTheOrderOfResourcesIsReadAndPrintedBack(t *testing.T) {
	text := "vm: 100\n\tstate started\n\torder 5\n\tafter 101,vm:102:agent;vm:103:30\n\treset-on panicked silent\n"
	all, err := pveconf.ParseHAResources([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []pveconf.HAAfter{{VMID: 101}, {VMID: 102, Answers: true}, {VMID: 103, Delay: 30 * time.Second}}
	if diff := cmp.Diff(want, all[0].After); diff != "" || all[0].Order != 5 || !cmp.Equal(all[0].ResetOn, []string{"panicked", "silent"}) {
		t.Errorf("%s %+v", diff, all[0])
	}
	if back, err := pveconf.PrintHAResources(all); err != nil || string(back) != text {
		t.Errorf("%v\n%s", err, back)
	}
	all[0].After, all[0].ResetOn, all[0].Order = all[0].After[1:], nil, 0
	back, err := pveconf.PrintHAResources(all)
	if err != nil || string(back) != "vm: 100\n\tstate started\n\tafter vm:102:agent,vm:103:30\n" {
		t.Errorf("%v\n%s", err, back)
	}
}

func TestAWrongOrderIsNamedByKeyAndLine(t *testing.T) {
	for line, key := range map[string]string{
		"order 0": "order", "order first": "order", "order 10000": "order", "after vm:100": "after", "after vm:5": "after", "after vm:101:soon": "after",
		"after vm:101:241": "after", "after vm:101,vm:101:agent": "after", "after ct:101": "after", "reset-on bored": "reset-on",
	} {
		_, err := pveconf.ParseHAResources([]byte("vm: 100\n\tstate started\n\t" + line + "\n"))
		var inv *model.InvalidError
		if !errors.As(err, &inv) || inv.Param != key || inv.Line != 3 {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestFailuresToTolerateIsANumberWithAPolicy(t *testing.T) {
	for line, want := range map[string]pveconf.DatacenterHA{
		"": {}, "failures-to-tolerate: 2": {Tolerate: 2}, "failures-to-tolerate: nodes=1,policy=warn": {Tolerate: 1, TolerateWarn: true},
		"failures-to-tolerate: 1,policy=refuse": {Tolerate: 1},
	} {
		d, err := pveconf.ParseDatacenter([]byte("# ours\n" + line + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := d.HA()
		if err != nil || got.Tolerate != want.Tolerate || got.TolerateWarn != want.TolerateWarn {
			t.Errorf("%s: %+v, %v", line, got, err)
		}
	}
	for _, line := range []string{"failures-to-tolerate: -1", "failures-to-tolerate: some", "failures-to-tolerate: 100", "failures-to-tolerate: 1,policy=maybe", "failures-to-tolerate: 1,racks=2"} {
		d, err := pveconf.ParseDatacenter([]byte("# ours\n" + line + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		var inv *model.InvalidError
		if _, err := d.HA(); !errors.As(err, &inv) || inv.Line != 2 {
			t.Errorf("%s: %v", line, err)
		}
	}
	d, err := pveconf.Datacenter{}.WithHA(func() pveconf.DatacenterHA {
		h := pveconf.DefaultDatacenterHA()
		h.Tolerate, h.TolerateWarn = 1, true
		return h
	}())
	if got := string(d.Print()); err != nil || got != "failures-to-tolerate: 1,policy=warn\n" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestTheKeysOfDatacenterCfgAreListedInTheirOrder(t *testing.T) {
	d, err := pveconf.ParseDatacenter([]byte("# a: comment\nkeyboard: de\n\nha: shutdown_policy=migrate\n"))
	if diff := cmp.Diff([]string{"keyboard", "ha"}, d.Keys()); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
}
