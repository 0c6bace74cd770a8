package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	core "sauh.dev/sauh/internal/core/fence"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/fence"
	"sauh.dev/sauh/internal/fence/fencetest/bmc"
	"sauh.dev/sauh/internal/sys"
)

// tryFence is what an agent does, in a node: it prints what came of each method.
func tryFence(what, node, password string) error {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	cfg, err := pveconf.ParseFence(text)
	if err != nil {
		return err
	}
	set := fence.Build(cfg, fence.Node{Name: node}, fence.Env{
		Secret: func(string) (string, error) { return password, nil }, Now: sys.BootTime, Wall: time.Now,
	})
	defer set.Close()
	signs := func() []core.Sign { return nil }
	var out fence.Outcome
	if what == "shoot" {
		out = set.Shoot(context.Background(), sys.BootTime(), signs, nil)
	} else {
		out = set.Ask(context.Background(), signs)
	}
	for _, s := range out.Said {
		if s.Proof != nil {
			fmt.Println("proof")
		} else {
			fmt.Println(s.Reason)
		}
	}
	return nil
}

// fenceFrom runs tryFence in a node, with methods of one type.
func fenceFrom(t *testing.T, r *Room, typ, from, what, node string) string {
	t.Helper()
	cfg, err := r.FenceConfig(t.Context(), typ)
	if err != nil {
		t.Fatal(err)
	}
	cmd := r.Exec(t.Context(), from, "sauh", "helper", "fence", what, node, nodeStatus(t, r, node).BMC.Password)
	cmd.Stdin = strings.NewReader(cfg)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Logf("%s", exit.Stderr)
		}
		t.Fatalf("%s %s from %s: %v: %s", what, node, from, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestANodesBMCSwitchesItFromAnotherNodeAndItsFaultsProveNothing(t *testing.T) {
	for _, typ := range []string{pveconf.FenceRedfish, pveconf.FenceIPMI} {
		t.Run(typ, func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(bmc.IPMISimProgram); err != nil && typ == pveconf.FenceIPMI {
				t.Skip("needs the program ipmi_sim: install the package openipmi")
			}
			switchByBMC(t, newRoom(t, 3), typ)
		})
	}
}

func setFault(t *testing.T, r *Room, node string, f BMCFault) {
	t.Helper()
	if err := r.BMC(t.Context(), node, f); err != nil {
		t.Fatal(err)
	}
}

func switchByBMC(t *testing.T, r *Room, typ string) {
	if got := fenceFrom(t, r, typ, "n1", "ask", "n2"); !strings.Contains(got, "power is on") {
		t.Errorf("a node that is on: %s", got)
	}
	for _, c := range []struct {
		fault BMCFault
		want  string
	}{{"hang", "did not answer in time"}, {"dead", "did not answer in time"}, {"wrong", "belongs to another machine"}} {
		setFault(t, r, "n2", c.fault)
		for _, what := range []string{"ask", "shoot"} {
			if got := fenceFrom(t, r, typ, "n1", what, "n2"); !strings.Contains(got, c.want) && !(c.fault == "dead" && strings.Contains(got, "no route")) {
				t.Errorf("%s, %s: %s", c.fault, what, got)
			}
		}
		for _, n := range []string{"n2", "n3"} {
			if st := nodeStatus(t, r, n); st.Power != StateOn || st.Boots != 1 {
				t.Errorf("%s: %s is %s", c.fault, n, st.Power)
			}
		}
	}
	setFault(t, r, "n2", "none")
	if got := fenceFrom(t, r, typ, "n1", "shoot", "n2"); got != "proof" {
		t.Errorf("shoot: %s", got)
	}
	if st := nodeStatus(t, r, "n2"); st.Power != StateOff || len(st.PIDs) != 0 {
		t.Errorf("n2 is %s, processes %v", st.Power, st.PIDs)
	}
	// The BMC outlives its node, unless it is told otherwise.
	if got := fenceFrom(t, r, typ, "n3", "ask", "n2"); got != "proof" {
		t.Errorf("a node that is off: %s", got)
	}
	setFault(t, r, "n2", "tied")
	if got := fenceFrom(t, r, typ, "n3", "ask", "n2"); got == "proof" {
		t.Error("a BMC without power proved something")
	}
	power(t, r, "n2", PowerOn)
	if got := fenceFrom(t, r, typ, "n3", "ask", "n2"); !strings.Contains(got, "power is on") {
		t.Errorf("after power on: %s", got)
	}
	if err := r.BMC(t.Context(), "n2", "sleepy"); !errors.Is(err, model.ErrInvalid) {
		t.Errorf("a fault that there is not: %v", err)
	}
	if err := r.BMC(t.Context(), "n9", "hang"); !errors.Is(err, model.ErrNotFound) {
		t.Errorf("a node that there is not: %v", err)
	}
}

