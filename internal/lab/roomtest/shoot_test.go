//go:build room

package roomtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/lab"
)

// Bounds of a failover with a BMC, from the fault until a QEMU of the guest runs elsewhere.
const (
	byBMCOff  = 4 * time.Second // the BMC says that the node has no power
	byBMCShot = 8 * time.Second // the node hangs, and its BMC is told to cut the power
)

// Fenced configures the room's BMCs by Redfish in the cluster until the end of the test, and waits until they are rehearsed.
func (r *room) Fenced() { r.t.Helper(); r.FencedBy(pveconf.FenceRedfish) }

// FencedBy is Fenced in another language of the BMCs.
func (r *room) FencedBy(typ string) {
	r.t.Helper()
	r.t.Cleanup(func() {
		var errs []error
		for _, n := range r.names { // the test's victim may still be without power
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			err := r.API(n).SetFenceFile(ctx, "", "")
			cancel()
			if err == nil {
				return
			}
			errs = append(errs, err)
		}
		r.t.Error(errors.Join(errs...))
	})
	r.UseBMCs(typ)
}

// UseBMCs configures them for good, by Redfish or IPMI.
func (r *room) UseBMCs(typ string) {
	r.t.Helper()
	text, err := r.FenceConfig(r.ctx(10*time.Second), typ)
	if err != nil {
		r.t.Fatal(err)
	}
	c := r.API("n1")
	for _, n := range r.names {
		name := strings.TrimPrefix(lab.BMCPasswordFile, "priv/fence/") + "-" + n
		if err := c.SetFenceSecret(r.ctx(5*time.Second), name, r.Node(n).BMC.Password); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := c.SetFenceFile(r.ctx(5*time.Second), text, ""); err != nil {
		r.t.Fatal(err)
	}
	r.Eventually("all methods are rehearsed", patience, func() error {
		methods, err := c.FenceMethods(r.ctx(5 * time.Second))
		if err == nil && len(methods) != len(r.names) {
			err = fmt.Errorf("%d methods", len(methods))
		}
		for _, m := range methods {
			if m.Grade != "rehearsed" {
				err = fmt.Errorf("%s is %s: %s", m.Method, m.Grade, m.Reason)
				// One that failed in an earlier test would be tried again after a minute.
				_, _ = c.FenceTest(r.ctx(10*time.Second), m.Node, false)
			}
		}
		return err
	})
}

// MustStartElsewhere waits until a QEMU of the guest runs on another node than from, and returns how long after the fault it was started.
func (g *guest) MustStartElsewhere(from string, fault time.Time, within time.Duration) {
	t := g.r.t
	t.Helper()
	g.r.Eventually(fmt.Sprintf("a QEMU of guest %d runs elsewhere", g.id), patience, func() error {
		for _, p := range g.r.sampler.alive(g.id) {
			if p.node != from && !p.frozen {
				took := p.started.Sub(fault)
				t.Logf("QEMU started on %s %v after the fault", p.node, took.Round(time.Millisecond))
				if took > within {
					t.Errorf("it took %v, more than %v", took, within)
				}
				return nil
			}
		}
		return fmt.Errorf("%v", g.Processes(fault))
	})
}

func TestANodeWithoutPowerIsTakenOverOnTheWordOfItsBMC(t *testing.T) {
	r := open(t)
	r.Fenced()
	lost := r.otherThan(r.Cluster("n1").Manager, r.Cluster("n1").Leader)
	g := r.Guest(100).On(lost).Protected()
	l := g.Ledger()
	since := r.PowerOff(lost)
	g.MustStartElsewhere(lost, since, byBMCOff)
	g.MustAnswer(patience)
	l.MustGoOn(patience)
	l.MustBeWhole()
}

func TestANodeThatHangsIsShotByItsBMC(t *testing.T) {
	r := open(t)
	r.Fenced()
	lost := r.otherThan(r.Cluster("n1").Manager, r.Cluster("n1").Leader)
	g := r.Guest(100).On(lost).Protected()
	l := g.Ledger()
	since := r.Signal(lost, agentUnit, syscall.SIGSTOP)
	g.MustStartElsewhere(lost, since, byBMCShot)
	if n := r.Node(lost); n.Power != lab.StateOff {
		t.Errorf("%s is %s", lost, n.Power)
	}
	r.stopped = nil // it died with its node
	g.MustAnswer(patience)
	l.MustGoOn(patience)
	l.MustBeWhole()
}

func TestABMCThatHangsLeavesTheLease(t *testing.T) {
	r := open(t)
	r.Fenced()
	lost := r.otherThan(r.Cluster("n1").Manager, r.Cluster("n1").Leader)
	g := r.Guest(100).On(lost).Protected()
	r.breakBMC(lost, "hang")
	since := r.PowerOff(lost)
	g.MustStartElsewhere(lost, since, toStart)
	g.MustAnswer(patience)
}
