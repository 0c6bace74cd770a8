//go:build room

package roomtest

import (
	"fmt"
	"testing"
	"time"

	"sauh.dev/sauh/internal/lab"
)

// MustMove waits until the guest runs on node and is at rest there.
func (g *guest) MustMove(node string, within time.Duration) {
	g.r.t.Helper()
	g.r.Eventually(fmt.Sprintf("guest %d is started on %s", g.id, node), within, func() error {
		st, err := g.HA()
		if err == nil && (st.Node != node || st.Status != "started") {
			err = fmt.Errorf("%s on %s: %s", st.Status, st.Node, st.Reason)
		}
		return err
	})
	g.MustBe("running", node, patience)
}

// course is a part of a test.
type course struct {
	name string
	run  func(*room)
}

// inRoomOfItsOwn makes a room with a cluster, runs the parts in it one after the other, and checks that no guest ran twice at once.
func inRoomOfItsOwn(t *testing.T, name string, parts []course) {
	t.Helper()
	w, err := raise(t.Context(), name, len(nodes()))
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	enter(t, w).BuildCluster()
	for _, c := range parts {
		t.Run(c.name, func(t *testing.T) {
			r := enter(t, w)
			t.Cleanup(r.Repair)
			r.AllWell()
			c.run(r)
		})
	}
	for _, v := range w.sampler.violations() {
		t.Error("two QEMUs of one guest ran at once:", v)
	}
}

// In a room of its own: a node that other tests have made silent three times is in quarantine, and no guest returns to it.
func TestNodesAreLeftInOrder(t *testing.T) {
	inRoomOfItsOwn(t, "leave", []course{
		{"a command moves a guest live or by a restart", commandMoves},
		{"guests leave a node in maintenance and come back", maintenance},
		{"a reboot under the policy migrate restarts no guest", func(r *room) { rebootByMigration(r) }},
		{"a shutdown fails over without waiting for the lease", shutdownFailsOver},
	})
}

func commandMoves(r *room) {
	t := r.t
	g := r.Guest(100).On("n1").Protected()
	boot, l := g.MustAnswer(patience).BootID, g.Ledger()
	begin := time.Now()
	r.Must("n3", "ha migrate vm:100 --to n2")
	g.MustMove("n2", patience)
	t.Logf("migrated by command after %v", time.Since(begin).Round(time.Millisecond))
	if now := g.MustAnswer(patience).BootID; now != boot {
		t.Error("the migration was a restart")
	}
	begin = time.Now()
	r.Must("n3", "ha relocate vm:100 --to n3")
	g.MustMove("n3", 2*patience)
	t.Logf("relocated by command after %v", time.Since(begin).Round(time.Millisecond))
	if now := g.MustAnswer(patience).BootID; now == boot {
		t.Error("the relocation was none")
	}
	l.MustGoOn(patience)
	l.MustBeWhole()
}

func maintenance(r *room) {
	t := r.t
	g := r.Guest(100).On("n2").Protected()
	boot, l := g.MustAnswer(patience).BootID, g.Ledger()
	begin := time.Now()
	r.Must("n1", "ha maintenance on n2")
	t.Cleanup(func() { r.Sauh("n1", "ha maintenance off n2") })
	r.Eventually("guest 100 left n2", patience, func() error {
		st, err := g.HA()
		if err == nil && (st.Node == "n2" || st.Status != "started") {
			err = fmt.Errorf("%s on %s: %s", st.Status, st.Node, st.Reason)
		}
		return err
	})
	t.Logf("away after %v", time.Since(begin).Round(time.Millisecond))
	begin = time.Now()
	r.Must("n1", "ha maintenance off n2")
	g.MustMove("n2", patience)
	t.Logf("back after %v", time.Since(begin).Round(time.Millisecond))
	if now := g.MustAnswer(patience).BootID; now != boot {
		t.Error("the guest was restarted")
	}
	l.MustBeWhole()
}

// rebootByMigration reboots n2 in order and demands that its guest leaves and comes back without a restart. It returns how long that took.
func rebootByMigration(r *room) time.Duration {
	t := r.t
	r.Must("n1", "ha options --shutdown-policy migrate")
	t.Cleanup(func() { r.Must("n1", "ha options --shutdown-policy conditional") })
	g := r.Guest(100).On("n2").Protected()
	boot, l, epoch := g.MustAnswer(patience).BootID, g.Ledger(), r.epoch("n2")
	began := time.Now()
	res, err := r.Power(t.Context(), "n2", lab.PowerReboot)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("n2 went down %v after the command, and is up after %v", res.CutAt.Sub(began).Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	if res.CutAt.IsZero() {
		t.Fatal("n2 never went down")
	}
	r.AllWell()
	g.MustMove("n2", patience)
	home := time.Since(began)
	t.Logf("the guest is home %v after the command", home.Round(time.Millisecond))
	if now := g.MustAnswer(patience).BootID; now != boot {
		t.Error("the guest was restarted")
	}
	if now := r.epoch("n2"); now != epoch {
		t.Errorf("n2 was cut off: epoch %d, before %d", now, epoch)
	}
	l.MustBeWhole()
	return home
}

// A shutdown by the policy conditional is a failover that waits for nobody's lease.
func shutdownFailsOver(r *room) {
	t := r.t
	g := r.Guest(100).On("n2").Protected()
	boot, l := g.MustAnswer(patience).BootID, g.Ledger()
	res, err := r.Power(t.Context(), "n2", lab.PowerShutdown)
	if err != nil {
		t.Fatal(err)
	}
	took := g.MustRunElsewhere("n2", res.CutAt)
	t.Logf("QEMU runs elsewhere %v after n2 was off", took.Round(time.Millisecond))
	if now := g.MustAnswer(patience).BootID; now == boot {
		t.Error("the guest was not restarted")
	}
	if took > leaseTime/2 {
		t.Errorf("it took %v: somebody waited for the lease", took)
	}
	l.MustGoOn(patience)
	l.MustBeWhole()
}
