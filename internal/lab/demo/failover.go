package demo

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"sauh.dev/sauh/internal/client"
	"sauh.dev/sauh/internal/lab"
	"sauh.dev/sauh/internal/lab/probe"
	"sauh.dev/sauh/internal/lab/report"
	"sauh.dev/sauh/internal/sys"
)

const (
	kindWorker = "worker"
	kindLeader = "manager and leader"
	// recoverLimit is three times what the target allows: the report should say how late it was.
	recoverLimit = 60 * time.Second
	// memberLimit for a node that boots and joins again.
	memberLimit = 60 * time.Second
	// togetherTries to have one node be manager and leader.
	togetherTries = 6
)

// failWorker cuts the node of guest 101, which must be nothing but a worker and run no other guest.
func (d *demo) failWorker(ctx context.Context) error {
	c, err := d.cast(ctx)
	if err != nil {
		return err
	}
	at, err := d.machines.where(ctx, d.run.Nodes[0], d.failing.id)
	if err != nil {
		return err
	}
	if at == c.leader || at == c.manager { // a role moved since the guest was created
		if err := d.bring(ctx, d.failing, c.worker); err != nil {
			return err
		}
		at = c.worker
	}
	if err := d.keepAway(ctx, d.moving, at); err != nil {
		return err
	}
	return d.failNode(ctx, kindWorker, at)
}

// failLeader makes one node manager, leader and host of guest 101, and cuts it.
func (d *demo) failLeader(ctx context.Context) error {
	node, err := d.together(ctx)
	if err != nil {
		return err
	}
	if err := d.keepAway(ctx, d.moving, node); err != nil {
		return err
	}
	if err := d.bring(ctx, d.failing, node); err != nil {
		return err
	}
	return d.failNode(ctx, kindLeader, node)
}

// bring moves a guest to a node if it is not there, live.
func (d *demo) bring(ctx context.Context, g *guest, node string) error {
	at, err := d.machines.where(ctx, node, g.id)
	if err != nil || at == node {
		return err
	}
	begin := d.clock.now()
	if _, err := d.migrate(ctx, g, at, node); err != nil {
		return fmt.Errorf("bring %s from %s to %s: %w", g.name(), at, node, err)
	}
	d.span("moves", report.Span{From: begin, To: d.clock.now(), Kind: "move", Label: fmt.Sprintf("%s %s → %s", g.name(), at, node)})
	d.place(g, node, d.clock.now())
	d.tell("%s moved live from %s to %s", g.name(), at, node)
	return d.checkLedger(ctx, g, "its move to "+node)
}

// keepAway moves a guest off a node, to whichever is neither manager nor leader if there is a choice.
func (d *demo) keepAway(ctx context.Context, g *guest, node string) error {
	at, err := d.machines.where(ctx, node, g.id)
	if err != nil || at != node {
		return err
	}
	others := slices.DeleteFunc(slices.Clone(d.run.Nodes), func(n string) bool { return n == node })
	return d.bring(ctx, g, others[len(others)-1])
}

// together returns a node that is both manager and leader. If no one is, the leader's agent is
// restarted, which hands the leadership over in good order, until it has come to the manager.
func (d *demo) together(ctx context.Context) (string, error) {
	for try := 0; ; try++ {
		st, err := d.machines.status(ctx, d.run.Nodes[0])
		switch {
		case err != nil:
			return "", err
		case st.Leader == st.Manager && st.Leader != "":
			return st.Leader, nil
		case try == togetherTries:
			return "", fmt.Errorf("no node is manager and leader: %s is the one and %s the other, after %d restarts of leaders' agents", st.Manager, st.Leader, try)
		}
		d.tell("%s is the manager and %s the leader: restarting the agent of %s", st.Manager, st.Leader, st.Leader)
		if err := d.restartAgent(ctx, st.Leader); err != nil {
			return "", err
		}
	}
}