func TestIPMISaysWhatPowerANodeReallyHasHoweverItLostIt(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath(bmc.IPMISimProgram); err != nil {
		t.Skip("needs the program ipmi_sim: install the package openipmi")
	}
	r := newRoom(t, 2)
	const on = "power is on"
	says := func(what, want string) {
		t.Helper()
		if got := fenceFrom(t, r, pveconf.FenceIPMI, "n1", "ask", "n2"); !strings.Contains(got, want) {
			t.Errorf("%s: %s", what, got)
		}
	}
	_ = r.Exec(t.Context(), "n2", "sauh", "helper", "poweroff").Run()
	waitFor(t, "off", func() bool { return nodeStatus(t, r, "n2").Power == StateOff })
	says("powered itself off", "proof")
	power(t, r, "n2", PowerOn)
	says("switched on by hand", on)
	_ = r.Exec(t.Context(), "n2", "sauh", "helper", "reboot").Run()
	waitFor(t, "booted again", func() bool { return nodeStatus(t, r, "n2").Boots == 3 })
	says("rebooted itself", on)
	setFault(t, r, "n2", "lie")
	says("a liar", "proof") // which is what the rehearsals of a cluster are for
	if got := fenceFrom(t, r, pveconf.FenceIPMI, "n1", "shoot", "n2"); got != "proof" || nodeStatus(t, r, "n2").Power != StateOn {
		t.Errorf("shot by a liar: %s", got)
	}
	setFault(t, r, "n2", "early")
	if got := fenceFrom(t, r, pveconf.FenceIPMI, "n1", "shoot", "n2"); got != "proof" {
		t.Errorf("shot by one that says off too early: %s", got)
	}
	waitFor(t, "off in the end", func() bool { return nodeStatus(t, r, "n2").Power == StateOff })
	setFault(t, r, "n2", "none")
	chassis := func(words ...string) (string, error) { return runChassis(t.Context(), r.Dir(), "n2", words) }
	if _, err := chassis("set", "power", "1"); err != nil || nodeStatus(t, r, "n2").Power != StateOn {
		t.Errorf("set power 1: %v", err)
	}
	if _, err := chassis("set", "reset", "1"); err != nil || nodeStatus(t, r, "n2").Boots != 5 {
		t.Errorf("set reset 1: %v", err)
	}
	if got, err := chassis("get", "power"); err != nil || got != "power:1\n" {
		t.Errorf("get power: %q, %v", got, err)
	}
	if _, err := chassis("set", "identify", "15 0"); !errors.Is(err, model.ErrInvalid) {
		t.Errorf("what a chassis cannot: %v", err)
	}
}

func TestTheRoomsFenceConfigNamesEachNodesBMC(t *testing.T) {
	pin := strings.Repeat("ab", 32)
	got, err := fenceConfig(Status{Nodes: []NodeStatus{
		{Node: "n1", BMC: &BMCStatus{Address: BMCAddress(1), UUID: "11111111-2222-4333-8444-555555555555", Fingerprint: pin}},
	}})
	want := "redfish: n1-bmc\n\tnode n1\n\taddress 10.10.1.65:443\n\tuser sauh\n\tpassword-file priv/fence/lab-n1\n" +
		"\tuuid 11111111-2222-4333-8444-555555555555\n\tverify-gap 0.5\n\tfingerprint " + pin + "\n"
	if diff := cmp.Diff(whyGap+want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if _, err := pveconf.ParseFence([]byte(got)); err != nil {
		t.Error(err)
	}
	both := Status{Nodes: []NodeStatus{
		{Node: "n2", BMC: &BMCStatus{Address: BMCAddress(2), IPMI: BMCAddress(2) + ":623", UUID: "11111111-2222-4333-8444-555555555555", Fingerprint: pin}},
	}}
	ipmi := "ipmi: n2-ipmi\n\tnode n2\n\taddress 10.10.1.66:623\n\tuser sauh\n\tpassword-file priv/fence/lab-n2\n" +
		"\tuuid 11111111-2222-4333-8444-555555555555\n\tverify-gap 0.5\n"
	redfish := strings.NewReplacer("n1", "n2", "10.10.1.65", "10.10.1.66").Replace(want)
	if got, err = fenceConfig(both); err != nil || got != whyGap+redfish+"\n"+ipmi {
		t.Errorf("%v (-want +got):\n%s", err, cmp.Diff(whyGap+redfish+"\n"+ipmi, got))
	}
	if got, err = fenceConfig(both, pveconf.FenceIPMI); err != nil || got != whyGap+ipmi {
		t.Errorf("%v (-want +got):\n%s", err, cmp.Diff(whyGap+ipmi, got))
	}
	if _, err := fenceConfig(both, pveconf.FenceCeph); !errors.Is(err, model.ErrInvalid) {
		t.Error(err)
	}
	without := Status{Nodes: []NodeStatus{{Node: "n1", BMC: &BMCStatus{Address: BMCAddress(1)}}}}
	if _, err := fenceConfig(without, pveconf.FenceIPMI); !errors.Is(err, model.ErrUnavailable) {
		t.Error(err)
	}
	if _, err := fenceConfig(Status{Nodes: []NodeStatus{{Node: "n1"}}}); !errors.Is(err, model.ErrUnavailable) {
		t.Error(err)
	}
}
