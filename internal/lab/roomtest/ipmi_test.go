//go:build room

package roomtest

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/lab"
)

// Bounds of a failover with IPMI, from the fault until a QEMU of the guest runs elsewhere.
const (
	byIPMIOff  = 6 * time.Second // the BMC says that the node has no power
	byIPMIShot = byBMCShot       // the node is silent, and its BMC is told to cut the power
)

// ipmiOf is a node's method as `sauh ha fence list` and the log name it.
func ipmiOf(node string) string { return "ipmi: " + node + "-ipmi" }

func TestIPMIIsRehearsedAgainstTheRoomsSimulator(t *testing.T) {
	r := open(t)
	r.FencedBy(pveconf.FenceIPMI)
	a := r.Must("n1", "ha fence-test n3")
	if !strings.Contains(a.out, ipmiOf("n3")+"  rehearsed") || !strings.Contains(a.out, "answered in") {
		t.Errorf("it says %s", a)
	}
	r.breakBMC("n3", "wrong")
	if a := r.Sauh("n1", "ha fence-test n3"); a.code != 1 || !strings.Contains(a.out, "belongs to another machine") {
		t.Errorf("a BMC that is cabled to another node: %s", a)
	}
	for _, n := range nodes() {
		if st := r.Node(n); st.Power != lab.StateOn {
			t.Errorf("%s is %s", n, st.Power)
		}
	}
}

func TestANodeWithoutPowerIsTakenOverOnTheWordOfItsIPMI(t *testing.T) {
	r := open(t)
	r.FencedBy(pveconf.FenceIPMI)
	lost := r.otherThan(r.Cluster("n1").Manager, r.Cluster("n1").Leader)
	g := r.Guest(100).On(lost).Protected()
	l := g.Ledger()
	since := r.PowerOff(lost)
	g.MustStartElsewhere(lost, since, byIPMIOff)
	r.MustBeByIPMI(lost, since)
	g.MustAnswer(patience)
	l.MustGoOn(patience)
	l.MustBeWhole()
}

func TestANodeWhoseAgentHangsIsShotByIPMI(t *testing.T) {
	shotByIPMI(t, func(r *room, n string) time.Time { return r.Signal(n, agentUnit, syscall.SIGSTOP) })
}

func TestANodeWithoutCablesIsShotByIPMI(t *testing.T) {
	shotByIPMI(t, func(r *room, n string) time.Time { return r.Cut(n) })
}

// shotByIPMI silences a node while it runs: its BMC cuts the power, says so, and the guest comes back elsewhere.
func shotByIPMI(t *testing.T, silence func(r *room, node string) time.Time) {
	r := open(t)
	r.FencedBy(pveconf.FenceIPMI)
	lost := r.otherThan(r.Cluster("n1").Manager, r.Cluster("n1").Leader)
	g := r.Guest(100).On(lost).Protected()
	old := g.QEMU()
	l := g.Ledger()
	since := silence(r, lost)
	g.MustStartElsewhere(lost, since, byIPMIShot)
	r.MustBeByIPMI(lost, since)
	shot := r.managersLog(since, "a node was shot", ipmiOf(lost))
	t.Logf("shot and verified %v after the fault", shot.Sub(since).Round(time.Millisecond))
	if n := r.Node(lost); n.Power != lab.StateOff || len(n.PIDs) != 0 || n.Why != "by command" {
		t.Errorf("%s is %s, %s, processes %v", lost, n.Power, n.Why, n.PIDs)
	}
	for _, p := range g.Processes(since) {
		if p.pid == old.pid && p.last.After(shot) {
			t.Errorf("%v was there after %s was shot at %v", &p, lost, shot)
		}
	}
	r.stopped = nil // it died with its node
	g.MustAnswer(patience)
	l.MustGoOn(patience)
	l.MustBeWhole()
}

func TestAnIPMIThatHangsLeavesTheLease(t *testing.T) {
	r := open(t)
	r.FencedBy(pveconf.FenceIPMI)
	lost := r.otherThan(r.Cluster("n1").Manager, r.Cluster("n1").Leader)
	g := r.Guest(100).On(lost).Protected()
	r.breakBMC(lost, "hang")
	since := r.PowerOff(lost)
	g.MustStartElsewhere(lost, since, toStart)
	g.MustAnswer(patience)
}

// MustBeByIPMI demands that a node was cut off on the word of its IPMI, and not because its lease was over.
func (r *room) MustBeByIPMI(node string, since time.Time) {
	r.t.Helper()
	cut := r.managersLog(since, node+" is cut off", ipmiOf(node)+" says that "+node+" has no power")
	r.t.Logf("%s cut off on the word of %s %v after the fault", node, ipmiOf(node), cut.Sub(since).Round(time.Millisecond))
}

// breakBMC breaks a node's BMC until the end of the test.
func (r *room) breakBMC(node string, f lab.BMCFault) {
	r.t.Helper()
	if err := r.BMC(r.t.Context(), node, f); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := r.BMC(context.Background(), node, "none"); err != nil {
			r.t.Error(err)
		}
	})
}
