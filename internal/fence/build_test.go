package fence_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	core "sauh.dev/sauh/internal/core/fence"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/fence"
	"sauh.dev/sauh/internal/fence/ceph"
	"sauh.dev/sauh/internal/fence/fencetest"
	"sauh.dev/sauh/internal/fence/fencetest/bmc"
	"sauh.dev/sauh/internal/fence/ipmi"
	"sauh.dev/sauh/internal/fence/redfish"
)

// env is what an agent would give.
func env(c *fencetest.Ceph) fence.Env {
	start := time.Now()
	e := fence.Env{
		Secret: func(path string) (string, error) {
			if path != "priv/fence/n2" {
				return "", os.ErrNotExist
			}
			return "secret\n", nil
		},
		Now: func() time.Duration { return time.Since(start) + time.Hour }, Wall: time.Now,
	}
	if c != nil {
		e.Run = c.Run
	}
	return e
}

// rehearsed is an agent that rehearsed these methods, without switching anything.
func rehearsed(cfg []pveconf.FenceMethod, n fence.Node) fence.Env {
	e := env(nil)
	set := fence.Build(cfg, n, e)
	defer set.Close()
	digests := set.Digests()
	e.Rehearsal = func(method string) core.Rehearsal {
		return core.Rehearsal{Method: method, Digest: digests[method], At: 1}
	}
	return e
}