// restartAgent ends an agent in good order; the node's init starts it again. It counts as a fault.
func (d *demo) restartAgent(ctx context.Context, node string) error {
	in, err := d.machines.on(node).NodeInfo(ctx, client.LocalNode)
	if err != nil {
		return err
	}
	d.openWindow("agent of " + node + " restarted")
	defer d.closeWindow()
	if out, err := d.room.Exec(ctx, node, "sh", "-c", `kill -TERM "$0"`, strconv.Itoa(in.AgentPID)).CombinedOutput(); err != nil {
		return fmt.Errorf("end the agent of %s: %w: %s", node, err, out)
	}
	return await(ctx, "the agent of "+node, memberLimit, 100*time.Millisecond, func(ctx context.Context) error {
		now, err := d.machines.on(node).NodeInfo(ctx, client.LocalNode)
		if err == nil && now.AgentPID == in.AgentPID {
			err = errors.New("it has not ended yet")
		}
		if err != nil {
			return err
		}
		return d.machines.allComplete(ctx)
	})
}

// failNode cuts the power of a node, measures what becomes of guest 101, and brings the node back.
func (d *demo) failNode(ctx context.Context, kind, node string) error {
	if err := d.ready(ctx, kind, node); err != nil {
		return err
	}
	f := &report.Failover{Kind: kind, Node: node, Guest: d.failing.name(), Roles: d.roles(ctx, node)}
	f.StartLimit, f.AnswerLimit = limits(kind)
	d.tell("cutting %s: %s", node, f.Roles)
	d.openWindow(fmt.Sprintf("%s (%s) without power", node, kind))
	if err := d.cut(ctx, f); err != nil {
		d.closeWindow()
		return err
	}
	err := d.recovery(ctx, f)
	err = errors.Join(err, d.bringBack(ctx, f))
	d.closeWindow()
	d.run.Failovers = append(d.run.Failovers, *f)
	return err
}

// ready waits until the cluster is whole and the guest protected, and looks once more at who is who.
func (d *demo) ready(ctx context.Context, kind, node string) error {
	if err := await(ctx, "a whole cluster before the cut", memberLimit, 200*time.Millisecond, d.machines.allComplete); err != nil {
		return err
	}
	if err := d.awaitProtected(ctx, d.failing); err != nil {
		return err
	}
	st, err := d.machines.status(ctx, node)
	if err != nil {
		return err
	}
	if kind == kindLeader && (st.Leader != node || st.Manager != node) || kind == kindWorker && (st.Leader == node || st.Manager == node) {
		return fmt.Errorf("%s should be the %s, but the leader is %s and the manager %s", node, kind, st.Leader, st.Manager)
	}
	return nil
}

func (d *demo) roles(ctx context.Context, node string) string {
	st, err := d.machines.status(ctx, node)
	if err != nil {
		return err.Error()
	}
	moving, err := d.machines.where(ctx, node, d.moving.id)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("store leader %s, HA manager %s, %s on %s, %s on %s", st.Leader, st.Manager, d.failing.name(), node, d.moving.name(), moving)
}

func (d *demo) cut(ctx context.Context, f *report.Failover) error {
	d.setOff(f.Node, true)
	res, err := d.room.Power(ctx, f.Node, lab.PowerOff)
	if err != nil {
		return fmt.Errorf("cut the power of %s: %w", f.Node, err)
	}
	f.Cut = d.clock.ofTime(res.CutAt)
	d.place(d.failing, "", f.Cut)
	d.endSpan(f.Node, f.Cut)
	d.span(f.Node, report.Span{From: f.Cut, Kind: "off", Label: "no power"})
	return nil
}

// recovery watches the guest come back, and then compares its ledger.
func (d *demo) recovery(ctx context.Context, f *report.Failover) error {
	witness := slices.DeleteFunc(slices.Clone(d.run.Nodes), func(n string) bool { return n == f.Node })
	err := await(ctx, "a new QEMU and an answer of "+f.Guest, recoverLimit, 100*time.Millisecond, func(ctx context.Context) error {
		return d.lookForGuest(ctx, f, witness)
	})
	if err != nil {
		return err
	}
	d.tell("%s: QEMU started on %s %.2f s after the cut, first answer after %.2f s", f.Guest, f.To, (f.Started - f.Cut).Seconds(), (f.Answered - f.Cut).Seconds())
	return d.checkLedger(ctx, d.failing, "the power cut of "+f.Node)
}

