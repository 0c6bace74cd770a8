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

	"sauh.dev/sauh/internal/client"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/lab"
)

func TestAGuestMovesWhileItRuns(t *testing.T) {
	r := open(t)
	g := r.Guest(101).On("n1")
	boot, e, l := g.MustAnswer(patience).BootID, g.Echo(), g.Ledger()
	for _, to := range []string{"n2", "n3", "n1"} {
		since, from := time.Now(), g.QEMU().node
		out := r.Must("n2", fmt.Sprintf("vm migrate 101 --to %s --online", to)).out
		if !strings.Contains(out, "moved from node "+from+" to node "+to) || !strings.Contains(out, "transferred") {
			t.Errorf("vm migrate prints:\n%s", out)
		}
		l.MustGoOn(time.Second)
		t.Logf("to %s: longest gap of the echoes %v", to, longestGap(e, since).Round(time.Millisecond))
		if gap := longestGap(e, since); gap >= time.Second {
			t.Errorf("the move to %s cost %v", to, gap)
		}
		g.MustOnlyBeOn(to)
	}
	if now := g.MustAnswer(patience).BootID; now != boot {
		t.Error("the guest booted again")
	}
	l.MustBeWhole()
}

func TestAMoveThatIsDisturbedLeavesTheGuestAtExactlyOnePlace(t *testing.T) {
	r := open(t)
	for _, c := range []struct {
		name    string
		disturb func(m *migration) // while the memory is being copied
		stays   bool               // the guest must be on the source afterwards
	}{
		{"cancel", func(m *migration) {
			if err := m.r.API("n1").CancelTask(m.r.ctx(5*time.Second), m.upid); err != nil {
				m.r.t.Error(err)
			}
		}, true},
		{"the target's QEMU dies", func(m *migration) { m.signalTarget(syscall.SIGKILL) }, true},
		{"the source's agent dies", func(m *migration) { m.r.Signal("n1", agentUnit, syscall.SIGKILL) }, false},
		{"the target's agent dies", func(m *migration) { m.r.Signal("n2", agentUnit, syscall.SIGKILL) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := enter(t, r.world)
			g := r.Guest(101).On("n1").Protected()
			boot, l := g.MustAnswer(patience).BootID, g.Ledger()
			g.Dirty(busy)
			m := g.BeginMigration("n1", "n2")
			m.HoldInTheMiddle()
			c.disturb(m)
			m.Release()
			r.AgentsAnswer("n1", "n2")
			node := g.MustSettle()
			t.Logf("the guest is on %s %v after the disturbance", node, time.Since(m.middle).Round(time.Millisecond))
			if c.stays && node != "n1" {
				t.Errorf("the guest is on %s", node)
			}
			l.MustGoOn(patience)
			g.Dirty(0)
			g.MustOnlyBeOn(node)
			if now := g.MustAnswer(patience).BootID; now != boot {
				t.Error("the guest booted again")
			}
			l.MustBeWhole()
			r.AllWell()
		})
	}
}

// busy is more MiB a second than the guest can write: its memory needs some rounds.
const busy = 4000

// migration is one that is under way.
type migration struct {
	r      *room
	g      *guest
	upid   string
	to     string
	middle time.Time
}

// BeginMigration starts an online move and does not wait for it.
func (g *guest) BeginMigration(from, to string) *migration {
	g.r.t.Helper()
	upid, err := g.r.API("n3").MigrateGuest(g.r.ctx(10*time.Second), from, g.id, to, true)
	if err != nil {
		g.r.t.Fatal(err)
	}
	return &migration{r: g.r, g: g, upid: upid, to: to}
}

// HoldInTheMiddle waits until memory is being copied and stops the QEMU that receives it, so that the middle lasts.
func (m *migration) HoldInTheMiddle() {
	m.r.t.Helper()
	task := m.progress(func(p model.MigrationProgress) bool { return p.TransferredBytes > 0 })
	m.signalTarget(syscall.SIGSTOP)
	if task.Progress.Phase != "precopy" {
		m.r.t.Fatalf("the migration was seen too late: %+v", *task.Progress)
	}
	m.middle = time.Now()
}

// Release lets the receiving QEMU go on if it is still there.
func (m *migration) Release() {
	for _, p := range m.r.sampler.alive(m.g.id) {
		if p.node == m.to {
			_ = syscall.Kill(p.pid, syscall.SIGCONT)
		}
	}
}

// progress waits for a progress report that fits.
func (m *migration) progress(fits func(model.MigrationProgress) bool) model.Task {
	m.r.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var last model.Task
	for begin := time.Now(); time.Since(begin) < patience; <-tick.C {
		task, err := m.r.API("n1").Task(m.r.ctx(time.Second), m.upid)
		if err != nil {
			continue
		}
		if last = task; task.Progress != nil && fits(*task.Progress) {
			return task
		}
		if task.End != 0 {
			break
		}
	}
	m.r.t.Fatalf("the migration was not seen in its middle: %+v", last)
	return last
}

