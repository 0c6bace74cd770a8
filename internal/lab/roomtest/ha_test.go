//go:build room

package roomtest

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// Bounds of a failover, from the power cut, at the lease of 10 s.
const (
	toStart  = 14 * time.Second
	toAnswer = 20 * time.Second
	// managerToo is what it may cost more when HA manager and store leader die with the node.
	managerToo = 2 * time.Second
)

func TestAGuestWhoseNodeLosesPowerComesBackElsewhere(t *testing.T) {
	r := open(t)
	lost := r.otherThan(r.Cluster("n1").Manager, r.Cluster("n1").Leader)
	g := r.Guest(100).On(lost).Protected()
	failover(r, g, lost, 0)
}

func TestAGuestComesBackWhenManagerAndLeaderAreLostWithItsNode(t *testing.T) {
	r := open(t)
	lost := r.makeManagerLead()
	g := r.Guest(100).On(lost).Protected()
	if st := r.Cluster("n1"); st.Manager != lost || st.Leader != lost {
		t.Fatalf("manager %s and leader %s are not both on %s", st.Manager, st.Leader, lost)
	}
	failover(r, g, lost, managerToo)
}

// failover cuts the power of the guest's node and demands that it comes back elsewhere, whole, in time.
func failover(r *room, g *guest, lost string, more time.Duration) {
	t := r.t
	old, boot, l := g.QEMU(), g.MustAnswer(patience).BootID, g.Ledger()
	since := r.PowerOff(lost)
	r.Eventually("a QEMU of the guest runs elsewhere", toStart+more-time.Since(since), func() error {
		for _, p := range r.sampler.alive(g.id) {
			if p.node != lost {
				return nil
			}
		}
		return fmt.Errorf("%v", g.Processes(since))
	})
	started := g.QEMU()
	after := g.MustAnswer(toAnswer + more - time.Since(since))
	t.Logf("power cut to QEMU started %v, to answer %v", started.started.Sub(since).Round(time.Millisecond), time.Since(since).Round(time.Millisecond))
	if after.BootID == boot {
		t.Error("the guest answers with the old boot id")
	}
	if early := started.started.Sub(since); early < leaseTime-time.Second {
		t.Errorf("the guest was taken over after %v, before the lease of its node was over", early)
	}
	l.MustGoOn(patience)
	r.PowerOn(lost)
	r.AllWell()
	if now := g.QEMU(); now.pid != started.pid || now.node == lost {
		t.Errorf("after %s came back the guest's process is %v, it was %v", lost, &now, &started)
	}
	for _, p := range g.Processes(since) {
		if p.pid == old.pid && p.last.After(since.Add(samplePace)) {
			t.Errorf("%v outlived the power cut", &p)
		}
	}
	l.MustBeWhole()
}

func TestAQEMUOfAProtectedGuestThatDiesIsStartedAgain(t *testing.T) {
	r := open(t)
	g := r.Guest(100).On("n2").Protected()
	old, l := g.QEMU(), g.Ledger()
	since := g.Kill()
	r.Eventually("it runs again", patience, func() error {
		for _, p := range r.sampler.alive(g.id) {
			if p.pid != old.pid && p.node == "n2" {
				return nil
			}
		}
		return fmt.Errorf("%v", g.Processes(since))
	})
	started := g.QEMU().started.Sub(since)
	noticed := r.Logged("n2", agentUnit, since, "guest ended", "vmid=100").Sub(since)
	t.Logf("noticed after %v, started again after %v", noticed.Round(time.Millisecond), started.Round(time.Millisecond))
	if noticed > time.Second {
		t.Errorf("the end of QEMU was noticed only after %v", noticed)
	}
	g.MustAnswer(patience)
	l.MustBeWhole()
}

// otherThan is a node that is none of these.
func (r *room) otherThan(names ...string) string {
	r.t.Helper()
	for _, n := range r.names {
		if !slices.Contains(names, n) {
			return n
		}
	}
	r.t.Fatal("no node is left")
	return ""
}

// makeManagerLead brings HA manager and store leader to one node: the manager moves to the leader's node when its own one is restarted.
func (r *room) makeManagerLead() string {
	r.t.Helper()
	for range 6 {
		st := r.Cluster("n1")
		if st.Manager == st.Leader {
			return st.Leader
		}
		// A new manager is whoever sees the silence first, so this may take some attempts.
		r.PowerOff(st.Manager)
		old := st.Manager
		watcher := r.otherThan(old)
		r.Eventually("another node manages", patience, func() error {
			if st := r.Cluster(watcher); st.Manager == old || st.Leader == "" || st.Leader == old {
				return fmt.Errorf("manager %s, leader %s", st.Manager, st.Leader)
			}
			return nil
		})
		r.PowerOn(old)
		r.AllWell()
	}
	r.t.Fatal("manager and leader do not meet on one node")
	return ""
}