// lookForGuest fills in what can be seen by now.
func (d *demo) lookForGuest(ctx context.Context, f *report.Failover, witness []string) error {
	if f.Fenced == 0 && d.seenFenced(ctx, witness[0], f.Node) {
		f.Fenced = d.clock.now()
	}
	if f.Started == 0 {
		for _, n := range witness {
			if at, ok := d.startOf(n, d.failing); ok {
				f.To, f.Started = n, at
				d.place(d.failing, n, at)
			}
		}
	}
	if f.Started == 0 {
		return errors.New("no QEMU of it runs on any other node")
	}
	at, ok := probe.FirstAnswer(d.failing.echo.series(), d.clock.boot(f.Started))
	if !ok {
		// A QEMU that ended again was not the one.
		if now, ok := d.startOf(f.To, d.failing); !ok || now != f.Started {
			f.Started, f.To = 0, ""
		}
		return fmt.Errorf("it runs on %s and does not answer", f.To)
	}
	f.Answered = d.clock.of(at)
	return nil
}

func (d *demo) seenFenced(ctx context.Context, witness, node string) bool {
	st, err := d.machines.status(ctx, witness)
	if err != nil {
		return false
	}
	for _, n := range st.Nodes {
		if n.Name == node {
			return n.Fenced
		}
	}
	return false
}

// startOf is when the QEMU process of a guest on a node began, as the kernel noted it.
func (d *demo) startOf(node string, g *guest) (time.Duration, bool) {
	pids, err := sys.CgroupProcesses(filepath.Join(d.room.Cgroup(node), "sauh", "guests", g.id.String()))
	if err != nil {
		return 0, false
	}
	for _, pid := range pids {
		args, err := sys.ProcessArgs(pid)
		if err != nil || !strings.Contains(args[0], "qemu-system") {
			continue
		}
		if ticks, err := sys.ProcessStart(pid); err == nil {
			return d.clock.of(time.Duration(ticks) * (time.Second / ticksPerSecond)), true
		}
	}
	return 0, false
}

// bringBack switches the node on and waits until it is a member like the others.
func (d *demo) bringBack(ctx context.Context, f *report.Failover) error {
	at := d.clock.now()
	if _, err := d.room.Power(ctx, f.Node, lab.PowerOn); err != nil {
		return fmt.Errorf("switch %s on: %w", f.Node, err)
	}
	f.PowerOn = at
	d.endSpan(f.Node, at)
	d.span(f.Node, report.Span{From: at, Kind: "on"})
	if err := d.machines.refresh(ctx); err != nil {
		return err
	}
	d.setOff(f.Node, false)
	err := await(ctx, f.Node+" as a member again", memberLimit, 100*time.Millisecond, d.machines.allComplete)
	if err != nil {
		return err
	}
	f.Member = d.clock.now()
	d.tell("%s is a member again %.1f s after its power came back", f.Node, (f.Member - f.PowerOn).Seconds())
	return nil
}

// closeUp cuts out of the echoes what the report draws, and looks what the fault did to the other guest.
func (d *demo) closeUp(f *report.Failover) {
	to := max(f.Answered, f.Cut+20*time.Second) + 5*time.Second
	f.Echo = d.echoes(d.failing, f.Cut-3*time.Second, to)
	gaps := probe.Gaps(d.moving.echo.series(), d.clock.boot(f.Cut), d.clock.boot(max(f.Answered, f.Cut)))
	f.Bystanders = []report.Bystander{{Guest: d.moving.name(), Gap: gaps.Longest}}
}

// checkEnd looks at the whole once more.
func (d *demo) checkEnd(ctx context.Context) error {
	var errs []error
	for _, g := range []*guest{d.moving, d.failing} {
		errs = append(errs, d.checkLedger(ctx, g, "everything"))
	}
	errs = append(errs, await(ctx, "a whole cluster at the end", memberLimit, 200*time.Millisecond, d.machines.allComplete))
	for _, g := range []*guest{d.moving, d.failing} {
		errs = append(errs, g.awaitAnswer(ctx, bootLimit))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return d.showQuorum(ctx)
}