// signalTarget sends a signal to the QEMU that receives the guest.
func (m *migration) signalTarget(sig syscall.Signal) {
	m.r.t.Helper()
	for _, p := range m.r.sampler.alive(m.g.id) {
		if p.node != m.to {
			continue
		}
		if sig == syscall.SIGSTOP {
			m.r.stopped = append(m.r.stopped, p.pid)
		}
		if err := syscall.Kill(p.pid, sig); err != nil {
			m.r.t.Fatal(err)
		}
		return
	}
	m.r.t.Fatalf("guest %d has no QEMU on %s", m.g.id, m.to)
}

// MustSettle waits until the guest runs at one place, answers, and nothing of its migration goes on, and returns where.
func (g *guest) MustSettle() (node string) {
	g.r.t.Helper()
	g.r.Eventually("the guest is at one place", patience, func() error {
		ps := g.r.sampler.alive(g.id)
		if len(ps) != 1 {
			return fmt.Errorf("%d processes: %v", len(ps), ps)
		}
		row, err := g.Find()
		if err != nil {
			return err
		}
		if node = row.Node; node != ps[0].node || row.Status != "running" || row.QMPStatus != "running" {
			return fmt.Errorf("it is listed as %+v, and its process is on %s", row, ps[0].node)
		}
		_, err = g.Stats()
		return err
	})
	return node
}

// MustOnlyBeOn demands that nothing of the guest is left on any other node, and that no migration of it is recorded.
func (g *guest) MustOnlyBeOn(node string) {
	g.r.t.Helper()
	for _, n := range g.r.names {
		if g.r.Node(n).Power != lab.StateOn {
			continue
		}
		g.r.Eventually("nothing is left on "+n, 10*time.Second, func() error {
			left := g.leftOn(n)
			if strings.Contains(left, ".move") || n != node && left != "" || n == node && left == "" {
				return fmt.Errorf("%s has %q", n, left)
			}
			return nil
		})
	}
	// An intent that was left would be in the way of the next one.
	if err := g.mayMove(node); err != nil {
		g.r.t.Errorf("guest %d cannot be touched: %v", g.id, err)
	}
}

// leftOn lists what a node has of the guest: cgroup, files, network device. The serial port's log and the lock's file stay for ever.
func (g *guest) leftOn(node string) string {
	g.r.t.Helper()
	return g.r.Shell(node, fmt.Sprintf("ls -d /sys/fs/cgroup/sauh/guests/%[1]d /run/sauh/qemu/%[1]d.* /sys/class/net/tap%[1]d* 2>/dev/null"+
		` | grep -v -e '\.log$' -e '\.lock$' || true`, g.id))
}

// mayMove asks for a change that is refused while a migration is recorded.
func (g *guest) mayMove(node string) error {
	cfg, err := g.r.API(node).GuestConfig(g.r.ctx(5*time.Second), node, g.id)
	if err != nil {
		return err
	}
	if lock := cfg.Values["lock"]; lock != "" {
		return errors.New("locked: " + lock)
	}
	return g.r.API(node).SetGuestConfig(g.r.ctx(5*time.Second), node, g.id, map[string]string{"description": "moved"}, nil, cfg.Digest)
}

func TestAMoveThatCannotBeIsRefusedAndChangesNothing(t *testing.T) {
	r := open(t)
	g := r.Guest(101).On("n1")
	r.Shell("n1", "ip link add vmbr7 type bridge && ip link set vmbr7 up")
	r.Must("n1", "vm create 119 --name bridged --memory 64 --net0 virtio,bridge=vmbr7")
	t.Cleanup(func() { r.Sauh("n1", "vm destroy 119") })
	before, config := g.QEMU(), r.Must("n1", "vm config 101").out
	r.Refused("n2", "vm migrate 101 --to n1 --online", "guest 101 is already on node n1")
	r.Refused("n2", "vm migrate 101 --to n9 --online", "n9", "does not exist", "n1, n2, n3")
	r.Refused("n2", "vm migrate 101 --to n2", "running", "online")
	r.Refused("n2", "vm migrate 199 --to n2", "199", "does not exist")
	r.Refused("n2", "vm migrate 101", "--to")
	r.Refused("n2", "vm migrate 119 --to n2", "vmbr7", "does not exist", "n2")
	target := r.otherThan("n1", r.Cluster("n1").Leader) // without a leader of the store it would be said that there is no quorum
	from := r.otherThan("n1", target)
	r.PowerOff(target)
	r.Refused(from, "vm migrate 101 --online --to "+target, target)
	r.Eventually(target+" is known to be off", patience, func() error {
		for _, n := range r.Cluster("n1").Nodes {
			if n.Name == target && n.Online {
				return errors.New("it is shown online")
			}
		}
		return nil
	})
	a := r.Refused(from, "vm migrate 101 --online --to "+target, target+" is not online")
	if a.took > time.Second {
		t.Errorf("refused only after %v", a.took)
	}
	if now := g.QEMU(); now.pid != before.pid {
		t.Errorf("its process was %v and is %v", &before, &now)
	}
	if now := r.Must("n1", "vm config 101").out; now != config {
		t.Errorf("its configuration was\n%sand is\n%s", config, now)
	}
	g.MustOnlyBeOn("n1")
}

// Migrate moves the guest and waits for it.
func (g *guest) Migrate(from, to string, online bool) {
	g.r.t.Helper()
	g.task(func(ctx context.Context, c *client.Client) (string, error) {
		return c.MigrateGuest(ctx, from, g.id, to, online)
	})
}
