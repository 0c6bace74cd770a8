//go:build room

package roomtest

import (
	"fmt"
	"syscall"
	"testing"
	"time"
)

// Kill kills the guest's QEMU.
func (g *guest) Kill() time.Time {
	g.r.t.Helper()
	p := g.QEMU()
	if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil {
		g.r.t.Fatal(err)
	}
	g.r.t.Logf("%s: QEMU of guest %d on %s killed", clock(), g.id, p.node)
	return time.Now()
}

func TestGuestsRunOnWithoutTheirAgentAndAreAdopted(t *testing.T) {
	r := open(t)
	free, protected := r.Guest(101).On("n2"), r.Guest(100).On("n2").Protected()
	before := map[*guest]process{free: free.QEMU(), protected: protected.QEMU()}
	e, l := free.Echo(), protected.Ledger()
	since := r.Signal("n2", agentUnit, syscall.SIGKILL)
	back := r.Logged("n2", initUnit, since, "sauh-agent started")
	for g := range before {
		adopted := r.Logged("n2", agentUnit, since, "guest adopted", "vmid="+g.id.String())
		t.Logf("guest %d was adopted %v after the agent was started again", g.id, adopted.Sub(back).Round(time.Millisecond))
		if adopted.Sub(back) > 2*time.Second {
			t.Errorf("guest %d was adopted only %v after the agent's return", g.id, adopted.Sub(back))
		}
		g.MustBe("running", "n2", patience)
	}
	r.AllWell()
	for g, p := range before {
		if now := g.QEMU(); now.pid != p.pid || !now.frozenAt.IsZero() {
			t.Errorf("guest %d had the process %v and has %v", g.id, &p, &now)
		}
	}
	if gap := longestGap(e, since); gap > time.Second {
		t.Errorf("the guest was silent for %v", gap)
	}
	l.MustBeWhole()
}

func TestTheEndOfAQEMUIsNoticedWithinASecond(t *testing.T) {
	r := open(t)
	g := r.Guest(101).On("n1")
	since := g.Kill()
	took := r.Eventually("guest 101 is listed as stopped", time.Second, func() error {
		row, err := g.FindAt("n1")
		if err == nil && row.Status != "stopped" {
			err = fmt.Errorf("it is %s", row.Status)
		}
		return err
	})
	t.Logf("noticed after %v", took.Round(time.Millisecond))
	if ps := g.Processes(since.Add(samplePace)); len(ps) != 0 {
		t.Errorf("processes after the kill: %v", ps)
	}
	r.Refused("n3", "vm stop 101", "101 not running")
}