func parse(t *testing.T, text string) []pveconf.FenceMethod {
	t.Helper()
	m, err := pveconf.ParseFence([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func ipmiSection(address, more string) string {
	return "ipmi: bmc\n\tnode n2\n\taddress " + address + "\n\tuser admin\n\tpassword-file priv/fence/n2\n\ttimeout 3\n\task-timeout 1\n\tverify-gap 0.4\n" + more
}

func redfishSection(address, pin, more string) string {
	return "redfish: bmc\n\tnode n2\n\taddress " + address + "\n\tfingerprint " + pin +
		"\n\tuser sauh\n\tpassword-file priv/fence/n2\n\ttimeout 3\n\task-timeout 1\n\tverify-gap 0.4\n" + more
}

var n2 = fence.Node{Name: "n2", UUID: uuid}

const guid = "4c4c4544004a38108051b4c04f433232"

func TestTheIPMISimulatorIsAskedAndShotAndItsFaultsProveNothing(t *testing.T) {
	for _, c := range []struct {
		name       string
		fault      func(*fencetest.IPMISim)
		section    string
		node       fence.Node
		ask, shoot error // nil for a proof
		harmless   bool  // no order may arrive
	}{
		{name: "healthy, node on", node: n2, ask: core.ErrNotOff},
		{name: "healthy, node off", node: n2, fault: func(s *fencetest.IPMISim) { s.Set("power", "0") }},
		{name: "an order that takes a second", node: n2, fault: func(s *fencetest.IPMISim) { s.Set("late", "1") }, ask: core.ErrNotOff},
		{name: "an order that is taken and forgotten", node: n2, fault: func(s *fencetest.IPMISim) { s.Set("deaf", "") }, ask: core.ErrNotOff, shoot: fence.ErrTimeout},
		{name: "answers late", node: n2, fault: func(s *fencetest.IPMISim) { s.Set("slow", "4") }, ask: fence.ErrTimeout, shoot: fence.ErrTimeout},
		{name: "another machine's", node: fence.Node{Name: "n2", UUID: other}, ask: core.ErrStranger, shoot: core.ErrStranger, harmless: true},
		{name: "a node without UUID", node: fence.Node{Name: "n2"}, ask: core.ErrUnidentified, shoot: core.ErrUnidentified, harmless: true},
		{name: "the UUID in the configuration", node: fence.Node{Name: "n2"}, section: "\tuuid " + uuid + "\n", ask: core.ErrNotOff},
		{name: "any, not rehearsed", node: fence.Node{Name: "n2"}, section: "\tuuid any\n", ask: core.ErrRehearsalFailed, shoot: core.ErrRehearsalFailed, harmless: true},
		{name: "another user", node: n2, section: "\tcipher 3\n\tuser nobody\n", ask: ipmi.ErrAuth, shoot: ipmi.ErrAuth, harmless: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			sim := fencetest.StartIPMISim(t, guid)
			if c.fault != nil {
				c.fault(sim)
			}
			text := ipmiSection(sim.Address, c.section)
			if strings.Contains(c.section, "user") {
				text = strings.Replace(text, "\tuser admin\n", "", 1)
			}
			cfg := parse(t, text)
			set := fence.Build(cfg, c.node, rehearsed(cfg, c.node))
			t.Cleanup(set.Close)
			judge(t, "ask", set.Ask(t.Context(), silent), c.ask)
			judge(t, "shoot", set.Shoot(t.Context(), time.Hour, silent, nil), c.shoot)
			if c.harmless && sim.Orders() != "" {
				t.Errorf("orders: %s", sim.Orders())
			}
			if c.shoot == nil && sim.Power() {
				t.Error("proved, and it has power")
			}
		})
	}
}

// judge wants a proof, or the error.
func judge(t *testing.T, what string, got fence.Outcome, want error) {
	t.Helper()
	if want == nil && got.Proof == nil || want != nil && (got.Proof != nil || !errors.Is(got.Said[0].Err, want)) {
		t.Errorf("%s: %+v, want %v", what, got, want)
	}
	for _, s := range got.Said {
		if s.Took > 4*time.Second {
			t.Errorf("%s: it took %v", what, s.Took)
		}
	}
}

func TestTheRedfishBMCIsAskedAndShotAndItsFaultsProveNothing(t *testing.T) {
	for _, c := range []struct {
		fault      bmc.Fault
		off        bool
		ask, shoot error
		orders     int // that reach the neighbour
	}{
		{fault: bmc.Healthy, ask: core.ErrNotOff},
		{fault: bmc.Healthy, off: true},
		{fault: bmc.Hang, ask: fence.ErrTimeout, shoot: fence.ErrTimeout},
		{fault: bmc.Dead, ask: fence.ErrTimeout, shoot: fence.ErrTimeout},
		{fault: bmc.Late, ask: fence.ErrTimeout, shoot: fence.ErrTimeout},
		{fault: bmc.Tied, off: true, ask: fence.ErrTimeout, shoot: fence.ErrTimeout},
		{fault: bmc.Wrong, ask: core.ErrStranger, shoot: core.ErrStranger},
		{fault: bmc.Wrong, off: true, ask: core.ErrStranger, shoot: core.ErrStranger},
	} {
		t.Run(fmt.Sprintf("%s, off %v", c.fault, c.off), func(t *testing.T) {
			t.Parallel()
			machine, next := &fencetest.Box{ID: uuid}, &fencetest.Box{ID: other}
			b := &bmc.Redfish{User: "sauh", Password: "secret", Controller: bmc.Controller{Machine: machine, Other: next}}
			b.SetFault(c.fault)
			if c.off {
				_ = machine.PowerOff(t.Context())
			}
			address, pin := fencetest.StartRedfish(t, b)
			cfg := parse(t, redfishSection(address, pin, ""))
			set := fence.Build(cfg, n2, rehearsed(cfg, n2))
			t.Cleanup(set.Close)
			judge(t, "ask", set.Ask(t.Context(), silent), c.ask)
			judge(t, "shoot", set.Shoot(t.Context(), time.Hour, silent, nil), c.shoot)
			if next.Orders() != 0 {
				t.Error("the neighbour was switched")
			}
			if c.shoot == nil && machine.On() {
				t.Error("proved, and it has power")
			}
		})
	}
}

// A BMC that lies as long as it is read is found by a rehearsal, and by whatever is heard of the node.
func TestALiarIsFoundByItsRehearsalAndByWhatIsHeardOfTheNode(t *testing.T) {
	b := &bmc.Redfish{User: "sauh", Password: "secret", Controller: bmc.Controller{Machine: &fencetest.Box{ID: uuid}}}
	b.SetFault(bmc.Lie)
	address, pin := fencetest.StartRedfish(t, b)
	cfg := parse(t, redfishSection(address, pin, ""))
	e := rehearsed(cfg, n2)
	set := fence.Build(cfg, n2, e)
	defer set.Close()
	alive := func() []core.Sign { return []core.Sign{{Kind: core.Beacon, At: e.Now()}} }
	judge(t, "ask", set.Ask(t.Context(), alive), core.ErrAlive)
	last := set.Rehearse(t.Context(), fence.Rehearsing{At: time.Now().Unix(), Signs: alive})[0]
	if !strings.Contains(last.Failed, "must not be believed") {
		t.Errorf("%+v", last)
	}
	e.Rehearsal = func(string) core.Rehearsal { return last }
	after := fence.Build(cfg, n2, e)
	defer after.Close()
	judge(t, "ask", after.Ask(t.Context(), silent), core.ErrRehearsalFailed)
	judge(t, "shoot", after.Shoot(t.Context(), time.Hour, silent, nil), core.ErrRehearsalFailed)
}

func TestARehearsalOfANodeWithoutAUUIDNamesTheOneToWrite(t *testing.T) {
	b := &bmc.Redfish{User: "sauh", Password: "secret", Controller: bmc.Controller{Machine: &fencetest.Box{ID: uuid}}}
	address, pin := fencetest.StartRedfish(t, b)
	set := fence.Build(parse(t, redfishSection(address, pin, "")), fence.Node{Name: "n2"}, env(nil))
	defer set.Close()
	last := set.Rehearse(t.Context(), fence.Rehearsing{At: time.Now().Unix(), Signs: silent})[0]
	if !strings.Contains(strings.ToLower(last.Failed), "set uuid="+uuid) {
		t.Errorf("%+v", last)
	}
}

func TestARehearsalBySwitchingMakesAnUnidentifiedBMCCount(t *testing.T) {
	box := &fencetest.Box{}
	b := &bmc.Redfish{User: "sauh", Password: "secret", Controller: bmc.Controller{Machine: box}}
	address, pin := fencetest.StartRedfish(t, b)
	cfg, e := parse(t, redfishSection(address, pin, "\tuuid any\n")), env(nil)
	set := fence.Build(cfg, n2, e)
	defer set.Close()
	last := set.Rehearse(t.Context(), fence.Rehearsing{
		At: time.Now().Unix(), Signs: silent, Switch: func(context.Context) error { return nil },
	})[0]
	if last.Failed != "" || !last.Switched || box.On() {
		t.Fatalf("%+v", last)
	}
	e.Rehearsal = func(string) core.Rehearsal { return last }
	after := fence.Build(cfg, n2, e)
	defer after.Close()
	got := after.Ask(t.Context(), silent)
	if got.Proof == nil || got.Proof.Grade != core.Unidentified {
		t.Errorf("%+v", got)
	}
}

func agreed(context.Context) error { return nil }

func TestAllMethodsOfANodeRaceAndTheBlocklistIsReleased(t *testing.T) {
	c := fencetest.NewCeph(t)
	c.Image("rbd/vm-100", "10.77.0.12:0/1000")
	hole := fencetest.StartRelay(t, "")
	text := ipmiSection(hole.Address, "") + "\nceph: rbd\n\tstorages fast\n\nipmi: n3\n\tnode n3\n\taddress h\n\tuser u\n\tpassword-file priv/x\n"
	node := n2
	node.Addresses = []string{"10.77.0.12"}
	node.RBD = []string{"fast"}
	node.Guests = []core.Guest{{VMID: 100, Disks: []core.Disk{{Storage: "fast", Writable: true, Image: "rbd/vm-100"}}}}
	set := fence.Build(parse(t, text), node, env(c))
	defer set.Close()
	start := time.Now()
	got := set.Shoot(t.Context(), time.Hour, silent, nil)
	if got.Proof == nil || got.Proof.Method != "ceph: rbd" || !got.Proof.Covers(100) || len(got.Said) != 2 || time.Since(start) > 2*time.Second {
		t.Errorf("%+v after %v", got, time.Since(start))
	}
	if err := set.Release(t.Context(), core.Dead{Node: "n2"}, agreed); err == nil || len(c.Blocked()) != 1 {
		t.Errorf("released without a word: %v", err)
	}
	if err := set.Release(t.Context(), core.Dead{Node: "n2", Epoch: 4}, agreed); err != nil || len(c.Blocked()) != 0 {
		t.Errorf("%v, %v", err, c.Blocked())
	}
}

func TestABlocklistWithoutAnRBDStorageIsWorthlessHoweverItsRehearsalWent(t *testing.T) {
	c := fencetest.NewCeph(t)
	node := n2
	node.Addresses, node.RBD = []string{"10.77.0.12"}, []string{"another"}
	text, e := "ceph: rbd\n\tstorages fast\n", env(c)
	set := fence.Build(parse(t, text), node, e)
	defer set.Close()
	last := set.Rehearse(t.Context(), fence.Rehearsing{At: 1, Signs: silent})[0]
	e.Rehearsal = func(string) core.Rehearsal { return last }
	after := fence.Build(parse(t, text), node, e)
	defer after.Close()
	if got := after.Methods()[0]; got.Grade != core.Worthless || !strings.Contains(got.Reason, "it has no effect") {
		t.Errorf("%+v", got)
	}
	judge(t, "shoot", after.Shoot(t.Context(), time.Hour, silent, nil), core.ErrNotCovered)
	if blocked := c.Blocked(); len(blocked) != 0 {
		t.Errorf("blocked %v", blocked)
	}
}

func TestAMethodThatCannotBeMadeSaysWhy(t *testing.T) {
	set := fence.Build(parse(t, strings.Replace(ipmiSection("h", ""), "priv/fence/n2", "priv/gone", 1)), n2, env(nil))
	defer set.Close()
	judge(t, "ask", set.Ask(t.Context(), silent), os.ErrNotExist)
	if r := set.Rehearse(t.Context(), fence.Rehearsing{At: 1, Signs: silent})[0]; r.Failed == "" {
		t.Error("its rehearsal passed")
	}
}

var (
	_ fence.BMC    = (*ipmi.Client)(nil)
	_ fence.BMC    = (*redfish.Client)(nil)
	_ fence.Fencer = (*ceph.Blocklist)(nil)
)
