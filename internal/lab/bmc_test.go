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

// fenceFrom runs tryFence in a node.
func fenceFrom(t *testing.T, r *Room, from, what, node string) string {
	t.Helper()
	cfg, err := r.FenceConfig(t.Context())
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
	r := newRoom(t, 3)
	if got := fenceFrom(t, r, "n1", "ask", "n2"); !strings.Contains(got, "power is on") {
		t.Errorf("a node that is on: %s", got)
	}
	setFault := func(node string, f BMCFault) {
		t.Helper()
		if err := r.BMC(t.Context(), node, f); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		fault BMCFault
		want  string
	}{{"hang", "did not answer in time"}, {"dead", "did not answer in time"}, {"wrong", "belongs to another machine"}} {
		setFault("n2", c.fault)
		for _, what := range []string{"ask", "shoot"} {
			if got := fenceFrom(t, r, "n1", what, "n2"); !strings.Contains(got, c.want) && !(c.fault == "dead" && strings.Contains(got, "no route")) {
				t.Errorf("%s, %s: %s", c.fault, what, got)
			}
		}
		for _, n := range []string{"n2", "n3"} {
			if st := nodeStatus(t, r, n); st.Power != StateOn || st.Boots != 1 {
				t.Errorf("%s: %s is %s", c.fault, n, st.Power)
			}
		}
	}
	setFault("n2", "none")
	if got := fenceFrom(t, r, "n1", "shoot", "n2"); got != "proof" {
		t.Errorf("shoot: %s", got)
	}
	if st := nodeStatus(t, r, "n2"); st.Power != StateOff || len(st.PIDs) != 0 {
		t.Errorf("n2 is %s, processes %v", st.Power, st.PIDs)
	}
	// The BMC outlives its node, unless it is told otherwise.
	if got := fenceFrom(t, r, "n3", "ask", "n2"); got != "proof" {
		t.Errorf("a node that is off: %s", got)
	}
	setFault("n2", "tied")
	if got := fenceFrom(t, r, "n3", "ask", "n2"); got == "proof" {
		t.Error("a BMC without power proved something")
	}
	power(t, r, "n2", PowerOn)
	if got := fenceFrom(t, r, "n3", "ask", "n2"); !strings.Contains(got, "power is on") {
		t.Errorf("after power on: %s", got)
	}
	if err := r.BMC(t.Context(), "n2", "sleepy"); !errors.Is(err, model.ErrInvalid) {
		t.Errorf("a fault that there is not: %v", err)
	}
	if err := r.BMC(t.Context(), "n9", "hang"); !errors.Is(err, model.ErrNotFound) {
		t.Errorf("a node that there is not: %v", err)
	}
}

func TestTheRoomsFenceConfigNamesEachNodesBMC(t *testing.T) {
	pin := strings.Repeat("ab", 32)
	got, err := fenceConfig(Status{Nodes: []NodeStatus{
		{Node: "n1", BMC: &BMCStatus{Address: BMCAddress(1), UUID: "11111111-2222-4333-8444-555555555555", Fingerprint: pin}},
	}})
	want := "redfish: n1-bmc\n\tnode n1\n\taddress 10.10.1.65:443\n\tuser sauh\n\tpassword-file priv/fence/lab-n1\n" +
		"\tuuid 11111111-2222-4333-8444-555555555555\n\tverify-gap 0.4\n\tfingerprint " + pin + "\n"
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if _, err := fenceConfig(Status{Nodes: []NodeStatus{{Node: "n1"}}}); !errors.Is(err, model.ErrUnavailable) {
		t.Error(err)
	}
}
